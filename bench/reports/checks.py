"""The ratios a finished sweep is judged by, from rows. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from tabulate import tabulate

from bench.reports.guidance import STEPS, comparisons
from bench.reports.tables import Row, cells, number, student_name
from bench.reports.verdicts import Estimate, Group, judged, measured, naive, quality, ratio, students

Cell = Mapping[str, Any]


class Bar(NamedTuple):
    """One ratio; `value` and `holds` are None while a row it needs is missing. `half` is the half-width of its 95% interval, not a number
    where there is none."""

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


def _bar(name: str, value: float | Estimate | None, sense: str, limit: float, seeds: str = "") -> Bar:
    mean, half = value if isinstance(value, tuple) else (value, math.nan)
    holds = None if mean is None else {"<=": mean <= limit, "<": mean < limit, ">": mean > limit, ">=": mean >= limit}[sense]
    return Bar(name, mean, f"{sense} {limit:g}", holds, half, seeds)


def _ratio(top: float | None, bottom: float | None) -> float | None:
    return None if top is None or bottom is None or bottom <= 0 else top / bottom


def _pick(table: Sequence[Cell], **want: Any) -> list[Cell]:
    """Cells whose fields equal `want`."""
    return [c for c in table if all(c[k] == v for k, v in want.items())]


def _values(table: Sequence[Cell], metric: str) -> list[float]:
    return [float(c[metric]) for c in measured(table, metric)]


# Students that have to halve the distance of the best solver to the floor, by NFE; the others must be no worse than it at NFE 2 (those
# of one step at 1).
HALVE = {1: ("cd", "ctm", "sfd_one", "dmd2"), 2: ("cd", "ctm", "sfd", "dmd2")}
PD_START = 16  # the `start` of a pd whose first teacher takes 32 steps


def _distilled(table: Sequence[Cell], groups: Sequence[Group]) -> Iterator[Bar]:
    """Students, and those that have no number because they failed."""
    halving = {m for methods in HALVE.values() for m in methods}
    for nfe, methods in HALVE.items():
        for group in (g for g in groups if g.first["nfe"] == nfe and g.first["method"] in methods):
            found = judged(group, table)
            name = f"{group.name}, {group.sampler}, NFE {nfe}: (value - floor) / (best({nfe}) - floor)"
            yield _bar(name, None if found is None else found.share, "<=", 0.5, group.seeds)
    for method in sorted({g.first["method"] for g in groups} - halving):
        own = [g for g in groups if g.first["method"] == method]
        nfe = 2 if any(g.first["nfe"] == 2 for g in own) else 1
        for group in (g for g in own if g.first["nfe"] == nfe):
            found = judged(group, table)
            name = f"{group.name}, {group.sampler}, NFE {nfe}: value / best({nfe})"
            yield _bar(name, None if found is None else found.ratio, "<=", 1, group.seeds)


def _costs(groups: Sequence[Group]) -> Iterator[Bar]:
    """SFD to two evaluations against progressive distillation from 32 steps: seconds, and quality beside them."""
    at_two = [g for g in groups if g.first["nfe"] == 2]
    slow = next((g for g in at_two if g.first["method"] == "pd" and g.first["distiller"].get("start") == PD_START), None)
    fast = next((g for g in at_two if g.first["method"] == "sfd"), None)
    if slow and fast:
        spent = [[float(c["train_seconds"]) for c in g.known] for g in (slow, fast)]
        seconds = [sum(s) / len(s) if s else None for s in spent]
        yield _bar("pd from 32 steps, NFE 2: seconds / those of sfd", _ratio(*seconds), ">=", 10, slow.seeds)
        value = None if slow.score is None or fast.score is None else ratio(fast.score, slow.score)
        yield _bar("sfd, NFE 2: value / that of pd from 32 steps", value, "<=", 1, fast.seeds)


def _teacher(table: Sequence[Cell]) -> Iterator[Bar]:
    metric = quality(table)
    first = _pick(table, method="teacher", solver="euler", end="zero", steps=1, guidance=1)
    means = naive(table, "class_means", metric)
    if first and means:
        value = _ratio(max(_values(first, metric), default=None), means.mean)
        yield _bar("teacher D(sigma_max), NFE 1: value / that of the class means", value, "<=", 1.1)
    asked = any("psnr_teacher" in c["failed"] or number(c["psnr_teacher"]) is not None for c in table)
    for n in (5, 10, 20) if asked else ():
        place = {"method": "teacher", "grid": "logsnr", "end": "sigma_min", "afs": False, "guidance": 1, "nfe": n}
        ours, euler = (_pick(table, solver=s, **place) for s in ("dpmpp_2m", "euler"))
        if ours or euler:
            low, high = min(_values(ours, "psnr_teacher"), default=None), max(_values(euler, "psnr_teacher"), default=None)
            gain = None if low is None or high is None else low - high
            yield _bar(f"dpmpp_2m, log-SNR grid to sigma_min, NFE {n}: PSNR above euler (dB)", gain, ">", 0)


def _diversity(table: Sequence[Cell]) -> Iterator[Bar]:
    """Whatever was sampled at three scales loses diversity from each to the next."""
    groups: dict[str, dict[float, float]] = {}
    for cell in measured(table, "diversity_digits"):
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
        groups.setdefault(" ".join(filter(None, parts)), {})[cell["guidance"]] = cell["diversity_digits"]
    for name, of in groups.items():
        if len(of) >= 3:
            values = [of[scale] for scale in sorted(of)]
            largest = max(b / a for a, b in pairwise(values)) if min(values[:-1]) > 0 else None
            scales = ", ".join(f"{scale:g}" for scale in sorted(of))
            yield _bar(f"{name}: diversity at scales {scales}, largest ratio to the scale before", largest, "<", 1)


def _guided(table: Sequence[Cell]) -> Iterator[Bar]:
    """Students against the guided teacher at as many steps, in PSNR to its own solution."""
    for c in comparisons(table):
        name = f"{c.student.label}, w = {c.w:g}: PSNR above the guided teacher's, both at {STEPS} steps (dB)"
        yield _bar(name, c.gain, ">", 0, c.seeds)


def _learned(table: Sequence[Cell]) -> Iterator[Bar]:
    """A learned solver at NFE 5 against the solver it improves on the same grid, with or without AFS, whichever is better."""
    for metric in (quality(table), "endpoint_error"):
        at_five = _pick(measured(table, metric), method="teacher", nfe=5, guidance=1)
        for cell in (c for c in at_five if c["base"] not in ("", c["solver"])):
            same = {"solver": cell["base"], "grid": cell["grid"], "end": cell["end"], "wrap": cell["wrap"]}
            afs = " with AFS" if cell["afs"] else ""
            base = _values(_pick(at_five, **same), metric)
            if base:
                name = f"{cell['solver']}{afs} on {cell['base']}, {cell['grid']}, NFE 5: {metric} / that of the base"
                yield _bar(name, _ratio(cell[metric], min(base)), "<", 1)


def _arena_students(table: Sequence[Cell]) -> Iterator[Bar]:
    """A student's one evaluation against the teacher's own one-step DDIM sample, on a closed form. Without intervals: the standard error
    of an energy distance is that of the samples alone, and the reference's, which all rows share, is as large."""
    metric = "energy_distance"
    ddim = min(_values(_pick(table, method="teacher", solver="euler", steps=1, end="zero_last", guidance=1), metric), default=None)
    for group in (g for g in students(table, metric) if g.first["nfe"] == 1):
        value = None if group.score is None else _ratio(group.score.mean, ddim)
        yield _bar(f"{group.name}, NFE 1: energy distance / that of one DDIM step", value, "<=", 0.2, group.seeds)
        slowest = max(_values(group.known, "train_seconds"), default=None)
        yield _bar(f"{group.name}, NFE 1: most seconds of training", slowest, "<=", 120, group.seeds)


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Every ratio that the rows have something to say of: students against the best solver (variants are ablations and have none), SFD's
    cost against progressive distillation's, the teacher at NFE 1, dpmpp_2m against euler, diversity under guidance, guided students
    against the guided teacher, learned solvers against their base; on closed forms students against one DDIM step.

    Each of several models has its own. Where several cells answer one question (seeds of noise, grids) each student has its own line and
    the teacher's worst case counts. What failed has a bar that is not measured.
    """
    table, out = cells(rows), list[Bar]()
    models = list(dict.fromkeys(c["model"] for c in table))
    for model in models:
        own = [c for c in table if c["model"] == model]
        groups, several = [g for g in students(own, quality(own)) if not g.first["variant"]], f"{model}: " if models[1:] else ""
        arena = any(number(c["fd_moments"]) is not None for c in own)
        against = _arena_students(own) if arena else _distilled(own, groups)
        whole = (*against, *_costs(groups), *_teacher(own), *_diversity(own), *_guided(own), *_learned(own))
        out += [bar._replace(name=several + bar.name) for bar in whole]
    return out


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
