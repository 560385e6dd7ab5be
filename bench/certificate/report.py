"""Certificates as a table for people and as records for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tabulate import tabulate

from bench.certificate.finding import Certificate, Finding
from bench.certificate.levels import GRIDS

HEADERS = (
    "solver",
    "paper",
    "order: claimed",
    "measured",
    "transport",
    "moments",
    "NFE",
    "vectors",
    "golden",
    "diffusers",
    "defects",
    "holds",
)


def _orders(certificate: Certificate) -> tuple[str, str]:
    """Claimed and measured order, one number where all grids agree."""
    if certificate.claims is None:
        return "-", "-"
    claimed = [certificate.claims.order_at(grid) for grid in GRIDS]
    if certificate.claims.order is None:
        return f"exact {certificate.claims.evaluates.replace('_', ' ')}", ""
    found = {f.grid: f.found for f in certificate.of("order")}
    measured = [f"{found[g]:.1f}" if isinstance(found.get(g), float) else "-" for g in GRIDS]
    both = ["/".join(map(str, values)) if len(set(values)) > 1 else str(values[0]) for values in (claimed, measured)]
    return both[0], both[1].replace("-0.0", "0.0")


def _verdict(findings: Sequence[Finding]) -> str:
    """`ok 56`, or how many failed; `-` where there was nothing to check, and a word where what checks it is absent."""
    failed = sum(not f.ok for f in findings)
    if any(f.found == "not installed" for f in findings):
        return "not installed"
    return "-" if not findings else f"FAILED {failed} of {len(findings)}" if failed else f"ok {len(findings)}"


def _defects(certificate: Certificate) -> str:
    if certificate.claims is None:
        return "-"
    checks = [d.check for d in certificate.claims.defects]
    return ", ".join(f"{check} on {checks.count(check)}" for check in dict.fromkeys(checks)) or "none"


def _row(certificate: Certificate) -> tuple[str, ...]:
    one = [_verdict(certificate.of(check)) for check in ("transport", "variance", "counts", "vectors", "golden", "diffusers")]
    paper = certificate.paper if len(certificate.paper) <= 34 else certificate.paper[:31] + "..."
    return (certificate.name, paper, *_orders(certificate), *one, _defects(certificate), "yes" if certificate.holds else "NO")


def table(certificates: Sequence[Certificate], style: str = "simple") -> str:
    """One row per solver. Orders are per grid, in the order of `GRIDS`, where they differ."""
    rows = [[cell.replace("|", "\\|") if style == "pipe" else cell for cell in _row(c)] for c in certificates]
    return tabulate(rows, HEADERS, tablefmt=style, disable_numparse=True)


def failures(certificates: Sequence[Certificate]) -> list[str]:
    """Everything that failed, one line each."""
    return [f"{c.name}: {f.line}" for c in certificates for f in c.failures]


def markdown(certificates: Sequence[Certificate]) -> str:
    """The table, then what failed, the declared defects and the deviations."""
    parts = [f"Orders are per grid ({', '.join(GRIDS)}) where they differ.", table(certificates, "pipe")]
    failed = failures(certificates)
    sizes = [f"{c.name}: {d.check} on {d.grid}, {d.size:.6g}: {d.why}" for c in certificates if c.claims for d in c.claims.defects]
    deviations = [f"{c.name}: {text}" for c in certificates if c.claims for text in c.claims.deviations]
    for title, lines in (("Failed", failed), ("Declared defects", sizes), ("Deviations", deviations)):
        if lines:
            parts.append("\n".join([f"## {title}", "", *(f"- {line}" for line in lines)]))
    return "\n\n".join(parts) + "\n"


def as_json(certificates: Sequence[Certificate]) -> str:
    """All certificates with every finding."""
    return json.dumps([c.record() for c in certificates], indent=1, allow_nan=False) + "\n"
