"""The table to read first: quality at each NFE, one line per solver (its best grid, end and AFS) and per student. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from bench.tables import cells, number

Row = Mapping[str, Any]
STEPS = (1, 2, 4, 5, 8, 10, 20, 50)


def _line(cell: Mapping[str, Any]) -> str:
    return str(cell["solver"]) if cell["method"] == "teacher" else f"**{cell['method']}** {cell['loss']}".strip()


def _settings(cell: Mapping[str, Any]) -> str:
    return " ".join(
        str(p) for p in (cell["grid"], "to 0" if cell["end"] != "sigma_min" else "to sigma_min", "AFS" if cell["afs"] else "") if p
    )


def _score(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return ""
    value, error = number(cell["fd_digits"]), number(cell["fd_digits_se"])
    assert value is not None
    return f"{value:.3g}" + (f" ± {error:.1g}" if error else "")


def summary(rows: Sequence[Row]) -> str:
    """Markdown: fd_digits at NFE 1, 2, 4, ... without guidance, lines sorted by their score at the fewest passes they have.

    The last lines give the naive rows, and for each NFE the setting of the best training-free row.
    """
    table = [c for c in cells(rows) if number(c["fd_digits"]) is not None]
    plain = [c for c in table if c["method"] != "naive" and c["guidance"] == 1 and c["nfe"] in STEPS]
    least: dict[tuple[str, int], Mapping[str, Any]] = {}
    for cell in plain:
        place = (_line(cell), cell["nfe"])
        if place not in least or cell["fd_digits"] < least[place]["fd_digits"]:
            least[place] = cell
    names = sorted({name for name, _ in least}, key=lambda n: (n.startswith("**"), n))
    body = [[name, *(_score(least.get((name, n))) for n in STEPS)] for name in names]
    lines = [tabulate(body, headers=["fd_digits at NFE", *map(str, STEPS)], tablefmt="pipe", disable_numparse=True), ""]
    for n in STEPS:
        free = [c for (name, m), c in least.items() if m == n and not name.startswith("**")]
        if free:
            best = min(free, key=lambda c: c["fd_digits"])
            lines.append(f"- best training-free at NFE {n}: {best['solver']}, {_settings(best)}: {_score(best)}")
    for cell in table:
        if cell["method"] == "naive":
            lines.append(f"- {cell['solver']}: {_score(cell)}")
    return "\n".join(lines) + "\n"
