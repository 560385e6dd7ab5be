"""What a check says: findings, and the certificate they add up to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, NamedTuple

from methods.claims import Claims

ROUNDING = 2.0**-52  # of float64
SETTING = (6, "sigma_min")  # steps and end where a defect's size is declared
DEFECT_TOLERANCE = 0.01  # a declared size is met to 1%
PIN_TOLERANCE = 1e-3  # recorded departures have five digits; 1% would hide mistakes of 1% in weights
UNPINNED = 10  # times its declared size is what a defect may be in runs of which nothing is recorded
Pins = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]]  # check -> grid -> end -> steps -> departures


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
    """All findings on one solver; it holds when every one of them does. `claims` is None where the solver cannot say any."""

    name: str
    paper: str
    claims: Claims | None
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
        claims = self.claims and {**asdict(self.claims), "order_on": dict(self.claims.order_on)}
        return {
            "solver": self.name,
            "paper": self.paper,
            "holds": self.holds,
            "claims": claims,
            "findings": found,
        }


class Departure(NamedTuple):
    """How far a value is from its exact one, what rounding can do to it, and how far the unit of a declared size would be."""

    gone: float
    bound: float
    unit: float

    def beyond(self, size: float = 0.0) -> bool:
        """Whether it differs from a recorded size by more than rounding and the record's digits. What is not finite does."""
        return not (isfinite(self.gone) and abs(self.gone - size) <= PIN_TOLERANCE * size + self.bound)

    @property
    def sizes(self) -> float:
        """What rounding leaves of it, in units of a declared size."""
        beyond = self.gone - self.bound
        return 0.0 if beyond <= 0 else beyond / self.unit if self.unit else float("inf")


@dataclass(frozen=True)
class Run:
    """The departures of one run, level by level, and its size as that of a declared defect."""

    steps: int
    end: str
    departures: tuple[Departure, ...]
    size: float


def declared(claims: Claims, check: str, grid: str) -> float | None:
    """The size of the defect that a solver declares for a check on a grid; None when it declares none."""
    sizes = [d.size for d in claims.defects if (d.check, d.grid) == (check, grid)]
    return sizes[0] if sizes else None


def _undeclared(check: str, grid: str, runs: Sequence[Run]) -> Finding:
    """Every departure of every run is within its bound by rounding."""
    worst = max((d for run in runs for d in run.departures), key=lambda d: d.gone / d.bound if isfinite(d.gone) else float("inf"))
    ok = not worst.beyond()
    size = next((run.size for run in runs if (run.steps, run.end) == SETTING), 0.0)
    note = "the largest departure, and its bound by rounding" if ok else f"undeclared; as a defect its size is {size:.6g}"
    return Finding(check, grid, worst.bound, worst.gone, ok, note)


def _as_recorded(check: str, grid: str, runs: Sequence[Run], pins: Mapping[str, Mapping[str, Sequence[float]]]) -> Finding:
    """Every departure of every run is the recorded one, in the order of the run's levels; one that is recorded as 0 is rounding."""
    faults, made = [], {(run.end, str(run.steps)) for run in runs}
    for run in runs:
        known, what = pins.get(run.end, {}).get(str(run.steps), ()), f"{run.steps} steps, end {run.end}"
        if len(known) != len(run.departures):
            faults.append(f"{what}: {len(run.departures)} departures, {len(known)} recorded")
        for found, size in zip(run.departures, known):
            if found.beyond(size):
                faults.append(f"{what}: {found.gone:.6g}, recorded {size:.6g}")
    faults += [f"{steps} steps, end {end}: recorded, and not made" for end, of in pins.items() for steps in of if (end, steps) not in made]
    words = f"{len(faults)} faults" if faults else "as recorded"
    return Finding(check, grid, "as recorded", words, not faults, faults[0] if faults else f"{len(runs)} runs")


def _bounded(check: str, grid: str, runs: Sequence[Run], size: float) -> Finding:
    """No departure of any run is larger than some times the declared size; where such a size is nothing (sigma 0), none is there."""
    worst = max((d.sizes for run in runs for d in run.departures), key=lambda value: value if value == value else float("inf"))
    most = UNPINNED * abs(size)
    note = f"not pinned: runs other than the declared one are only bounded by {UNPINNED} times its size"
    return Finding(check, grid, float(most), float(worst), worst <= most, note)


def departure(claims: Claims, check: str, grid: str, runs: Sequence[Run], pins: Pins) -> Iterator[Finding]:
    """Departures that must not be there or, where a defect is declared, of its size in its setting and as recorded in every run.

    `pins`: what is recorded of this solver (`bench.certificate.checks.pins`); where nothing is, the other runs are only bounded.
    """
    size = declared(claims, check, grid)
    if size is None:
        yield _undeclared(check, grid, runs)
        return
    found = next((run.size for run in runs if (run.steps, run.end) == SETTING), 0.0)
    near = abs(found - size) <= DEFECT_TOLERANCE * abs(size)
    yield Finding(check, grid, float(size), float(found), near and size != 0, "a declared defect")
    known, every = pins.get(check, {}).get(grid), f"{grid}, every run"
    yield _bounded(check, every, runs, size) if known is None else _as_recorded(check, every, runs, known)
