"""python -m bench.speed RESULTS.json: the tables of a benchmark run, from the JSON that `make bench` writes. Needs no torch.

    python -m bench.speed results/bench/speed.json

Writes the tables beside the file, with the ending .md, and prints what the benchmarks are judged by. Times are medians; a spread is the
distance between the quartiles.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from bench.reports.tables import replace_file
from bench.settings import cli
from bench.settings.files import example
from fewstep.errors import UsageError

QUIET = 0.1  # share of the machine that others may use before a figure is marked
OTHERS = ("eager", "compiled", "diffusers")
CACHES = ("cold", "warm")
Figure = dict[str, Any]  # a benchmark's extra_info with its statistics
READING = """
One update of x between two network passes: seconds outside of the network in a run of `steps` steps, over the steps; everything that a
run does is in it, buffers and copies too. The network costs nothing and returns ready tensors in turn. *cold*: as many as fill twice the
last-level cache, so that each comes from memory. *warm*: four, that stay in the caches where they fit.
eager: the formula in torch, one pass over memory for each term. compiled: torch.compile of that, its numbers in a tensor. diffusers: the
loop of a pipeline with its scheduler's step (with a bfloat16 network it keeps the state in bfloat16, the others in float32). The floor is
the median time of a `copy_` that reads and writes as many bytes in all as the update must. It writes to other memory than it reads, which
costs an update in place less: shares above 100% are possible. The last columns are times over ours, cold / warm.
"""


class Bar(NamedTuple):
    """Something that the figures are judged by: what it is, the bound, what was found, and for which figure; `found` None: not measured."""

    what: str
    wanted: str
    holds: bool | None
    found: str


def read_figures(path: Path) -> tuple[dict[str, Any], list[Figure]]:
    """The machine and the figures of a benchmark run. **Raises**: UsageError for a file that is not one."""
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        figures = [{"load": 0.0, **b["extra_info"], **b["stats"]} for b in made["benchmarks"]]
        figures = [{**f, "seconds": f["median"] / f.get("steps", 1), "spread": f["iqr"] / f.get("steps", 1)} for f in figures]
        return {**made["machine_info"], "date": made["datetime"][:10]}, [f for f in figures if "kind" in f]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as err:
        hint = "make it with: make bench"
        raise UsageError(f"{path} is no benchmark JSON of this project ({type(err).__name__}: {err}); {hint}") from None


Key = tuple[str, str, str, bool]  # shape, dtype, solver, guided


def _updates(figures: Sequence[Figure]) -> dict[Key, dict[tuple[str, str], Figure]]:
    """case -> (way, cache) -> figure, in the order of the file."""
    found: dict[Key, dict[tuple[str, str], Figure]] = {}
    for f in figures:
        if f["kind"] == "update":
            found.setdefault((f["shape"], f["dtype"], f["solver"], f["guided"]), {})[f["way"], f["cache"]] = f
    return found


class Quotient(NamedTuple):
    """Of two times; `busy` where others used the machine during one of them."""

    value: float
    busy: bool


def _ratio(case: dict[tuple[str, str], Figure], other: str, cache: str) -> Quotient | None:
    ours, theirs = case.get(("run", cache)), case.get((other, cache))
    return Quotient(theirs["seconds"] / ours["seconds"], _busy(ours, theirs)) if ours and theirs else None


def _share(case: dict[tuple[str, str], Figure], cache: str) -> Quotient | None:
    """The floor's share of our time."""
    ours = case.get(("run", cache))
    if not ours or "floor" not in ours:
        return None
    return Quotient(ours["floor"] / ours["seconds"], _busy(ours) or ours.get("floor_load", 0.0) > QUIET)


def _busy(*figures: Figure) -> bool:
    """Whether others used the machine during one of the measurements."""
    return any(f["load"] > QUIET for f in figures)


def _both(value: Callable[[str], Quotient | None], form: str) -> str:
    """A value with cold and with warm tensors."""
    return " / ".join("-" if v is None else f"{v.value:{form}}{'*' if v.busy else ''}" for v in map(value, CACHES))


def _time(f: Figure | None) -> str:
    """Microseconds and their spread."""
    if f is None:
        return "-"
    digits = 0 if f["seconds"] >= 1e-4 else 1
    return f"{f['seconds'] * 1e6:.{digits}f} ± {f['spread'] * 1e6:.{digits}f}{'*' if _busy(f) else ''}"


def _size(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def update_tables(figures: Sequence[Figure]) -> Iterator[tuple[str, str]]:
    """A title and a table for each shape and dtype: one line for each solver, with and without guidance."""
    cases = _updates(figures)
    for group in dict.fromkeys(key[:2] for key in cases):
        lines = []
        for (shape, dtype, solver, guided), case in cases.items():
            if (shape, dtype) != group:
                continue
            ours = {cache: case.get(("run", cache)) for cache in CACHES}
            moved = next((f["bytes"] for f in ours.values() if f and "bytes" in f), None)
            ratios = [_both(lambda cache, o=o, case=case: _ratio(case, o, cache), ".1f") for o in OTHERS]
            share = _both(lambda cache, case=case: _share(case, cache), ".0%")
            size = "-" if moved is None else _size(moved)
            lines.append((solver, "yes" if guided else "", *(_time(ours[cache]) for cache in CACHES), size, share, *ratios))
        headers = ("solver", "guided", "cold, us", "warm, us", "bytes", "share of floor", *(f"{o} / ours" for o in OTHERS))
        yield f"{group[0]}, network in {group[1]}", _table(lines, headers)


def _table(lines: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    return tabulate(lines, headers=headers, tablefmt="pipe", disable_numparse=True)


def image_table(figures: Sequence[Figure]) -> str:
    """End to end: milliseconds per image, and the share of the time that was not the network's."""
    lines = []
    for f in figures:
        if f["kind"] == "images":
            time = f"{f['seconds'] * 1e3 / f['batch']:.3f} ± {f['spread'] * 1e3 / f['batch']:.3f}{'*' if _busy(f) else ''}"
            outside = "-" if "outside" not in f else f"{f['outside']:.2%}"
            per_step = "-" if "outside" not in f else f"{f['outside_seconds'] / f['evals'] * 1e6:.0f}"
            lines.append((f["model"], f["solver"], f["evals"], f["batch"], f["way"], time, outside, per_step))
    headers = ("model", "solver", "evaluations", "batch", "loop", "ms per image", "outside of the network", "us outside per evaluation")
    return _table(lines, headers) if lines else "Not measured."


def noise_table(figures: Sequence[Figure]) -> str:
    """Normals: time, and time over that of torch's own generator."""
    own = {f["shape"]: f["seconds"] for f in figures if f["kind"] == "noise" and f["way"] == "torch.randn"}
    lines = [
        (f["shape"], f["way"], _time(f), f"{f['seconds'] / f['normals'] * 1e9:.2f}", f"{f['seconds'] / own[f['shape']]:.2f}")
        for f in figures
        if f["kind"] == "noise" and f["shape"] in own
    ]
    headers = ("normals", "by", "us", "ns for one", "time over torch.randn's")
    return _table(lines, headers) if lines else "Not measured."


def _summary(values: dict[str, float], least: float, form: str) -> tuple[bool | None, str]:
    """Whether all values reach a bound, and the smallest, the median and how many do."""
    if not values:
        return None, "not measured"
    worst = min(values, key=lambda name: values[name])
    reach = sum(v >= least for v in values.values())
    found = f"median {statistics.median(values.values()):{form}}, least {values[worst]:{form}} ({worst}); {reach} of {len(values)} reach it"
    return reach == len(values), found


def bars(figures: Sequence[Figure]) -> list[Bar]:
    """What the figures are judged by. Those that others disturbed are left out."""
    cases, found = _updates(figures), list[Bar]()

    def over(shape: str, value: Callable[[dict[tuple[str, str], Figure]], Quotient | None]) -> dict[str, float]:
        names = {key: f"{key[2]}{' guided' if key[3] else ''}, {key[1]}" for key in cases if key[0] == shape}
        values = {name: value(cases[key]) for key, name in names.items()}
        return {name: v.value for name, v in values.items() if v is not None and not v.busy}

    for shape, least in (("64x3x32x32", 5.0), ("1x3x32x32", 15.0)):
        for cache in CACHES:
            holds, text = _summary(over(shape, lambda case, cache=cache: _ratio(case, "diffusers", cache)), least, ".1f")
            found.append(Bar(f"diffusers' time over ours on {shape}, {cache}", f">= {least:.0f}", holds, text))
    for cache in CACHES:
        holds, text = _summary(over("256x3x64x64", lambda case, cache=cache: _share(case, cache)), 0.5, ".0%")
        found.append(Bar(f"share of the copy floor on 256x3x64x64, {cache}", ">= 50%", holds, text))
    for f in figures:
        if f["kind"] == "images" and f["model"] == example("model") and f["batch"] == 64 and f["way"] == "lowered" and "outside" in f:
            what = f"time outside of the network, {f['model']}, batch 64, {f['solver']}"
            found.append(Bar(what, "<= 2%", f["outside"] <= 0.02, f"{f['outside']:.2%}"))
    return found


def bar_table(found: Sequence[Bar]) -> str:
    """The bars as a table."""
    words = {True: "yes", False: "no", None: "-"}
    return _table([(b.what, b.wanted, words[b.holds], b.found) for b in found], ("what", "wanted", "all", "found"))


def markdown(machine: dict[str, Any], figures: Sequence[Figure]) -> str:
    """Everything, with what it was measured on."""
    loads = [f["load"] for f in figures]
    busy = sum(map(_busy, figures))
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "numba", "triton", "diffusers") if name in machine)
    cores = f"{machine.get('cores', '?')} cores, {machine.get('threads', '?')} threads of torch"
    lines = [
        f"{machine.get('device', 'unknown processor')}, {cores}, last-level cache {machine.get('cache_bytes', 0) / 2**20:.0f} MiB;"
        f" {machine.get('system', '')}; {versions}; {machine['date']}.",
        f"Other processes used {statistics.mean(loads or [0.0]):.1%} of the machine on average, and more than {QUIET:.0%} during {busy} of"
        f" the {len(loads)} measurements: figures with a star (*) come from one of these, and the bars leave them out.",
        *(f"Not timed: {name} ({reason})." for name, reason in machine.get("problems", {}).items()),
    ]
    steps = sorted({f["steps"] for f in figures if f["kind"] == "update"})
    reading = READING.strip().replace("`steps` steps", f"{steps[0]} steps" if len(steps) == 1 else "several steps")
    parts = ["# Speed", "\n".join(lines), "## Bars", bar_table(bars(figures)), "## Updates", reading]
    parts += [part for title, table in update_tables(figures) for part in (f"### {title}", table)]
    parts += ["## End to end", image_table(figures), "## Normals", noise_table(figures)]
    return "\n\n".join(parts) + "\n"


def main(args: Sequence[str]) -> int:
    def run() -> int:
        if {"-h", "--help"} & set(args):
            print(__doc__)
            return 0
        if len(args) != 1:
            raise UsageError(f"expected one benchmark JSON, got {len(args)} arguments; e.g. python -m bench.speed results/bench/speed.json")
        path = Path(args[0])
        machine, figures = read_figures(path)
        replace_file(path.with_suffix(".md"), markdown(machine, figures).encode())
        print(bar_table(bars(figures)))
        print(f"{len(figures)} figures; tables in {path.with_suffix('.md')}")
        return 0

    return cli.guarded(run, "make the JSON with: make bench")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
