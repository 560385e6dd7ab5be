"""The table to read first: quality at each NFE, one line per solver (its best grid, end and AFS) and per student. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from bench.reports.cohorts import stated
from bench.reports.tables import DEFICIENT, cells, headlines, number, plus_minus, sign
from bench.reports.verdicts import over_seeds

Row = Mapping[str, Any]
MOST = 50  # NFE: what takes more is a reference


def _line(cell: Mapping[str, Any]) -> str:
    if cell["method"] == "teacher":
        return f"*{cell['solver']}*" if cell["train_seconds"] else str(cell["solver"])
    return " ".join(str(part) for part in (f"**{cell['method']}**", cell["variant"], cell["loss"]) if part)


def _settings(cell: Mapping[str, Any]) -> str:
    return " ".join(
        str(p) for p in (cell["grid"], "to 0" if cell["end"] != "sigma_min" else "to sigma_min", "AFS" if cell["afs"] else "") if p
    )


def _score(cell: Mapping[str, Any] | None, metric: str) -> str:
    if cell is None:
        return ""
    return plus_minus(cell[metric], number(cell[f"{metric}_se"]))


def _above(cell: Mapping[str, Any] | None, metric: str) -> str:
    """How far the cell is above the exact optimum."""
    if cell is None or cell[f"{metric}_optimum"] is None:
        return ""
    return plus_minus(cell[metric] - cell[f"{metric}_optimum"], number(cell[f"{metric}_se"]))


def summary(rows: Sequence[Row]) -> str:
    """Markdown, for each headline metric that was measured: its value at each NFE up to 50 without guidance, best settings of each solver
    (in italics: learned ones; in bold: students, means over training seeds); of several models each under its name.

    The last lines give the naive rows, and for each NFE the setting of the best training-free row. Where the exact flow is known, a second
    table has how far students are above what its end points score.
    """
    whole, parts = cells(rows), list[str]()
    models = list(dict.fromkeys(c["model"] for c in whole))
    for model in models:
        found = [text for metric in headlines() if (text := _part([c for c in whole if c["model"] == model], metric))]
        parts += [f"## {model}\n", *found] if found and models[1:] else found
    return "\n".join([*parts, f"{stated(rows)}\n"]) if parts else "No rows yet.\n"


def _part(whole: Sequence[Mapping[str, Any]], metric: str) -> str:
    table = [c for c in whole if number(c[metric]) is not None]
    plain = over_seeds([c for c in table if c["method"] != "naive" and c["guidance"] == 1 and c["nfe"] <= MOST], metric)
    if not table:
        return ""
    least: dict[tuple[str, int], Mapping[str, Any]] = {}
    direction = sign(metric)
    for cell in plain:
        place = (_line(cell), cell["nfe"])
        if place not in least or direction * cell[metric] < direction * least[place][metric]:
            least[place] = cell
    names = sorted({name for name, _ in least}, key=lambda n: (n.startswith("*") + n.startswith("**"), n))
    shown = sorted({nfe for _, nfe in least})

    def written(names: Sequence[str], head: str, text: Callable[[Mapping[str, Any] | None, str], str]) -> list[str]:
        body = [[name, *(text(least.get((name, n)), metric) for n in shown)] for name in names]
        return [tabulate(body, headers=[head, *map(str, shown)], tablefmt="pipe", disable_numparse=True), ""]

    lines = written(names, f"{metric} at NFE", _score)
    students = sorted({name for (name, _), c in least.items() if c["method"] != "teacher" and c[f"{metric}_optimum"] is not None})
    if students:
        lines += written(students, f"{metric} above the exact flow's, at NFE", _above)
    for n in shown:
        free = [c for (_, m), c in least.items() if m == n and c["method"] == "teacher" and not c["train_seconds"]]
        if free:
            best = min(free, key=lambda c: direction * c[metric])
            lines.append(f"- best training-free at NFE {n}: {best['solver']}, {_settings(best)}: {_score(best, metric)}")
    for cell in table:
        if cell["method"] == "naive":
            lines.append(f"- {cell['solver']}: {_score(cell, metric)}")
    if few := sum(metric in cell["deficient"] for cell in table):
        lines.append(f"- {few} of these {len(table)} values are of {DEFICIENT}")
    return "\n".join(lines) + "\n"
