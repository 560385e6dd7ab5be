"""The short table: solvers and students at one, two, four and ten passes, with 95% intervals. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from bench.reports.cohorts import stated
from bench.reports.tables import Row, cells, sign, student_name
from bench.reports.verdicts import Score, by_training, floor, measured, naive, quality, score_of

Cell = Mapping[str, Any]
NFES = (1, 2, 4, 10)
FEWEST = 5  # lines of a table that is worth its own page


def _name(cell: Cell) -> str:
    if cell["method"] != "teacher":
        return f"**{student_name(cell)}**"
    name = str(cell["solver"]).partition("(")[0] if cell["train_seconds"] else str(cell["solver"])
    return f"*{name}*" if cell["train_seconds"] else name


def _how(cell: Cell) -> str:
    """The settings of a solver that its name does not say; a student brings its own."""
    if cell["method"] != "teacher":
        return str(cell["grid"]) if str(cell["grid"]).startswith("at ") else ""
    end = "" if cell["end"] == "sigma_min" else "to 0"
    return " ".join(str(part) for part in (cell["grid"], end, "AFS" if cell["afs"] else "") if part)


def _text(score: Score, how: str = "") -> str:
    half = score.half_width
    interval = f" [{score.mean - half:.3g}, {score.mean + half:.3g}]" if half == half else ""
    return f"{score.mean:.3g}{interval}{f' ({how})' if how else ''}"


def _line_of(table: Sequence[Cell], metric: str) -> dict[tuple[str, int], tuple[Score, str]]:
    """For each line's name and NFE the best of its settings: its score over the training seeds, and those settings."""
    best: dict[tuple[str, int], tuple[Score, str]] = {}
    for group in by_training(measured(table, metric)):
        place, score = (_name(group[0]), int(group[0]["nfe"])), score_of(group, metric)
        if place not in best or sign(metric) * score.mean < sign(metric) * best[place][0].mean:
            best[place] = score, _how(group[0])
    return best


def few_steps(rows: Sequence[Row]) -> str:
    """Markdown: the judging metric of every solver (its best grid, end and AFS) and student at `NFES`, without guidance, each with its 95%
    interval, the best at each NFE bold; the floor above them. Empty where there is little to show."""
    whole = cells(rows)
    parts = [
        part for model in dict.fromkeys(c["model"] for c in whole) if (part := _part([c for c in whole if c["model"] == model], str(model)))
    ]
    return "\n".join([*parts, stated(rows), ""]) if parts else ""


def _part(table: Sequence[Cell], model: str) -> str:
    metric = quality(table)
    plain = [c for c in table if c["method"] != "naive" and c["guidance"] == 1 and c["nfe"] in NFES]
    best = _line_of(plain, metric)
    names = sorted({name for name, _ in best}, key=lambda n: (n.startswith("*") + n.startswith("**"), n))
    if len(names) < FEWEST:
        return ""
    least = {n: min((sign(metric) * s.mean for (_, m), (s, _) in best.items() if m == n), default=None) for n in NFES}
    shown = [n for n in NFES if least[n] is not None]

    def written(name: str, n: int) -> str:
        if (name, n) not in best:
            return ""
        score, how = best[name, n]
        text = _text(score, how)
        return f"**{text}**" if sign(metric) * score.mean == least[n] else text

    body = [[name, *(written(name, n) for n in shown)] for name in names]
    lines = [f"## {model}: {metric} at few passes, with 95% intervals", ""]
    lines += [tabulate(body, headers=["NFE", *map(str, shown)], tablefmt="pipe", disable_numparse=True), ""]
    lines += ["Solvers at the best of their grids, ends and AFS; in italics those fitted to the teacher; bold names are students.", ""]
    known = {"real images of the training set": floor(table, metric), "real images held out": naive(table, "real_heldout", metric)}
    known |= {"class means": naive(table, "class_means", metric)}
    lines += [f"- {what}: {_text(score)}" for what, score in known.items() if score is not None]
    return "\n".join([*lines, ""])
