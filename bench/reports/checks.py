"""What a suite must show: registered checks, their parameters and limits from results/targets.csv, and the table of how they came out.

A check looks at the cells of one model and finds named ratios. Needs no torch.
"""

from __future__ import annotations

import csv
import inspect
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from bench.reports.cohorts import stated
from bench.reports.guidance import comparisons
from bench.reports.tables import Row, cells, number, student_name
from bench.reports.verdicts import Estimate, Group, judged, measured, naive, quality, ratio, students
from bench.settings.files import text_of
from fewstep.errors import UsageError
from fewstep.plugins import get, register

TARGETS = Path(__file__).resolve().parents[2] / "results" / "targets.csv"
OWN_TARGETS = Path("results") / "targets.csv"
Cell = Mapping[str, Any]
Value = float | Estimate | None  # an estimate with the half-width of its 95% interval; None while a row it needs is missing
Found = tuple[str, Value, str]  # name, value, and how many training seeds
SENSES = {
    "<=": lambda value, limit: value <= limit,
    "<": lambda value, limit: value < limit,
    ">": lambda value, limit: value > limit,
    ">=": lambda value, limit: value >= limit,
}


class Bar(NamedTuple):
    """One ratio beside its limit; `value` and `holds` are None while a row it needs is missing. `half` is the half-width of its 95%
    interval, not a number where there is none."""

    name: str
    value: float | None
    limit: str
    holds: bool | None
    half: float = math.nan
    seeds: str = ""

    @property
    def verdict(self) -> str:
        """Whether the value keeps to the limit, and whether its interval leaves that open."""
        if self.value is None:
            return "not measured"
        open_still = abs(self.value - float(self.limit.split()[1])) < self.half
        return ("yes" if self.holds else "NO") + (", within its error" if open_still else "")


class Target(NamedTuple):
    """A line of targets.csv: in suites of this name (`*` stands for anything, `|` for or) what a check finds has to keep to a limit."""

    suite: str
    check: str
    parameters: Mapping[str, str]
    limit: str
    why: str


@cache
def read_targets(path: Path) -> tuple[Target, ...]:
    """The lines of a targets.csv, none where it is not there. **Raises**: UsageError for one that cannot be read, with its number."""
    if not path.is_file():
        return ()
    found, lines = [], csv.DictReader(io.StringIO(text_of(path)))
    for line in lines:
        where = f"{path} line {lines.line_num}"
        try:
            own = dict(part.split("=", 1) for part in line["parameters"].split())
            sense, limit = line["limit"].split()
            found.append(Target(line["suite"], line["check"], own, f"{sense} {float(limit):g}", line["why"]))
            known = sense in SENSES
        except (KeyError, ValueError, AttributeError) as err:
            raise UsageError(f"{where} is no target ({err}); it has suite, check, parameters as name=value, limit and why") from None
        if not known:
            raise UsageError(f"{where}: the limit is one of {', '.join(SENSES)} and a number, got '{line['limit']}'")
    return tuple(found)


def _bar(found: Found, target: Target) -> Bar:
    name, value, seeds = found
    mean, half = value if isinstance(value, tuple) else (value, math.nan)
    sense, limit = target.limit.split()
    return Bar(name, mean, target.limit, None if mean is None else SENSES[sense](mean, float(limit)), half, seeds)


def _ratio(top: float | None, bottom: float | None) -> float | None:
    return None if top is None or bottom is None or bottom <= 0 else top / bottom


def _pick(table: Sequence[Cell], **want: Any) -> list[Cell]:
    """Cells whose fields equal `want`."""
    return [c for c in table if all(c[k] == v for k, v in want.items())]


def _values(table: Sequence[Cell], metric: str) -> list[float]:
    return [float(c[metric]) for c in measured(table, metric)]


def _split(text: str) -> list[str]:
    return text.split("|")


def _groups(table: Sequence[Cell]) -> list[Group]:
    """Students; variants are ablations, and have no target."""
    return [group for group in students(table, quality(table)) if not group.first["variant"]]


@register("check", "share_of_gap")
def share_of_gap(table: Sequence[Cell], nfe: str, methods: str) -> Iterator[Found]:
    """(value - floor) / (best(NFE) - floor) of the students of these methods; those that failed have no value."""
    for group in (g for g in _groups(table) if g.first["nfe"] == int(nfe) and g.first["method"] in _split(methods)):
        found = judged(group, table)
        share = None if found is None else found.share
        yield f"{group.name}, {group.sampler}, NFE {nfe}: (value - floor) / (best({nfe}) - floor)", share, group.seeds


@register("check", "ratio_to_best")
def ratio_to_best(table: Sequence[Cell], nfe: str, besides: str) -> Iterator[Found]:
    """value / best(NFE) of the students of every other method, at the first of these NFE that it has."""
    groups = _groups(table)
    for method in sorted({g.first["method"] for g in groups} - set(_split(besides))):
        own = [g for g in groups if g.first["method"] == method]
        at = next((int(n) for n in _split(nfe) if any(g.first["nfe"] == int(n) for g in own)), None)
        for group in (g for g in own if g.first["nfe"] == at):
            found = judged(group, table)
            name = f"{group.name}, {group.sampler}, NFE {at}: value / best({at})"
            yield name, None if found is None else found.ratio, group.seeds


def _pair(table: Sequence[Cell], slow: str, option: str, fast: str, nfe: str) -> tuple[Group, Group] | None:
    """A method's student with one option (name:value; empty: whichever there is), and another method's, at one NFE; None where one of them
    is not there."""
    name, _, value = option.partition(":")
    at = [g for g in _groups(table) if g.first["nfe"] == int(nfe)]
    own = [g for g in at if g.first["method"] == slow and (not option or str(g.first["distiller"].get(name)) == value)]
    first = next(iter(own), None)
    second = next((g for g in at if g.first["method"] == fast), None)
    return (first, second) if first and second else None


def _with(method: str, option: str) -> str:
    return f"{method} with {option.replace(':', ' ')}" if option else method


@register("check", "seconds_ratio")
def seconds_ratio(table: Sequence[Cell], slow: str, fast: str, nfe: str, option: str = "") -> Iterator[Found]:
    """Seconds of training of one method's student over those of another's."""
    if pair := _pair(table, slow, option, fast, nfe):
        spent = [[float(c["train_seconds"]) for c in g.known] for g in pair]
        seconds = [sum(s) / len(s) if s else None for s in spent]
        yield f"{_with(slow, option)}, NFE {nfe}: seconds / those of {fast}", _ratio(*seconds), pair[0].seeds


@register("check", "value_ratio")
def value_ratio(table: Sequence[Cell], slow: str, fast: str, nfe: str, option: str = "") -> Iterator[Found]:
    """The score of the other method's student over that of the first."""
    if pair := _pair(table, slow, option, fast, nfe):
        first, second = (g.score for g in pair)
        value = None if first is None or second is None else ratio(second, first)
        yield f"{fast}, NFE {nfe}: value / that of {_with(slow, option)}", value, pair[1].seeds


@register("check", "one_pass_over_means")
def one_pass_over_means(table: Sequence[Cell], solver: str, end: str) -> Iterator[Found]:
    """The teacher's D at its highest level against the class means."""
    metric = quality(table)
    first = _pick(table, method="teacher", solver=solver, end=end, steps=1, guidance=1)
    if first and (means := naive(table, "class_means", metric)):
        value = _ratio(max(_values(first, metric), default=None), means.mean)
        yield "teacher D(sigma_max), NFE 1: value / that of the class means", value, ""


@register("check", "gain")
def gain(table: Sequence[Cell], metric: str, solver: str, against: str, grid: str, end: str, nfe: str) -> Iterator[Found]:
    """How far the worst value of one solver is above the best of another, on one grid at each NFE."""
    asked = any(metric in c["failed"] or number(c[metric]) is not None for c in table)
    for n in _split(nfe) if asked else ():
        place = {"method": "teacher", "grid": grid, "end": end, "afs": False, "guidance": 1, "nfe": int(n)}
        ours, theirs = (_pick(table, solver=name, **place) for name in (solver, against))
        if ours or theirs:
            low, high = min(_values(ours, metric), default=None), max(_values(theirs, metric), default=None)
            found = None if low is None or high is None else low - high
            yield f"{solver}, {grid} grid to {end}, NFE {n}: {metric} above {against}", found, ""


@register("check", "falls_with_guidance")
def falls_with_guidance(table: Sequence[Cell], metric: str) -> Iterator[Found]:
    """The largest ratio of a metric to that at the scale before, of whatever was sampled at three scales or more."""
    groups: dict[str, dict[float, float]] = {}
    for cell in measured(table, metric):
        if cell["method"] == "naive" or cell["guidance"] < 1:
            continue
        parts = (
            student_name(cell) if cell["method"] != "teacher" else "",
            cell["solver"],
            f"{cell['steps']} steps",
            cell["grid"],
            f"to {cell['end']}",
            "afs" if cell["afs"] else "",
            cell["wrap"],
            f"seed {cell['seed']}",
            f"trained with seed {cell['fit_seed']}" if cell["fit_seed"] else "",
        )
        groups.setdefault(" ".join(filter(None, parts)), {})[cell["guidance"]] = cell[metric]
    for name, of in groups.items():
        if len(of) >= 3:
            values = [of[scale] for scale in sorted(of)]
            largest = max(b / a for a, b in pairwise(values)) if min(values[:-1]) > 0 else None
            scales = ", ".join(f"{scale:g}" for scale in sorted(of))
            yield f"{name}: {metric} at scales {scales}, largest ratio to the scale before", largest, ""


@register("check", "above_guided_teacher")
def above_guided_teacher(table: Sequence[Cell], metric: str, steps: str) -> Iterator[Found]:
    """Students against the guided teacher at as many steps, in their nearness to its own solution."""
    for c in comparisons(table, metric, int(steps)):
        yield f"{c.student.label}, w = {c.w:g}: {metric} above the guided teacher's, both at {steps} steps", c.gain, c.seeds


@register("check", "learned_over_base")
def learned_over_base(table: Sequence[Cell], metrics: str, nfe: str) -> Iterator[Found]:
    """A learned solver against the solver that it improves on the same grid, with or without AFS, whichever is better."""
    for metric in (quality(table) if name == "judged" else name for name in _split(metrics)):
        at = _pick(measured(table, metric), method="teacher", nfe=int(nfe), guidance=1)
        for cell in (c for c in at if c["base"] not in ("", c["solver"])):
            base = _values(_pick(at, solver=cell["base"], grid=cell["grid"], end=cell["end"], wrap=cell["wrap"]), metric)
            if base:
                afs = " with AFS" if cell["afs"] else ""
                name = f"{cell['solver']}{afs} on {cell['base']}, {cell['grid']}, NFE {nfe}: {metric} / that of the base"
                yield name, _ratio(cell[metric], min(base)), ""


@register("check", "student_over_solver")
def student_over_solver(table: Sequence[Cell], metric: str, solver: str, end: str, steps: str, nfe: str) -> Iterator[Found]:
    """A student's value against that of the teacher's own few steps. Without intervals: the standard error of the metric is that of the
    samples alone, and the reference's, which all rows share, is as large."""
    own = _pick(table, method="teacher", solver=solver, steps=int(steps), end=end, guidance=1)
    bottom = min(_values(own, metric), default=None)
    for group in (g for g in students(table, metric) if g.first["nfe"] == int(nfe)):
        value = None if group.score is None else _ratio(group.score.mean, bottom)
        yield f"{group.name}, NFE {nfe}: {metric} / that of {solver} in {steps} step{'s' * (steps != '1')}", value, group.seeds


@register("check", "training_seconds")
def training_seconds(table: Sequence[Cell], metric: str, nfe: str) -> Iterator[Found]:
    """The longest training among the seeds of each student at one NFE."""
    for group in (g for g in students(table, metric) if g.first["nfe"] == int(nfe)):
        yield f"{group.name}, NFE {nfe}: most seconds of training", max(_values(group.known, "train_seconds"), default=None), group.seeds


def targets_of(suite: str, places: Sequence[Path] = (TARGETS, OWN_TARGETS)) -> list[tuple[Target, Path]]:
    """The targets of a suite and their files: ours, and those in `results/targets.csv` of the folder where the command runs.

    **Raises**: UsageError for a file that cannot be read, and for a target whose check is unknown or has other parameters.
    """
    files = dict.fromkeys(place.resolve() for place in places)
    found = [(t, file) for file in files for t in read_targets(file) if any(fnmatchcase(suite, part) for part in t.suite.split("|"))]
    for target, file in found:
        try:
            inspect.signature(get("check", target.check).target).bind((), **target.parameters)
        except TypeError as err:
            raise UsageError(f"{file}: check '{target.check}' cannot be made with {dict(target.parameters)} ({err})") from None
    return found


def bars(rows: Sequence[Row], places: Sequence[Path] = (TARGETS, OWN_TARGETS)) -> list[Bar]:
    """What the targets of the rows' suite find in them. Each of several models has its own; what failed is not measured.

    **Raises**: as `targets_of`, and UsageError for a value of a parameter that its check cannot read.
    """
    return limits(rows, places)[0]


def limits(rows: Sequence[Row], places: Sequence[Path] = (TARGETS, OWN_TARGETS)) -> tuple[list[Bar], list[Target]]:
    """As `bars`, with the targets that find nothing in the rows: none of their cells are there."""
    table, out, idle = cells(rows), list[Bar](), dict[int, tuple[Target, bool]]()
    models = list(dict.fromkeys(c["model"] for c in table))
    wanted = targets_of(rows[0]["suite"], places) if rows else []
    for model in models:
        own = [c for c in table if c["model"] == model]
        several = f"{model}: " if models[1:] else ""
        for target, file in wanted:
            try:
                found = list(get("check", target.check).target(own, **target.parameters))
            except (KeyError, ValueError) as err:
                why = f"{type(err).__name__}: {err}"
                raise UsageError(f"{file}: check '{target.check}' cannot be made with {dict(target.parameters)} ({why})") from err
            out += [_bar((several + name, value, seeds), target) for name, value, seeds in found]
            idle[id(target)] = target, idle.get(id(target), (target, True))[1] and not found
    return out, [target for target, without in idle.values() if without]


def bars_text(rows: Sequence[Row]) -> str:
    """Markdown: the bars, the conditions that all cells share, and the limits that had nothing to compare."""
    found, idle = limits(rows)
    told = [f"{' '.join([target.check, *(f'{k}={v}' for k, v in target.parameters.items())])} {target.limit}" for target in idle]
    lines = [f"- {line}".replace("|", " or ") for line in told]
    without = ["Limits without cells to compare:\n\n" + "\n".join(lines)] if lines else []
    return "\n\n".join([print_bars(found, "pipe"), stated(rows), *without]) + "\n"


def print_bars(bars: Sequence[Bar], fmt: str = "simple") -> str:
    """The bars as a text table (`simple`), or for a file (`pipe`)."""
    if not bars:
        return ""
    lines = []
    for b in bars:
        interval = "" if b.value is None or b.half != b.half else f"{b.value - b.half:.3f} to {b.value + b.half:.3f}"
        lines.append([b.name, "" if b.value is None else f"{b.value:.3f}", interval, b.seeds, b.limit, b.verdict])
    if fmt == "pipe":
        lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    align = ["left", "right", "left", "left", "left", "left"]
    headers = ["bar", "value", "95%", "seeds", "limit", "holds"]
    return tabulate(lines, headers, tablefmt=fmt, disable_numparse=True, colalign=align)
