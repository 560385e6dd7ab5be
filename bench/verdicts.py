"""Students against the best that needs no distillation, over the seeds they were trained with, and what they cost. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy import special
from tabulate import tabulate

from bench.tables import IDENTITY, Row, cells, number, student_name

Cell = Mapping[str, Any]
CONFIDENCE = 0.95
METRIC = "fd_digits"
NOTE = """The standard error is that of the mean over training seeds, or of the metric where there is one seed. The best solver has the
least value of all solvers of the teacher at that NFE, learned ones and AFS among them. A pass is one image through a network, forward;
memory is the whole process's."""


@dataclass(frozen=True)
class Score:
    """A mean over training seeds and its standard error: the spread of the seeds, or of the metric itself where there is one seed."""

    mean: float
    error: float | None
    seeds: int

    @property
    def half_width(self) -> float:
        """Of the 95% interval: Student's t over the seeds, a normal one of the metric's own error."""
        if self.error is None:
            return math.nan
        tail = (1 + CONFIDENCE) / 2
        return self.error * float(special.stdtrit(self.seeds - 1, tail) if self.seeds > 1 else special.ndtri(tail))


@dataclass(frozen=True)
class Verdict:
    """One student at one NFE: its score, the best solver's there, best(N), and (score - floor) / (best(N) - floor)."""

    model: str
    method: str
    variant: str
    loss: str
    solver: str
    nfe: int
    score: Score
    best: Score | None
    level: float | None
    share: float | None
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        return student_name(vars(self))

    @property
    def text(self) -> str:
        """How the student compares with the best solver at its NFE, with the 95% interval of the difference."""
        if self.best is None:
            return ""
        gain, half = difference(self.score, self.best)
        word = "better by" if gain - half > 0 else "worse by" if gain + half < 0 else "not told apart,"
        size = -gain if gain + half < 0 else gain
        return f"{word} {size:.3g} ({size - half:.3g} to {size + half:.3g})" if half == half else f"{word} {size:.3g}"


def difference(score: Score, other: Score) -> tuple[float, float]:
    """How much lower the score is than the other, and the half-width of the 95% interval of that (not a number without errors)."""
    return other.mean - score.mean, math.hypot(score.half_width, other.half_width)


def score_of(found: Sequence[Cell], metric: str = METRIC) -> Score:
    """The mean of cells that differ in the training seed."""
    values = [float(c[metric]) for c in found]
    n, mean = len(values), sum(values) / len(values)
    own = number(found[0].get(f"{metric}_se"))
    return Score(mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else own, n)


def over_seeds(table: Sequence[Cell], metric: str = METRIC) -> list[Cell]:
    """The cells with those that differ in the training seed alone as one: the first with the mean of a metric and its error."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in table:
        groups.setdefault(tuple(cell[f] for f in (*IDENTITY, "seed") if f != "fit_seed"), []).append(cell)
    means = [(group[0], score_of(group, metric)) for group in groups.values()]
    return [{**cell, metric: score.mean, f"{metric}_se": score.error} for cell, score in means]


def best_solver(table: Sequence[Cell], nfe: int) -> Cell | None:
    """The cell of the teacher with the least fd_digits at this NFE without guidance, learned solvers and AFS among them."""
    free = [c for c in table if c["method"] == "teacher" and c["nfe"] == nfe and c["guidance"] == 1 and number(c[METRIC]) is not None]
    return min(free, key=lambda c: c[METRIC], default=None)


def naive(table: Sequence[Cell], solver: str) -> float | None:
    """fd_digits of a reference row: `real_train` is the floor, and no student gains by being nearer than `class_means`."""
    rows = (c for c in table if c["method"] == "naive" and c["solver"] == solver)
    return next((v for c in rows if (v := number(c[METRIC])) is not None), None)


def level(table: Sequence[Cell], nfe: int) -> float | None:
    """best(N): the least fd_digits at this NFE of any solver of the teacher and of the class means; None while either is missing."""
    solver, means = best_solver(table, nfe), naive(table, "class_means")
    return None if solver is None or means is None else min(float(solver[METRIC]), means)


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Every student at every NFE without guidance, in the order of the table, against the solvers of its own teacher."""
    whole, found = cells(rows), list[Verdict]()
    for model in dict.fromkeys(c["model"] for c in whole):
        found.extend(_of_model(model, [c for c in whole if c["model"] == model]))
    return found


def _of_model(model: str, table: Sequence[Cell]) -> Iterator[Verdict]:
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in table:
        if cell["method"] not in ("naive", "teacher") and cell["guidance"] == 1 and number(cell[METRIC]) is not None:
            where = (cell["method"], cell["variant"] or "", cell["loss"] or "", cell["solver"], cell["nfe"])
            groups.setdefault(where, []).append(cell)
    floor = naive(table, "real_train")
    for (method, variant, loss, solver, nfe), group in groups.items():
        score = score_of(group)
        best, top = best_solver(table, nfe), level(table, nfe)
        share = None if floor is None or top is None or top <= floor else (score.mean - floor) / (top - floor)
        against = None if best is None else score_of([best])
        yield Verdict(model, method, variant, loss, solver, nfe, score, against, top, share, tuple(group))


def _cost(verdict: Verdict) -> list[str]:
    """Training seconds, passes of the teacher and of the student in thousands, and peak memory in MB, as means over the seeds."""

    def mean(values: Sequence[float | None]) -> str:
        known = [v for v in values if v is not None]
        return f"{sum(known) / len(known):,.0f}" if known else ""

    trained = [c["training"] or {} for c in verdict.cells]
    passes = [t.get("passes") or {} for t in trained]
    teacher = [p["teacher"] / 1e3 if "teacher" in p else None for p in passes]
    student = [p["student"] / 1e3 if "student" in p else None for p in passes]
    memory = [t["peak_bytes"] / 1e6 if t.get("peak_bytes") else None for t in trained]
    return [mean([number(c["train_seconds"]) for c in verdict.cells]), mean(teacher), mean(student), mean(memory)]


def students_text(rows: Sequence[Row]) -> str:
    """Markdown: every student at every NFE with its verdict against the best solver there, and its cost."""
    lines, found = [], verdicts(rows)
    several = len({v.model for v in found}) > 1
    for v in found:
        fd = f"{v.score.mean:.3g}" + (f" ± {v.score.error:.1g}" if v.score.error is not None else "")
        share = "" if v.share is None else f"{v.share:.2f}"
        name = f"{v.model}: {v.name}" if several else v.name
        lines.append([name, v.solver, str(v.nfe), str(v.score.seeds), fd, share, v.text, *_cost(v)])
    if not lines:
        return "No students yet.\n"
    headers = ["student", "sampler", "NFE", "seeds", METRIC, "(fd - floor) / (best - floor)", "against the best solver (95%)"]
    headers += ["training, s", "teacher passes, k", "student passes, k", "peak memory, MB"]
    table = tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)
    return f"{table}\n\n{NOTE}\n"
