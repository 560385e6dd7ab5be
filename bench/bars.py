"""The ratios a finished sweep is judged by, from rows. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tabulate import tabulate

from bench.tables import Row, cells, number, student_name
from bench.verdicts import level, naive, over_seeds, verdicts

Cell = Mapping[str, Any]


class Bar(NamedTuple):
    """One ratio; `value` and `holds` are None while a row it needs is missing."""

    name: str
    value: float | None
    limit: str
    holds: bool | None


def _bar(name: str, value: float | None, sense: str, limit: float) -> Bar:
    holds = None if value is None else {"<=": value <= limit, "<": value < limit, ">": value > limit}[sense]
    return Bar(name, value, f"{sense} {limit:g}", holds)


def _ratio(top: float | None, bottom: float | None) -> float | None:
    return None if top is None or bottom is None or bottom <= 0 else top / bottom


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _pick(table: Sequence[Cell], metric: str, **want: Any) -> list[tuple[Cell, float]]:
    """Cells whose fields equal `want` and whose metric was measured, with its value."""
    chosen = (c for c in table if all(c[k] == v for k, v in want.items()))
    return [(c, value) for c in chosen if (value := number(c[metric])) is not None]


def best(rows: Sequence[Row], n: int) -> float | None:
    """Least fd_digits at NFE n over the teacher's solvers (guidance 1) and the class means; None while either is missing."""
    return level(cells(rows), n)


# Students that have to halve the distance of the best solver to the floor, by NFE; the others must be no worse than it at NFE 2.
HALVE = {1: ("cd", "ctm", "sfd_one", "dmd2"), 2: ("cd", "ctm", "sfd", "dmd2")}
FROM_32 = "from_32"  # the variant of pd whose first teacher takes 32 steps


def _distilled(rows: Sequence[Row]) -> Iterator[Bar]:
    """Students without a variant (those are ablations), and those that have no number because they failed."""
    table, found = cells(rows), [v for v in verdicts(rows) if not v.variant]
    known = {c["method"] for c in table if not c["variant"]} - {"naive", "teacher"}
    for nfe, methods in HALVE.items():
        for method in (m for m in methods if m in known):
            own = [v for v in found if (v.method, v.nfe) == (method, nfe)]
            for v in own:
                yield _bar(f"{v.name}, {v.solver}, NFE {nfe}: (fd - floor) / (best({nfe}) - floor)", v.share, "<=", 0.5)
            if not own:
                yield _bar(f"{method}, NFE {nfe}: (fd - floor) / (best({nfe}) - floor)", None, "<=", 0.5)
    for method in sorted(known - set(HALVE[2])):
        own = [v for v in found if (v.method, v.nfe) == (method, 2)]
        for v in own:
            yield _bar(f"{v.name}, {v.solver}, NFE 2: fd / best(2)", _ratio(v.score.mean, v.level), "<=", 1)
        if not own and any((c["method"], c["nfe"]) == (method, 2) for c in table):
            yield _bar(f"{method}, NFE 2: fd / best(2)", None, "<=", 1)


def _costs(table: Sequence[Cell]) -> Iterator[Bar]:
    """SFD to two evaluations against progressive distillation from 32 steps: seconds, and quality beside them."""

    def at_two(**want: Any) -> list[Cell]:
        return [c for c, _ in _pick(table, "fd_digits", nfe=2, guidance=1, **want)]

    slow, fast = at_two(method="pd", variant=FROM_32), at_two(method="sfd", variant="")
    if slow and fast:
        seconds, fds = ([sum(float(c[field]) for c in own) / len(own) for own in (slow, fast)] for field in ("train_seconds", "fd_digits"))
        yield _bar("pd from 32 steps, NFE 2: seconds / those of sfd", _ratio(*seconds), ">", 10)
        yield _bar("sfd, NFE 2: fd / that of pd from 32 steps", _ratio(fds[1], fds[0]), "<=", 1)


def _teacher(table: Sequence[Cell]) -> Iterator[Bar]:
    first = [v for _, v in _pick(table, "fd_digits", method="teacher", solver="euler", end="zero", steps=1, guidance=1)]
    value = _ratio(max(first, default=None), naive(table, "class_means"))
    yield _bar("teacher D(sigma_max), NFE 1: fd / fd of the class means", value, "<=", 1.1)
    for n in (5, 10, 20):
        place = {"method": "teacher", "grid": "logsnr", "end": "sigma_min", "afs": False, "guidance": 1, "nfe": n}
        psnr = {s: [v for _, v in _pick(table, "psnr_teacher", solver=s, **place)] for s in ("dpmpp_2m", "euler")}
        gain = _minus(min(psnr["dpmpp_2m"], default=None), max(psnr["euler"], default=None))
        yield _bar(f"dpmpp_2m, log-SNR grid to sigma_min, NFE {n}: PSNR above euler (dB)", gain, ">", 0)


def _diversity(table: Sequence[Cell]) -> Iterator[Bar]:
    groups: dict[str, dict[float, float]] = {}
    for cell, value in _pick(table, "diversity_digits"):
        if cell["method"] == "naive":
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
        groups.setdefault(" ".join(filter(None, parts)), {})[cell["guidance"]] = value
    whole = {name: g for name, g in groups.items() if {1, 2, 4} <= g.keys()}
    for name, g in whole.items():
        largest = max(g[2] / g[1], g[4] / g[2]) if min(g[1], g[2]) > 0 else None
        yield _bar(f"{name}: diversity, larger of (scale 2 / 1) and (4 / 2)", largest, "<", 1)
    if not whole:
        yield _bar("diversity, larger of (scale 2 / 1) and (4 / 2)", None, "<", 1)


def _learned(table: Sequence[Cell]) -> Iterator[Bar]:
    """A learned solver at NFE 5 against the solver it improves on the same grid, with or without AFS, whichever is better."""
    for metric in ("fd_digits", "endpoint_error"):
        for cell, value in _pick(table, metric, method="teacher", nfe=5, guidance=1):
            if cell["base"] not in ("", cell["solver"]):
                same = {"solver": cell["base"], "grid": cell["grid"], "end": cell["end"], "wrap": cell["wrap"]}
                own = [v for _, v in _pick(table, metric, method="teacher", nfe=5, guidance=1, **same)]
                afs = " with AFS" if cell["afs"] else ""
                name = f"{cell['solver']}{afs} on {cell['base']}, {cell['grid']}, NFE 5: {metric} / that of the base"
                yield _bar(name, _ratio(value, min(own, default=None)), "<", 1)


def _arena_students(table: Sequence[Cell]) -> Iterator[Bar]:
    """A student's one evaluation against the teacher's own one-step DDIM sample, on a closed form."""
    ddim = [v for _, v in _pick(table, "energy_distance", method="teacher", solver="euler", steps=1, end="zero_last", guidance=1)]
    students = [c for c in table if c["method"] not in ("naive", "teacher")]
    measured = [c for c in students if c["nfe"] == 1 and c["guidance"] == 1 and number(c["energy_distance"]) is not None]
    for cell in over_seeds(measured, "energy_distance"):
        name, ratio = student_name(cell), _ratio(cell["energy_distance"], min(ddim, default=None))
        yield _bar(f"{name}, NFE 1: energy distance / that of one DDIM step", ratio, "<=", 0.2)
        yield _bar(f"{name}: seconds of training", number(cell["train_seconds"]), "<=", 120)
    for method in sorted({c["method"] for c in students} - {c["method"] for c in measured}):
        yield _bar(f"{method}, NFE 1: energy distance / that of one DDIM step", None, "<=", 0.2)


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Every ratio: consistency and progressive distillation, the teacher at NFE 1, dpmpp_2m against euler, diversity under guidance,
    learned solvers against their base.

    Of several models only the students are judged, each by its own teacher. Where several cells answer one question (seeds, grids) each
    student has its own line and the teacher's worst case counts. A suite that measures nothing on images (an arena) has its students
    against one DDIM step, and the last.
    """
    table = cells(rows)
    if table and not any(number(c["fd_digits"]) is not None for c in table):
        return [*_arena_students(table), *_learned(table)]
    if len({c["model"] for c in table}) > 1:
        return list(_distilled(rows))
    return [*_distilled(rows), *_costs(table), *_teacher(table), *_diversity(table), *_learned(table)]


def print_bars(bars: Sequence[Bar], fmt: str = "simple") -> str:
    """The bars as a text table (`simple`), or for a file (`pipe`)."""
    if not bars:
        return ""
    words = {True: "yes", False: "NO", None: "not measured"}
    lines = [[b.name, "" if b.value is None else f"{b.value:.3f}", b.limit, words[b.holds]] for b in bars]
    if fmt == "pipe":
        lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    align = ["left", "right", "left", "left"]
    return tabulate(lines, ["bar", "value", "limit", "holds"], tablefmt=fmt, disable_numparse=True, colalign=align)
