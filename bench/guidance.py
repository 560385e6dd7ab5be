"""Curves over the guidance weight w = scale - 1, and how near students are to the guided teacher. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from bench.tables import Row, cells, number, student_name
from bench.verdicts import Score, difference, score_of

Cell = Mapping[str, Any]
PSNR = "psnr_teacher"
STEPS = 4  # what guidance.md compares at
FEWEST = 3  # weights that make a curve
NOTE = f"""PSNR to the teacher's own many-step solution under the same guidance, from the same noise and label, at {STEPS} steps
(an analytical first one is not counted), with the standard error over training seeds. The guided teacher takes two passes a step above
w = 0; its best solver counts. A sampler that draws noise leaves the flow by design, so its PSNR says little."""


@dataclass(frozen=True)
class Curve:
    """A student with one of its samplers, or a solver of the teacher, at one number of steps: its cells at each w (one a training seed)."""

    method: str
    name: str
    solver: str
    steps: int
    points: Mapping[float, tuple[Cell, ...]]

    @property
    def label(self) -> str:
        return f"teacher, {self.solver}" if self.method == "teacher" else f"{self.name}, {self.solver}"

    def score(self, w: float, metric: str) -> Score | None:
        """The mean over training seeds at one w; None where no seed has it."""
        known = [c for c in self.points.get(w, ()) if number(c[metric]) is not None]
        return score_of(known, metric) if known else None


def taken(cell: Cell) -> int:
    """Steps with an evaluation (guided or not): the analytical first one is none."""
    return int(cell["steps"] or 0) - bool(cell["afs"])


def curves(table: Sequence[Cell], metric: str) -> list[Curve]:
    """All curves with this metric; where a solver or student has several grids, ends or AFS, the one with most weights, then the first."""
    groups: dict[tuple[Any, ...], dict[float, list[Cell]]] = {}
    for cell in table:
        if cell["method"] != "naive" and number(cell[metric]) is not None:
            name = "" if cell["method"] == "teacher" else student_name(cell)
            place = (cell["method"], name, cell["solver"], taken(cell), cell["grid"], cell["end"], cell["afs"], cell["wrap"], cell["seed"])
            groups.setdefault(place, {}).setdefault(round(cell["guidance"] - 1, 6), []).append(cell)
    best: dict[tuple[Any, ...], dict[float, list[Cell]]] = {}
    for place, points in groups.items():
        if len(points) > len(best.get(place[:4], {})):
            best[place[:4]] = points
    return [
        Curve(method, name, solver, steps, {w: tuple(found) for w, found in sorted(points.items())})
        for (method, name, solver, steps), points in best.items()
    ]


def _nearest_solver(found: Sequence[Curve], w: float) -> tuple[str, Score] | None:
    scored = [(c.solver, s) for c in found if c.method == "teacher" and (s := c.score(w, PSNR)) is not None]
    return max(scored, key=lambda pair: pair[1].mean, default=None)


def _shown(score: Score) -> str:
    return f"{score.mean:.2f}" + (f" ± {score.error:.2g}" if score.error is not None else "")


def guidance_text(rows: Sequence[Row]) -> str:
    """Markdown: at each w and 4 steps, the PSNR of students to the guided teacher beside that of the guided teacher itself at 4 steps;
    empty where no student has it at three weights."""
    found = [c for c in curves(cells(rows), PSNR) if c.steps == STEPS]
    students = [c for c in found if c.method != "teacher" and len(c.points) >= FEWEST]
    if not students:
        return ""
    lines, counts = [], []
    for curve in students:
        nearer = compared = 0
        for w in curve.points:
            mine, solver = curve.score(w, PSNR), _nearest_solver(found, w)
            assert mine is not None
            line = [f"{w:g}", curve.name, curve.solver, str(curve.points[w][0]["nfe"]), _shown(mine)]
            if solver is None:
                lines.append([*line, "not measured", "", "", ""])
                continue
            behind, half = difference(mine, solver[1])
            gain, compared, nearer = -behind, compared + 1, nearer + (behind < 0)
            interval = f" ({gain - half:.2f} to {gain + half:.2f})" if half == half else ""
            lines.append([*line, solver[0], _shown(solver[1]), f"{gain:+.2f}{interval}", "yes" if gain > 0 else "NO"])
        counts.append(f"- {curve.label}: nearer than the guided teacher at {nearer} of {compared} weights")
    headers = ["w", "student", "sampler", "NFE", "PSNR, dB", f"teacher at {STEPS} steps", "its PSNR, dB", "gain, dB", "nearer"]
    return "\n\n".join(["\n".join(counts), tabulate(lines, headers, tablefmt="pipe", disable_numparse=True), NOTE]) + "\n"
