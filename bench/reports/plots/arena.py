"""Pictures of the arenas: error against NFE beside the slopes of orders 1, 2 and 3, a panel per solver family. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from bench.reports.plots.style import COLOURS, MARKERS, NAMED, save
from bench.reports.tables import Row, in_role, number, shown, solver_name, student_name
from metrics import metric_named


@dataclass(frozen=True)
class Picture:
    """How a metric is drawn: with the slopes of orders or not; `floor` is the entry of the protocol that no solver goes below."""

    title: str
    slopes: bool
    floor: str
    floor_name: str
    legend: Literal["lower left", "upper right"]  # the corner that the lines leave free
    note: str = ""


PICTURES: Mapping[str, Picture] = {  # by the role of the metric
    "flow": Picture(
        "Distance to the exact flow",
        True,
        "reference_error",
        "the reference's own error",
        "lower left",
        "; stochastic samplers leave the flow by design",
    ),
    "moments": Picture("Distance to the exact moments", False, "fine_grid", "the exact flow from the same noise", "upper right"),
}
FAMILIES: Sequence[tuple[str, tuple[str, ...]]] = tuple((rule["title"], tuple(rule["words"])) for rule in NAMED["families"])
ORDERS = (1, 2, 3)
PER_PANEL = len(COLOURS)
TICKS = (1, 2, 3, 5, 10, 20, 50)
Line = list[tuple[int, float]]


def family(name: str) -> str:
    """The family that a solver's or student's name belongs to; `others` for names that no rule knows."""
    if " " in name:
        return "students"
    return next((title for title, words in FAMILIES if any(word in name for word in words)), "others")


def lines_of(rows: Sequence[Row], metric: str, grid: str) -> dict[str, Line]:
    """(NFE, value) by name on one grid family, without guidance; of several ends, AFS or wrappers the plainest that the NFE has, of
    several training seeds the mean."""
    kept: dict[tuple[str, int], tuple[tuple[Any, ...], dict[int, float]]] = {}
    for row in rows:
        value = number(row["value"])
        plain = row["metric"] == metric and row["grid"] == grid and row["guidance"] == 1 and row["method"] != "naive"
        if not plain or row["status"] != "ok" or value is None or value <= 0:
            continue
        name = solver_name(row) if row["method"] == "teacher" else f"{row['method']} {student_name({'variant': '', **row, 'method': ''})}"
        rank = (row["end"] != "sigma_min", row["afs"], bool(row.get("wrap")), row["seed"])
        place, known = (name, row["nfe"]), kept.get((name, row["nfe"]), (rank, {}))
        if rank <= known[0]:
            kept[place] = (rank, {**(known[1] if rank == known[0] else {}), row.get("fit_seed", 0): value})
    lines: dict[str, Line] = {}
    for (name, nfe), (_, seeds) in sorted(kept.items()):
        lines.setdefault(name, []).append((nfe, sum(seeds.values()) / len(seeds)))
    return lines


def panels(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Families in the order of `FAMILIES` read backwards (plain solvers first), none with more lines than there are colours."""
    order = [*(title for title, _ in reversed(FAMILIES)), "others", "students"]
    out = []
    for title in order:
        mine = sorted(n for n in names if family(n) == title)
        count = -(-len(mine) // PER_PANEL)
        parts = [mine[i * len(mine) // count : (i + 1) * len(mine) // count] for i in range(count)]
        out += [(title if len(parts) == 1 else f"{title} ({i}/{len(parts)})", part) for i, part in enumerate(parts, 1)]
    return out


def floor_of(rows: Sequence[Row], metric: str) -> float | None:
    """The reference's own value, from the rows' protocols: what a perfect solver of the same noise would score."""
    field = PICTURES[shown(metric).role].floor
    found = (number((r.get("protocol") or {}).get(field)) for r in rows if r["metric"] == metric and r["status"] == "ok")
    known = [v for v in found if v is not None and v > 0]
    return max(known) if known else None


def _limits(lines: Mapping[str, Line], floor: float | None) -> tuple[float, float]:
    """From a little below the least value or the floor near it, to ten times the median at the fewest passes: diverging lines leave."""
    values = [v for line in lines.values() for _, v in line]
    fewest = min(n for line in lines.values() for n, _ in line)
    top = 10 * median([v for line in lines.values() for n, v in line if n == fewest])
    bottom = min(values)
    if floor is not None and bottom / 30 < floor < top:
        bottom = min(bottom, floor)
    return bottom / 2, max(top, 10 * bottom)


def _slopes(ax: Axes, lines: Mapping[str, Line], floor: float | None) -> None:
    """Orders 1, 2 and 3 through the median of all lines near NFE 5, named where they meet the axes' or the reference's end."""
    start = min({n for line in lines.values() for n, _ in line}, key=lambda n: abs(n - 5))
    height = median([v for line in lines.values() for n, v in line if n == start])
    right, (bottom, top) = ax.get_xlim()[1] / 1.12, ax.get_ylim()
    lowest = min(max(1.6 * bottom, 1.15 * (floor or 0)), 0.9 * height)
    for order in ORDERS:
        last = min(right, start * (height / lowest) ** (1 / order))
        ax.plot([start, last], [height, height * (last / start) ** (-order)], color="#999999", linestyle=":", linewidth=1)
        where = (last, height * (last / start) ** (-order))
        ax.annotate(str(order), where, (3, 0), textcoords="offset points", fontsize=7.5, color="#777777", va="center")
    ax.set_ylim(bottom, top)


def _panel(ax: Axes, title: str, names: Sequence[str], lines: Mapping[str, Line], metric: str, floor: float | None) -> None:
    for name, line in lines.items():
        if name not in names:
            ax.plot(*zip(*line), color="#E4E4E4", linewidth=0.8, zorder=1)
    if PICTURES[shown(metric).role].slopes:
        _slopes(ax, lines, floor)
    bottom, top = ax.get_ylim()
    if floor is not None and bottom < floor < top:
        ax.axhline(floor, color="#444444", linestyle="--", linewidth=1, zorder=2)
    for i, name in enumerate(names):  # thinner and smaller from line to line: equal solvers are seen on top of each other
        slim = {"linewidth": 2.8 - 0.3 * i, "markersize": 6.4 - 0.5 * i, "mec": "white", "mew": 0.3}
        ax.plot(*zip(*lines[name]), color=COLOURS[i], marker=MARKERS[i], label=name, **slim)
    ax.set_title(title, loc="left", fontsize=9.5)
    ax.legend(
        loc=PICTURES[shown(metric).role].legend,
        fontsize=7,
        frameon=True,
        framealpha=0.85,
        edgecolor="none",
        borderpad=0.3,
        labelspacing=0.25,
        handlelength=1.8,
    )


def _axes(figure: Figure, place: tuple[float, float, float, float], limits: tuple[float, float], most: int) -> Axes:
    ax = figure.add_axes(place)
    ax.set(xscale="log", yscale="log", xlim=(0.88, most * 1.25), ylim=limits)
    ax.xaxis.set_major_locator(FixedLocator([t for t in TICKS if t <= most]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.yaxis.set_major_locator(LogLocator(numticks=8))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}" if 1e-3 < v < 1e4 else f"{v:.0e}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(True, which="major", color="#EEEEEE", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    return ax


def error_vs_nfe(rows: Sequence[Row], metric: str, grid: str) -> Figure | None:
    """A metric against NFE on one grid family: a panel per solver family, the other solvers in grey, one scale for all; None without rows.

    Dotted: slopes of orders 1, 2 and 3 (not for distances to moments, which end at a sampling floor). Dashed: the reference's own value.
    """
    lines = lines_of(rows, metric, grid)
    if not lines:
        return None
    look = PICTURES[shown(metric).role]
    parts, floor = panels(list(lines)), floor_of(rows, metric)
    columns = min(3, len(parts))
    deep = -(-len(parts) // columns)
    wide, tall, left, head, foot, gap = 3.3, 2.75, 0.75, 0.75, 0.5, 0.5  # inches
    width, height = left + columns * (wide + gap), head + deep * (tall + gap) + foot - gap
    figure = Figure(figsize=(width, height))
    limits, most = _limits(lines, floor), max(n for line in lines.values() for n, _ in line)
    for i, (title, names) in enumerate(parts):
        across, down = i % columns, i // columns
        corner = ((left + across * (wide + gap)) / width, (height - head - tall - down * (tall + gap)) / height)
        ax = _axes(figure, (*corner, wide / width, tall / height), limits, most)
        _panel(ax, title, names, lines, metric, floor)
        if across == 0:
            ax.set_ylabel(f"{metric} ({metric_named(metric).unit})", fontsize=8.5)
        if i + columns >= len(parts):
            ax.set_xlabel("NFE per image", fontsize=8.5)
    below = " (below the axis)" if floor is not None and floor <= limits[0] else " (dashed)"
    own = "" if floor is None else f"; {look.floor_name}: {floor:.2g}{below}"
    figure.text(0.12 / width, (height - 0.24) / height, f"{look.title}: {grid} grid", fontsize=12)
    dotted = "dotted: orders 1, 2, 3" if look.slopes else "log axes"
    note = f"{dotted}{own}; grey: the solvers of the other panels{look.note}"
    figure.text(0.12 / width, (height - 0.44) / height, note, fontsize=8.5, color="#444444")
    return figure


def write_arena_pictures(rows: Sequence[Row], folder: Path) -> None:
    """<metric>_<grid>.png for every arena metric and every grid family that has rows of it."""
    for metric in filter(None, map(in_role, PICTURES)):
        for grid in sorted({str(r["grid"]) for r in rows if r["metric"] == metric and r["grid"]}):
            figure = error_vs_nfe(rows, metric, grid)
            if figure is not None:
                save(figure, folder / f"{metric}_{grid}.png")
