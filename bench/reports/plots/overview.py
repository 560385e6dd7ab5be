"""Pictures from rows: quality against NFE and latency, and sample grids from the store. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from safetensors import SafetensorError

from bench.reports.plots.style import COLOURS, MARKERS, NAMED, NFE_TICKS, save
from bench.reports.tables import Row, cells, number, shown, sign, student_name
from bench.reports.verdicts import best_solver, over_seeds, quality
from bench.space.keeping import displayed
from bench.store.measures import TIMINGS

Cell = Mapping[str, Any]
_KNOWN = tuple(NAMED["first"])
UNLABELLED = 10  # images that stand for a model without classes
LATENCY = "quality_vs_latency.png"
MANY = 9  # with more solvers only the known ones are drawn, and the best of all
_STUDENTS: Mapping[str, str] = NAMED["colours"]
_LABELS: Mapping[str, str] = NAMED["labels"]
_FLOORS = (
    ("class_means", "class means", "--", "#444444", "bottom"),
    ("real_train", "floor (real images)", ":", "#444444", "top"),
)


@dataclass(frozen=True)
class Style:
    """How one method is drawn: students thick with filled stars or crosses, solvers thin."""

    colour: str
    marker: str
    line: str
    width: float
    size: float


def _name(cell: Cell) -> str:
    if cell["method"] == "teacher":
        return _LABELS.get(cell["solver"], str(cell["solver"]))
    return student_name(cell)


def styles(table: Iterable[Cell]) -> dict[str, Style]:
    """A style for every line's name: solvers first, then the students; a student's losses share its colour."""
    shown = [c for c in table if c["method"] != "naive"]
    solvers = sorted({c["solver"] for c in shown if c["method"] == "teacher"})
    order = [*_KNOWN, *(s for s in solvers if s not in _KNOWN)]
    out = {}
    for solver in sorted(solvers, key=order.index):
        i = order.index(solver)
        out[_LABELS.get(solver, solver)] = Style(COLOURS[i % 7], MARKERS[i % 7], "-" if i < 7 else "-.", 1.3, 5)
    spare = [c for c in COLOURS if c not in ("#000000", "#7F7F7F")]
    methods = sorted({c["method"] for c in shown} - {"teacher"})
    others = [m for m in methods if m not in _STUDENTS]
    marks = ("*", "p", "h", "P", "X", "8")
    for method in methods:
        colour = _STUDENTS.get(method) or spare[others.index(method) % len(spare)]
        turn = 0 if method in _STUDENTS else others.index(method) // len(spare)  # methods of one colour differ in their marks
        for i, name in enumerate(sorted({_name(c) for c in shown if c["method"] == method})):
            out[name] = Style(colour, marks[(i % 3 + turn) % 6], ("-", "--", ":")[i % 3], 2.4, 11 if (i % 3 + turn) % 6 == 0 else 8)
    return out


def _measured(table: Iterable[Cell], metric: str) -> list[Cell]:
    """Cells without guidance whose metric is positive, the naive rows apart."""
    return [c for c in table if c["method"] != "naive" and c["guidance"] == 1 and (number(c[metric]) or 0) > 0]


def _best_by_nfe(table: Sequence[Cell], metric: str) -> dict[str, list[Cell]]:
    """For each line's name, its best cell (over grids, ends, AFS and samplers; the mean of training seeds) at every NFE, by NFE."""
    least: dict[tuple[str, int], Cell] = {}
    direction = sign(metric)
    for cell in over_seeds(table, metric):
        place = (_name(cell), cell["nfe"])
        if place not in least or direction * cell[metric] < direction * least[place][metric]:
            least[place] = cell
    lines: dict[str, list[Cell]] = {}
    for name, nfe in sorted(least):
        lines.setdefault(name, []).append(least[name, nfe])
    return lines


def _frame(figure: Figure, title: str, x: str, metric: str) -> Axes:
    ax = figure.add_axes((0.07, 0.105, 0.745, 0.82))
    ax.set(xscale="log", yscale="log", xlabel=x, ylabel=f"{metric} ({'lower' if sign(metric) > 0 else 'higher'} is better)")
    ax.set_title(title, loc="left", fontsize=12)
    ax.grid(True, which="major", color="#DDDDDD", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _plain_ticks(ax: Axes) -> None:
    """1, 2, 5, 10 ... written out, instead of powers of ten."""
    plain = FuncFormatter(lambda v, _: f"{v:g}")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(plain)
    ax.yaxis.set_minor_formatter(NullFormatter())


def _floors(ax: Axes, table: Iterable[Cell], metric: str) -> None:
    naive = {c["solver"]: number(c[metric]) for c in table if c["method"] == "naive"}
    for solver, label, line, colour, side in _FLOORS:
        value = naive.get(solver)
        if value is not None and value > 0:
            ax.axhline(value, linestyle=line, color=colour, linewidth=1.2, zorder=1)
            ax.annotate(f"{label}: {value:.3g}", (1, value), (-3, 3 if side == "bottom" else -3), xycoords=("axes fraction", "data"),
                        textcoords="offset points", ha="right", va=side, fontsize=8.5, color=colour)  # fmt: skip


def _legend(ax: Axes) -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper left", bbox_to_anchor=(1.015, 1.0), frameon=False, fontsize=9.5, borderaxespad=0, handlelength=2.6)
    else:
        ax.text(0.5, 0.5, "no rows yet", transform=ax.transAxes, ha="center", va="center", color="#888888")


def _drawn(lines: Mapping[str, Sequence[Cell]], metric: str) -> set[str]:
    """The names that a picture has room for: of more than `MANY` solvers the known ones, of more students each method's best."""
    solvers = {name for name, line in lines.items() if line[0]["method"] == "teacher"}
    students = lines.keys() - solvers
    if len(students) > MANY:
        best: dict[str, tuple[float, str]] = {}
        for name in students:
            method, value = str(lines[name][0]["method"]), min(c[metric] for c in lines[name])
            best[method] = min(best.get(method, (value, name)), (value, name))
        students = {name for _, name in best.values()}
    return students | (solvers & {_LABELS.get(s, s) for s in _KNOWN} if len(solvers) > MANY else solvers)


def quality_vs_nfe(table: Sequence[Cell]) -> Figure:
    """Quality against NFE: one line per solver and per student's variant and loss, its best grid, end and AFS at each NFE, without
    guidance. Of many solvers only the known ones are drawn, and the best of all; of many students the best of each method."""
    figure = Figure(figsize=(10, 5.4))
    metric = quality(table)
    ax = _frame(figure, "Quality against network passes (best grid, end and AFS; no guidance)", "NFE per image", metric)
    look, lines = styles(table), _best_by_nfe(_measured(table, metric), metric)
    shown = _drawn(lines, metric)
    if any(line[0]["method"] == "teacher" for name, line in lines.items() if name not in shown):
        best = [c for n in sorted({c["nfe"] for line in lines.values() for c in line}) if (c := best_solver(table, n, metric))]
        ax.plot([c["nfe"] for c in best], [c[metric] for c in best], color="#000000", linewidth=5, alpha=0.18, solid_capstyle="round",
                label="best of all solvers", zorder=1)  # fmt: skip
    for name in (n for n in look if n in shown):
        s, line = look[name], lines[name]
        x, y = [c["nfe"] for c in line], np.array([c[metric] for c in line])
        se = np.array([math.nan if (e := number(c[f"{metric}_se"])) is None else e for c in line])
        below = np.minimum(se, 0.9 * y)  # a log axis has no room for an interval that reaches 0
        ax.errorbar(x, y, np.stack([below, se]), label=name, color=s.colour, marker=s.marker, linestyle=s.line, linewidth=s.width,
                    markersize=s.size, mec="white", mew=0.6, elinewidth=1, capsize=2.5, zorder=1 + s.width)  # fmt: skip
    _floors(ax, table, metric)
    ticks = sorted({*NFE_TICKS, *(c["nfe"] for line in lines.values() for c in line if c["nfe"] > NFE_TICKS[-1])})
    ax.set_xlim(0.85, ticks[-1] * 1.18)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    _plain_ticks(ax)
    _legend(ax)
    return figure


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point beats in both coordinates, from left to right."""
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not front or points[i][1] < points[front[-1]][1]:
            front.append(i)
    return front


def _points(ax: Axes, name: str, s: Style, mine: list[int], points: Sequence[tuple[float, float]], front: list[int]) -> None:
    """A method's cells, those on the Pareto front with a dark edge and in full colour, the others fainter."""
    for on_front, edge, alpha, level in ((False, 0.0, 0.55, 2), (True, 1.1, 1.0, 6)):
        chosen = [points[i] for i in mine if (i in front) == on_front]
        x, y = zip(*chosen) if chosen else ((), ())
        ax.plot(x, y, color=s.colour, marker=s.marker, linestyle="none", markersize=s.size + 1, mec="#222222", mew=edge, alpha=alpha,
                zorder=level)  # fmt: skip
    if mine:  # the legend's own mark, in full colour
        ax.plot([], [], color=s.colour, marker=s.marker, linestyle="none", markersize=s.size + 1, mew=0, label=name)


def quality_vs_latency(table: Sequence[Cell]) -> Figure:
    """Quality against the median latency per image, every grid, end and AFS without guidance; the Pareto front is marked."""
    figure = Figure(figsize=(10, 5.4))
    metric = quality(table)
    found = _measured(table, metric)
    by_64 = any(number(c["latency_ms_p50_b64"]) for c in found)
    axis, batch = ("latency_ms_p50_b64", 64) if by_64 else ("latency_ms_p50_b1", 1)
    found = [c for c in found if (number(c[axis]) or 0) > 0]
    title = "Quality against time (no guidance; numbers: NFE on the Pareto front)"
    ax = _frame(figure, title, f"median latency per image at batch {batch} (ms)", metric)
    points = [(float(c[axis]), float(c[metric])) for c in found]
    front = pareto(points)
    look = styles(table)
    for name in look:
        _points(ax, name, look[name], [i for i, c in enumerate(found) if _name(c) == name], points, front)
    if front:
        x, y = zip(*(points[i] for i in front))
        ax.plot(x, y, drawstyle="steps-post", color="#444444", linewidth=1, zorder=1, label="Pareto front")
        lowest = {found[i]["nfe"]: points[i] for i in front}  # the last point of each NFE on the front carries the number
        for nfe, point in lowest.items():
            ax.annotate(str(nfe), point, (0, -8), textcoords="offset points", fontsize=9, ha="center", va="top", color="#222222")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    _floors(ax, table, metric)
    _plain_ticks(ax)
    _legend(ax)
    return figure


def read_samples(store: Path, artifact: str) -> dict[int, np.ndarray] | None:
    """The first image of each class [C,H,W] of a sample artefact (without classes the first ten), or None where it is not in the store.

    Where samples were not kept, the 8-bit images that were stand for them. Sample c + classes * k has class c and the same seed in every
    cell, so first images of two cells share their noise.
    """
    found = displayed(store, artifact)
    if found is None:
        return None
    rows = found.labels if found.labels.any() else np.arange(min(len(found.labels), UNLABELLED))
    classes, first = np.unique(rows, return_index=True)
    try:
        images = found.images[first]
    except (OSError, SafetensorError, ValueError):  # being replaced: the next report draws it
        return None
    return {int(c): image for c, image in zip(classes, images)}


def _tile(ax: Axes, image: np.ndarray | None) -> None:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if image is not None:
        shown = np.clip((np.moveaxis(image, 0, -1) + 1) / 2, 0, 1)
        ax.imshow(shown[..., 0] if shown.shape[-1] == 1 else shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        ax.imshow(np.ones((1, 1)), cmap="gray", vmin=0, vmax=1)


def samples(method: str, table: Sequence[Cell], store: Path) -> Figure | None:
    """Rows: classes, or samples without; columns: NFE (the method's best cell there, without guidance); the same noise along each row."""
    least: dict[int, Cell] = {}
    metric = quality(table)
    for cell in _measured((c for c in table if c["method"] == method and c["artifact"]), metric):
        if cell["nfe"] not in least or cell[metric] < least[cell["nfe"]][metric]:
            least[cell["nfe"]] = cell
    columns = [(cell, images) for _, cell in sorted(least.items()) if (images := read_samples(store, cell["artifact"]))]
    if not columns:
        return None
    classes = sorted(set().union(*(images for _, images in columns)))
    side, left, top, bottom = 0.7, 0.62, 1.06, 0.12  # inches
    width, height = max(left + side * len(columns) + 0.12, 3.0), top + side * len(classes) + bottom
    figure = Figure(figsize=(width, height))
    pitch, tile = side, side * 0.94
    for j, (cell, images) in enumerate(columns):
        for i, label in enumerate(classes):
            y = height - top - (i + 1) * pitch
            ax = figure.add_axes(((left + j * pitch) / width, y / height, tile / width, tile / height))
            _tile(ax, images.get(label))
            if j == 0:
                ax.set_ylabel(str(label), rotation=0, labelpad=10, va="center", fontsize=10)
        x = (left + j * pitch + tile / 2) / width
        what = cell["solver"] if method == "teacher" else student_name({**cell, "method": ""})
        figure.text(x, (height - top + 0.3) / height, str(cell["nfe"]), ha="center", fontsize=10.5, weight="bold")
        figure.text(x, (height - top + 0.17) / height, what, ha="center", fontsize=6)
        figure.text(
            x, (height - top + 0.05) / height, f"{metric.partition('_')[0]} {cell[metric]:.3g}", ha="center", fontsize=6.5, color="#444444"
        )
    figure.text(0.1 / width, (height - top + 0.3) / height, "NFE", fontsize=10.5, weight="bold")
    figure.text(0.1 / width, (height - 0.25) / height, f"{method}: samples", fontsize=11)
    figure.text(0.1 / width, (height - 0.44) / height, "the same noise along each row; no guidance", fontsize=8, color="#444444")
    return figure


def write_pictures(rows: Sequence[Row], folder: Path, store: Path) -> None:
    """quality_vs_nfe.png, where there are latencies quality_vs_latency.png, and a samples_<method>.png for every method with samples in
    the store.

    Of several models each has its own, in a folder of its name. Rows of which none measures images (an arena's) have none.
    """
    models = sorted({row["model"] for row in rows}) or [""]
    for model in models:
        own = [row for row in rows if row["model"] == model]
        if not own or any(shown(row["metric"]).judges and shown(row["metric"]).role != "moments" for row in own):
            _write_pictures(cells(own), folder / model if models[1:] else folder, store)


def _write_pictures(table: Sequence[Cell], folder: Path, store: Path) -> None:
    save(quality_vs_nfe(table), folder / "quality_vs_nfe.png")
    if table and not any(number(c[axis]) for c in table for axis in TIMINGS if axis in c):
        (folder / LATENCY).unlink(missing_ok=True)  # of a run that had some
    else:
        save(quality_vs_latency(table), folder / LATENCY)
    for method in sorted({c["method"] for c in table} - {"naive"}):
        figure = samples(method, table, store)
        if figure is not None:
            save(figure, folder / f"samples_{method}.png")
