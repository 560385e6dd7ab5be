"""Curves over the guidance weight w = scale - 1, and how near students are to the guided teacher. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from bench.reports.tables import Row, cells, in_role, number, sign, student_name
from bench.reports.verdicts import Estimate, Group, Score, difference, measured, score_of
from metrics import metric_named

Cell = Mapping[str, Any]
STEPS = 4  # what guidance.md compares at
FEWEST = 3  # weights that make a curve
NOTE = """{metric} compares with the teacher's own many-step solution under the same guidance, from the same noise and label, at
{steps} steps (an analytical first one is not counted), with the standard error over images and, of several, training seeds. The
guided teacher takes two passes a step above w = 0; its best solver counts. A sampler that draws noise leaves the flow by design, so its
{metric} says little."""


@dataclass(frozen=True)
class Curve:
    """A student with one of its samplers, or a solver of the teacher, at one number of steps: its cells at each w (one a training seed,
    failed ones among them). `name` is a student's, with that of its model before it where there are several."""

    model: str
    method: str
    name: str
    solver: str
    steps: int
    points: Mapping[float, tuple[Cell, ...]]

    @property
    def label(self) -> str:
        return f"{self.name}, {self.solver}"

    def score(self, w: float, metric: str) -> Score | None:
        """The mean over training seeds at one w; None where no seed has it."""
        known = measured(self.points.get(w, ()), metric)
        return score_of(known, metric) if known else None


def taken(cell: Cell) -> int:
    """Steps with an evaluation (guided or not): the analytical first one is none."""
    return int(cell["steps"] or 0) - bool(cell["afs"])


def curves(table: Sequence[Cell], metric: str) -> list[Curve]:
    """All curves with this metric; where a solver or student has several grids, ends or AFS, the one with most weights, then the first."""
    groups: dict[tuple[Any, ...], dict[float, list[Cell]]] = {}
    several = len({c["model"] for c in table}) > 1
    for cell in table:
        if cell["method"] != "naive" and (number(cell[metric]) is not None or cell["status"] == "failed"):
            name = (f"{cell['model']}: " if several else "") + (student_name(cell) if cell["method"] != "teacher" else "teacher")
            place = (cell["model"], cell["method"], name, cell["solver"], taken(cell))
            place += (cell["grid"], cell["end"], cell["afs"], cell["wrap"], cell["seed"])
            groups.setdefault(place, {}).setdefault(round(cell["guidance"] - 1, 6), []).append(cell)
    best: dict[tuple[Any, ...], dict[float, list[Cell]]] = {}
    for place, points in groups.items():
        known = any(measured(found, metric) for found in points.values())
        if known and len(points) > len(best.get(place[:5], {})):
            best[place[:5]] = points
    out = []
    for (model, method, name, solver, steps), points in best.items():
        out.append(Curve(model, method, name, solver, steps, {w: tuple(found) for w, found in sorted(points.items())}))
    return out


@dataclass(frozen=True)
class Comparison:
    """How near a student is to the guided teacher's own solution at one w, and the best that the guided teacher has in as many steps."""

    metric: str
    student: Curve
    w: float
    mine: Score | None
    solver: str
    theirs: Score | None

    @property
    def gain(self) -> Estimate | None:
        """How much nearer the student is."""
        if self.mine is None or self.theirs is None:
            return None
        lower, half = difference(self.mine, self.theirs)
        return sign(self.metric) * lower, half

    @property
    def seeds(self) -> str:
        return Group(self.student.points[self.w], self.metric).seeds


def comparisons(table: Sequence[Cell], metric: str, steps: int = STEPS) -> list[Comparison]:
    """Every student that was sampled at three weights in so many steps, at each w."""
    found, out = [c for c in curves(table, metric) if c.steps == steps], []
    for curve in (c for c in found if c.method != "teacher" and len(c.points) >= FEWEST):
        for w in curve.points:
            teachers = [c for c in found if (c.model, c.method) == (curve.model, "teacher")]
            theirs = [(c.solver, s) for c in teachers if (s := c.score(w, metric)) is not None]
            solver, best = min(theirs, key=lambda pair: sign(metric) * pair[1].mean, default=("", None))
            out.append(Comparison(metric, curve, w, curve.score(w, metric), solver, best))
    return out


def guidance_text(rows: Sequence[Row]) -> str:
    """Markdown: at each w and 4 steps, how near students are to the guided teacher's solution, beside the guided teacher itself at 4 steps;
    empty where no student has it at three weights."""
    lines, warnings, metric = [], list[str](), in_role("agreement")
    unit = metric_named(metric).unit
    for c in comparisons(cells(rows), metric):
        cell = c.student.points[c.w][0]
        line = [f"{c.w:g}", c.student.name, c.student.solver, str(cell["nfe"]), c.mine.text if c.mine else "failed"]
        if cell["warning"]:
            warnings.append(f"{c.student.label}: {cell['warning']}")
        if c.theirs is None or c.gain is None:
            lines.append([*line, "not measured", "", "", ""])
            continue
        gain, half = c.gain
        interval = f" ({gain - half:.2f} to {gain + half:.2f})" if half == half else ", no interval"
        word = "yes" if gain - half > 0 else "NO" if gain + half < 0 else "not told apart" if half == half else "not known"
        lines.append([*line, c.solver, c.theirs.text, f"{gain:+.2f}{interval}", word])
    if not lines:
        return ""
    headers = ["w", "student", "sampler", "NFE", f"{metric}, {unit}", f"teacher at {STEPS} steps", f"its {metric}"]
    headers += [f"gain, {unit} (95%)", "nearer"]
    table = tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)
    return "\n\n".join([table, *dict.fromkeys(warnings), NOTE.format(metric=metric, steps=STEPS)]) + "\n"
