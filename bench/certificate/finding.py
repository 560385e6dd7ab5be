"""What a check says: findings, and the certificate they add up to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from methods.solver import Claims

ROUNDING = 2.0**-52  # of float64
DEFECT_TOLERANCE = 0.01  # a declared size is met to 1%


@dataclass(frozen=True)
class Finding:
    """One thing a check looked at. `expected` and `found` are numbers or words; `note` says what was measured, or what was not."""

    check: str
    grid: str
    expected: float | str
    found: float | str
    ok: bool
    note: str = ""

    @property
    def line(self) -> str:
        """The finding as one line of text."""
        shown = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in (self.expected, self.found)]
        return f"{self.check} on {self.grid}: expected {shown[0]}, found {shown[1]}{f' ({self.note})' if self.note else ''}"


@dataclass(frozen=True)
class Certificate:
    """All findings on one solver; it holds when every one of them does."""

    name: str
    paper: str
    claims: Claims
    findings: tuple[Finding, ...]

    @property
    def failures(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if not f.ok)

    @property
    def holds(self) -> bool:
        return bool(self.findings) and not self.failures

    def of(self, *checks: str) -> tuple[Finding, ...]:
        """The findings of some checks."""
        return tuple(f for f in self.findings if f.check in checks)

    def record(self) -> dict[str, Any]:
        """Plain data for a file; what is not finite is a word there."""
        found = [{k: str(v) if isinstance(v, float) and not isfinite(v) else v for k, v in asdict(f).items()} for f in self.findings]
        claims = {**asdict(self.claims), "order_on": dict(self.claims.order_on)}
        return {
            "solver": self.name,
            "paper": self.paper,
            "holds": self.holds,
            "claims": claims,
            "findings": found,
        }


def declared(claims: Claims, check: str, grid: str) -> float | None:
    """The size of the defect that a solver declares for a check on a grid; None when it declares none."""
    sizes = [d.size for d in claims.defects if (d.check, d.grid) == (check, grid)]
    return sizes[0] if sizes else None


def departure(claims: Claims, check: str, grid: str, size: float, exact: Iterable[tuple[float, float]]) -> Finding:
    """A departure that must not be there, or be of its declared size.

    `exact`: pairs of (departure, bound by rounding) of every run; `size` is the departure in the setting where defects are declared.
    """
    size_declared = declared(claims, check, grid)
    if size_declared is not None:
        near = abs(size - size_declared) <= DEFECT_TOLERANCE * abs(size_declared)
        return Finding(check, grid, float(size_declared), float(size), near and size_declared != 0, "a declared defect")
    worst = max(exact, key=lambda pair: pair[0] / pair[1] if pair[0] == pair[0] else float("inf"))
    ok = worst[0] <= worst[1]
    note = "the largest departure, and its bound by rounding" if ok else f"undeclared; as a defect its size is {size:.6g}"
    return Finding(check, grid, float(worst[1]), float(worst[0]), ok, note)
