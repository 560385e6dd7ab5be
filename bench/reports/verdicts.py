"""Students against the best that needs no distillation, over the seeds they were trained with, and what they cost. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev, variance
from typing import Any

from scipy import special
from tabulate import tabulate

from bench.reports.cohorts import stated
from bench.reports.tables import IDENTITY, Row, cells, number, plus_minus, shown, sign, student_name
from bench.store.measures import teacher_passes
from metrics import metrics_by_name

Cell = Mapping[str, Any]
CONFIDENCE = 0.95
NOTE = """The standard error has two parts: the spread of the training seeds, where there are several, and that of the metric itself, which
they share because all are sampled from the same noise. A difference of two that are sampled from the same noise has the second part from
the same bootstrap resamples of both; intervals are Welch's. The best solver has the least value of all solvers of the teacher that the
suite has at that NFE, learned ones and AFS among them where it has those. A pass is one image through a network, forward; other passes are
of the student, its averages, and what is trained beside it. Memory is the whole process's."""


@dataclass(frozen=True)
class Score:
    """A mean over training seeds with the two parts of its standard error: the spread of the seeds (None of one seed), and the metric's own
    (None where it has none). All seeds are sampled from the same noise, so the second does not fall with their number. `draws` are the
    scores of its bootstrap resamples, and `noise` says of what samples: scores from the same noise have the same resamples."""

    mean: float
    spread: float | None
    own: float | None
    seeds: int
    noise: Any = None
    draws: tuple[float, ...] = ()

    @property
    def error(self) -> float | None:
        """The standard error: sqrt(spread^2 + own^2) of the parts that there are."""
        parts = [part for part in (self.spread, self.own) if part is not None]
        return math.hypot(*parts) if parts else None

    @property
    def half_width(self) -> float:
        """Of the 95% interval, see `half_width`."""
        return half_width((1.0, self))

    @property
    def text(self) -> str:
        return plus_minus(self.mean, self.error)


Estimate = tuple[float, float]  # a value and the half-width of its 95% interval (not a number without errors)


@dataclass(frozen=True)
class Group:
    """A student at one NFE: its cells by training seed, those that failed among them."""

    cells: tuple[Cell, ...]
    metric: str

    @property
    def first(self) -> Cell:
        return self.cells[0]

    @property
    def name(self) -> str:
        return student_name(self.first)

    @property
    def sampler(self) -> str:
        """How it was sampled, as far as that is not its distiller's own."""
        by_hand = self.first["grid"] if str(self.first["grid"]).startswith("at ") else ""
        seed = f"from seed {self.first['seed']}" if self.first["seed"] else ""
        return " ".join(part for part in (self.first["solver"], by_hand, self.first["wrap"], seed) if part)

    @property
    def known(self) -> list[Cell]:
        return measured(self.cells, self.metric)

    @property
    def score(self) -> Score | None:
        return score_of(self.known, self.metric) if self.known else None

    @property
    def seeds(self) -> str:
        """How many there are, of how many there should be."""
        return f"{len(self.known)}" if len(self.known) == len(self.cells) else f"{len(self.known)} of {len(self.cells)}"


@dataclass(frozen=True)
class Verdict:
    """One student at one NFE: its score over the training seeds that have one, the best solver's there, best(N), and the floor."""

    group: Group
    score: Score
    best: Score | None
    level: Score | None
    floor: Score | None

    @property
    def model(self) -> str:
        return str(self.group.first["model"])

    @property
    def method(self) -> str:
        return str(self.group.first["method"])

    @property
    def variant(self) -> str:
        return str(self.group.first["variant"])

    @property
    def loss(self) -> str:
        return str(self.group.first["loss"])

    @property
    def nfe(self) -> int:
        return int(self.group.first["nfe"])

    @property
    def name(self) -> str:
        return self.group.name

    @property
    def sampler(self) -> str:
        return self.group.sampler

    @property
    def cells(self) -> list[Cell]:
        return self.group.known

    @property
    def share(self) -> Estimate | None:
        """(score - floor) / (best(N) - floor); None where best(N) is not told from the floor."""
        if self.floor is None or self.level is None:
            return None
        gap = self.level.mean - self.floor.mean
        if not sign(self.group.metric) * gap > max(0.0, half_width((1.0, self.level), (-1.0, self.floor))):
            return None
        share = (self.score.mean - self.floor.mean) / gap
        return share, half_width((1.0, self.score), (-share, self.level), (share - 1, self.floor)) / abs(gap)

    @property
    def ratio(self) -> Estimate | None:
        """score / best(N)."""
        return None if self.level is None else ratio(self.score, self.level)

    @property
    def text(self) -> str:
        """How the student compares with the best solver at its NFE, with the 95% interval of the difference."""
        if self.best is None:
            return ""
        gain, half = difference(self.score, self.best)
        gain *= sign(self.group.metric)
        if half != half:
            return f"{'better' if gain > 0 else 'worse'} by {abs(gain):.3g}, without an interval"
        word = "better by" if gain - half > 0 else "worse by" if gain + half < 0 else "not told apart,"
        size = -gain if gain + half < 0 else gain
        return f"{word} {size:.3g} ({size - half:.3g} to {size + half:.3g})"


def half_width(*terms: tuple[float, Score]) -> float:
    """Of the 95% interval of a weighted sum of scores; not a number where one has no error.

    Its variance adds up that of each score's training seeds and the metric's own, which scores from the same noise share: there it is that
    of the sum over the same resamples. Student's t, with the degrees of freedom of Welch and Satterthwaite (Biometrics Bulletin 2, 1946).
    """
    if any(score.error is None for _, score in terms):
        return math.nan
    parts = [((w * s.spread) ** 2, s.seeds - 1.0) for w, s in terms if s.spread is not None]
    shared: dict[Any, list[float]] = {}
    for w, s in terms:
        if s.draws:
            summed = shared.get((s.noise, len(s.draws)), [0.0] * len(s.draws))
            shared[s.noise, len(s.draws)] = [total + w * draw for total, draw in zip(summed, s.draws)]
        elif s.own is not None:
            parts.append(((w * s.own) ** 2, math.inf))
    parts += [(variance(summed), len(summed) - 1.0) for summed in shared.values()]
    total, scatter = sum(v for v, _ in parts), sum(v**2 / free for v, free in parts)
    tail = (1 + CONFIDENCE) / 2
    return math.sqrt(total) * float(special.stdtrit(total**2 / scatter, tail) if scatter else special.ndtri(tail))


def difference(score: Score, other: Score) -> Estimate:
    """How much lower the score is than the other."""
    return other.mean - score.mean, half_width((1.0, other), (-1.0, score))


def ratio(score: Score, other: Score) -> Estimate | None:
    """score / other, to first order in both errors; None where the other is not positive."""
    if other.mean <= 0:
        return None
    value = score.mean / other.mean
    return value, half_width((1.0, score), (-value, other)) / other.mean


def quality(table: Sequence[Cell]) -> str:
    """The metric that students are judged by: what most of them have (of all rows where there are no students)."""
    students = [c for c in table if c["method"] not in ("naive", "teacher")]
    judges = sorted((m for m in metrics_by_name() if shown(m).judges), key=lambda m: -shown(m).judges)
    known = {m: len(measured(students or table, m)) for m in judges}
    return max(judges, key=lambda m: known[m]) if any(known.values()) else min(judges, key=lambda m: shown(m).place)


def score_of(found: Sequence[Cell], metric: str) -> Score:
    """The mean of cells that differ in the training seed."""
    values = [float(c[metric]) for c in found]
    n, mean = len(values), sum(values) / len(values)
    spread = stdev(values) / math.sqrt(n) if n > 1 else None
    resampled = [draws for c in found if (draws := c.get(f"{metric}_draws")) is not None]
    if len(resampled) == n and len({(noise, len(draws)) for noise, draws in resampled}) == 1:
        means = tuple(sum(draws) / n for draws in zip(*(draws for _, draws in resampled)))
        return Score(mean, spread, stdev(means), n, resampled[0][0], means)
    own = [error for c in found if (error := number(c.get(f"{metric}_se"))) is not None]
    return Score(mean, spread, sum(own) / len(own) if own else None, n)


def by_training(table: Sequence[Cell]) -> list[list[Cell]]:
    """The cells in groups that differ in the training seed alone."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in table:
        groups.setdefault(tuple(cell[f] for f in (*IDENTITY, "seed") if f not in ("fit_seed", "steps")), []).append(cell)
    return list(groups.values())


def measured(table: Sequence[Cell], metric: str) -> list[Cell]:
    """The cells that have a number for the metric."""
    return [c for c in table if number(c[metric]) is not None]


def over_seeds(table: Sequence[Cell], metric: str) -> list[Cell]:
    """The cells with those that differ in the training seed alone as one: the first with the mean of a metric and its error."""
    means = [(group[0], score_of(group, metric)) for group in by_training(measured(table, metric))]
    return [{**cell, metric: score.mean, f"{metric}_se": score.error} for cell, score in means]


def best_solver(table: Sequence[Cell], nfe: int, metric: str) -> Cell | None:
    """The cell of the teacher with the best value at this NFE without guidance, learned solvers and AFS among them."""
    free = [c for c in measured(table, metric) if c["method"] == "teacher" and c["nfe"] == nfe and c["guidance"] == 1]
    direction = sign(metric)
    return min(free, key=lambda c: direction * c[metric], default=None)


def naive(table: Sequence[Cell], solver: str, metric: str) -> Score | None:
    """The score of a reference row: no student gains by being nearer than `class_means`, which are not drawn and so have no error."""
    rows = (c for c in measured(table, metric) if c["method"] == "naive" and c["solver"] == solver)
    if solver == "class_means":
        return next((Score(float(c[metric]), None, 0.0, 1) for c in rows), None)
    return next((score_of([c], metric) for c in rows), None)


def optimum(table: Sequence[Cell], metric: str) -> Score | None:
    """What the exact flow scores, on a closed form."""
    known = (v for c in table if (v := number(c.get(f"{metric}_optimum"))) is not None)
    return next((Score(v, None, 0.0, 1) for v in known), None)


def floor(table: Sequence[Cell], metric: str) -> Score | None:
    """The least that a score can be expected to be: that of real images (`real_train`), or of the exact flow."""
    return naive(table, "real_train", metric) or optimum(table, metric)


def level(table: Sequence[Cell], nfe: int, metric: str) -> Score | None:
    """best(N): the best value at this NFE of any solver of the teacher and of the class means (a closed form has none); None while
    either is missing."""
    solver, means = best_solver(table, nfe, metric), naive(table, "class_means", metric)
    if solver is None or (means is None and optimum(table, metric) is None):
        return None
    return min((s for s in (score_of([solver], metric), means) if s is not None), key=lambda s: sign(metric) * s.mean)


def students(table: Sequence[Cell], metric: str) -> list[Group]:
    """Every student without guidance that was to be measured, at every NFE."""
    own = [c for c in table if c["method"] not in ("naive", "teacher") and c["guidance"] == 1]
    asked = [c for c in own if c["status"] == "failed" or number(c[metric]) is not None]
    return [Group(tuple(group), metric) for group in by_training(asked)]


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Every student at every NFE without guidance, in the order of the table, against the solvers of its own teacher."""
    whole, found = cells(rows), list[Verdict]()
    for model in dict.fromkeys(c["model"] for c in whole):
        own = [c for c in whole if c["model"] == model]
        found.extend(v for group in students(own, quality(own)) if (v := judged(group, own)) is not None)
    return found


def judged(group: Group, table: Sequence[Cell]) -> Verdict | None:
    """A student against the solvers of its model's table; None where none of its seeds has a number."""
    score, nfe, metric = group.score, int(group.first["nfe"]), group.metric
    if score is None:
        return None
    best = best_solver(table, nfe, metric)
    return Verdict(group, score, None if best is None else score_of([best], metric), level(table, nfe, metric), floor(table, metric))


def _cost(verdict: Verdict) -> list[str]:
    """Training seconds, passes of the teacher and of all other networks in thousands, and peak memory in MB, as means over the seeds."""

    def mean(values: Sequence[float | None]) -> str:
        known = [v for v in values if v is not None]
        return f"{sum(known) / len(known):,.0f}" if known else ""

    trained = [c["training"] or {} for c in verdict.cells]
    passes = [t.get("passes") or {} for t in trained]
    taught = [teacher_passes(p) for p in passes]
    teacher = [None if count is None else count / 1e3 for count in taught]
    student = [(sum(p.values()) - (count or 0)) / 1e3 if p else None for p, count in zip(passes, taught)]
    memory = [t["peak_bytes"] / 1e6 if t.get("peak_bytes") else None for t in trained]
    return [mean([number(c["train_seconds"]) for c in verdict.cells]), mean(teacher), mean(student), mean(memory)]


def students_text(rows: Sequence[Row]) -> str:
    """Markdown: every student at every NFE with its verdict against the best solver there, and its cost; a table for each metric that
    models are judged by."""
    found, parts = verdicts(rows), list[str]()
    several = len({v.model for v in found}) > 1
    for metric in dict.fromkeys(v.group.metric for v in found):
        lines = []
        for v in (v for v in found if v.group.metric == metric):
            share = "" if v.share is None else f"{v.share[0]:.2f}" + (f" ± {v.share[1]:.1g}" if v.share[1] == v.share[1] else "")
            name = f"{v.model}: {v.name}" if several else v.name
            lines.append([name, v.sampler, str(v.nfe), v.group.seeds, v.score.text, share, v.text, *_cost(v)])
        headers = ["student", "sampler", "NFE", "seeds", metric, "(value - floor) / (best - floor) ± 95%", "against the best solver (95%)"]
        headers += ["training, s", "teacher passes, k", "other passes, k", "peak memory, MB"]
        parts.append(tabulate(lines, headers, tablefmt="pipe", disable_numparse=True))
    return "\n\n".join([*parts, NOTE, stated(rows)]) + "\n" if parts else "No students yet.\n"
