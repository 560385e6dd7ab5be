"""Pictures of students: quality against NFE a panel each, what their training costs, and their curves over guidance. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from bench.reports.guidance import FEWEST, Curve, curves
from bench.reports.plots.style import COLOURS, MARKERS, NFE_TICKS, save
from bench.reports.tables import Row, cells, in_role, number
from bench.reports.verdicts import Score, Verdict, best_solver, floor, naive, quality, verdicts

Cell = Mapping[str, Any]
PALETTE = (*COLOURS[:5], "#D55E00", "#7B3294")  # without grey and black, which are the teacher's
DARK, REFERENCE = "#222222", "#BDBDBD"
COST_NFES = (1, 2, 4)
LABELLED = 12  # so many points of a panel can have a name each; with more, the best of each method has
_PLAIN = FuncFormatter(lambda v, _: f"{v:g}")
_DIRECTIONS = ((1, 0.6), (1, -0.6), (-1, 0.6), (-1, -0.6), (0, 1), (0, -1), (1, 0), (-1, 0))


@dataclass(frozen=True)
class Panel:
    """One axes of a grid of panels, and its place in it."""

    ax: Axes
    bottom: bool
    left: bool


def _decorated(ax: Axes) -> None:
    ax.grid(True, which="major", color="#E2E2E2", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)


def _grid(figure: Figure, count: int, columns: int, size: tuple[float, float], heads: Sequence[float], top: float) -> list[Panel]:
    """Axes of one size in inches; above each row there is `heads[row]` free, and `top` above them all. Sets the figure's size."""
    (width, height), left, gap, below = size, 0.62, 0.22, 0.5
    rows = math.ceil(count / columns)
    total = (left + columns * (width + gap), top + sum(heads[:rows]) + rows * (height + 0.18) + below)
    figure.set_size_inches(*total)
    panels, y = [], total[1] - top
    for row in range(rows):
        y -= heads[row] + height
        for column in range(min(columns, count - row * columns)):
            box = (left + column * (width + gap), y, width, height)
            ax = figure.add_axes((box[0] / total[0], box[1] / total[1], box[2] / total[0], box[3] / total[1]))
            _decorated(ax)
            panels.append(Panel(ax, (row + 1) * columns + column >= count, column == 0))
        y -= 0.18
    return panels


def _ticks(low: float, high: float, crowded: float = 1000) -> list[float]:
    """1, 2, 5 times powers of ten inside of [low, high]; only powers of ten where high / low is `crowded` or more."""
    steps = (1, 2, 5) if high / low < crowded else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [v for e in exponents for s in steps if low <= (v := s * 10.0**e) <= high]


def _log_axis(ax: Axes, which: str, limits: tuple[float, float], ticks: Sequence[float], labels: bool) -> None:
    """A log axis with plain numbers at the ticks."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    (ax.set_xlim if which == "x" else ax.set_ylim)(*limits)
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(_PLAIN if labels else NullFormatter())


def _span(values: Sequence[float], margin: float) -> tuple[float, float]:
    return min(values) / margin, max(values) * margin


def _bars(score: Score) -> tuple[float, float]:
    """The 95% interval below and above the mean, cut where a log axis ends; none without an error."""
    half = score.half_width
    return (0.0, 0.0) if half != half else (min(half, 0.9 * score.mean), half)


def _extent(found: Sequence[Verdict]) -> list[float]:
    """Ends of the intervals; one that reaches far down does not stretch the axis."""
    scores = [(v.score.mean, *_bars(v.score)) for v in found]
    return [end for mean, below, above in scores for end in (max(mean - below, mean / 3), mean + above)]


def _levels(table: Sequence[Cell]) -> dict[str, tuple[float, Any]]:
    """The values of the floor and of the class means and their line styles, by their names; those that there are."""
    metric = quality(table)
    images = "real images" if naive(table, "real_train", metric) else "exact flow"
    levels = [(f"floor ({images})", floor(table, metric), ":"), ("class means", naive(table, "class_means", metric), (0, (1, 3)))]
    return {name: (score.mean, line) for name, score, line in levels if score is not None and score.mean > 0}


def _dotted(ax: Axes, table: Sequence[Cell]) -> list[float]:
    """Draw `_levels`; returns their values."""
    levels = _levels(table).values()
    for value, line in levels:
        ax.axhline(value, linestyle=line, color="#444444", linewidth=1.2, zorder=1)
    return [value for value, _ in levels]


def _heading(figure: Figure, title: str, handles: Sequence[Line2D], columns: int = 6) -> None:
    """Title and legend in the top left corner, so many names a row."""
    width, height = figure.get_size_inches()
    figure.text(0.1 / width, 1 - 0.22 / height, title, fontsize=12, va="center")
    corner = (0.02 / width, 1 - 0.36 / height)
    figure.legend(handles=list(handles), loc="upper left", bbox_to_anchor=corner, ncol=min(columns, len(handles)), frameon=False,
                  fontsize=8.5, handlelength=2.4, columnspacing=1.6)  # fmt: skip


def _key(label: str, **style: Any) -> Line2D:
    return Line2D([], [], label=label, **({"color": "#444444", "linewidth": 1.2} | style))


def _level_keys(table: Sequence[Cell]) -> list[Line2D]:
    return [_key(name, linestyle=line) for name, (_, line) in _levels(table).items()]


Line = tuple[str, str, str]  # variant, loss, sampler


def _short(lines: Sequence[Line]) -> dict[Line, str]:
    """Names of a method's lines by what they differ in; of a single line its loss."""
    told = [i for i in range(3) if len({line[i] for line in lines}) > 1] or [1]
    return {line: " ".join(line[i] for i in told if line[i]) or "default" for line in lines}


def _by_method(found: Sequence[Verdict]) -> dict[str, dict[Line, list[Verdict]]]:
    out: dict[str, dict[Line, list[Verdict]]] = {}
    several = len({v.model for v in found}) > 1
    for v in sorted(found, key=lambda v: v.nfe):
        out.setdefault(f"{v.model}: {v.method}" if several else v.method, {}).setdefault((v.variant, v.loss, v.sampler), []).append(v)
    return dict(sorted(out.items()))


def _envelope(table: Sequence[Cell], least: int, most: int) -> tuple[list[int], list[float]]:
    """NFE from `least` to `most` and the best solver's score there."""
    nfes = sorted({c["nfe"] for c in table if c["method"] == "teacher" and least <= c["nfe"] <= most})
    metric = quality(table)
    best = {n: c for n in nfes if (c := best_solver(table, n, metric))}
    return list(best), [float(c[metric]) for c in best.values()]


def _student_panel(panel: Panel, method: str, lines: Mapping[Line, Sequence[Verdict]], names: Mapping[Line, str]) -> None:
    """A method's lines, set apart sideways so that intervals at one NFE can be told from each other."""
    spread = min(0.045, 0.3 / len(lines))
    for i, (line, points) in enumerate(lines.items()):
        shift = math.exp(spread * (i - (len(lines) - 1) / 2))
        below, above = zip(*(_bars(p.score) for p in points))
        x, y, cycle = [p.nfe * shift for p in points], [p.score.mean for p in points], i // len(PALETTE)
        style: dict[str, Any] = {
            "color": PALETTE[i % len(PALETTE)],
            "marker": MARKERS[(i + cycle) % len(MARKERS)],
            "linestyle": ("-", "--", ":")[cycle % 3],
        }
        panel.ax.errorbar(x, y, (below, above), linewidth=1.5, markersize=4.5, mec="white", mew=0.5, elinewidth=1, capsize=2, zorder=4,
                          label=names[line], **style)  # fmt: skip
    panel.ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncol=_legend_columns(names), frameon=False, fontsize=7, borderaxespad=0,
                    handlelength=1.8, columnspacing=1, labelspacing=0.25)  # fmt: skip
    panel.ax.annotate(method, (0.97, 0.95), xycoords="axes fraction", ha="right", va="top", fontsize=10, weight="bold", zorder=6,
                      bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8})  # fmt: skip


def _legend_columns(names: Mapping[Line, str]) -> int:
    return 2 if max(len(n) for n in names.values()) <= 15 else 1


def _head(names: Mapping[Line, str]) -> float:
    """Inches that a panel's legend takes."""
    return 0.14 + 0.145 * math.ceil(len(names) / _legend_columns(names))


def students_vs_nfe(table: Sequence[Cell], found: Sequence[Verdict]) -> Figure | None:
    """A panel for each method: quality against NFE of its variants, losses and samplers, and the best solver; None without students."""
    methods = _by_method(found)
    if not methods:
        return None
    figure, count = Figure(), len(methods)
    columns = count if count <= 3 else 4 if count > 6 else math.ceil(count / 2)
    size = (5.2, 3.6) if count == 1 else (3.6, 2.8) if count <= 3 else (2.7, 2.15)
    names = {m: _short(list(lines)) for m, lines in methods.items()}
    heads = [max(_head(names[m]) for m in list(methods)[i : i + columns]) for i in range(0, count, columns)]
    panels = _grid(figure, count, columns, size, heads, 0.66)
    least, most = min(v.nfe for v in found), max(v.nfe for v in found)
    envelopes = {model: _envelope([c for c in table if c["model"] == model], least, most) for model in {v.model for v in found}}
    shown = [*(y for _, best in envelopes.values() for y in best), *_extent(found)]
    for panel, (method, lines) in zip(panels, methods.items()):
        levels = _dotted(panel.ax, table)
        best = envelopes[next(iter(lines.values()))[0].model]
        panel.ax.plot(*best, color="black", linewidth=1.3, marker=".", markersize=4, zorder=3)
        if least == most and best[1]:
            panel.ax.axhline(best[1][0], color="black", linewidth=1.3, zorder=3)
        _student_panel(panel, method, lines, names[method])
        limits = _span([*shown, *levels], 1.25)
        _log_axis(panel.ax, "y", limits, _ticks(*limits), panel.left)
        ticks = [t for t in sorted({*NFE_TICKS, least, most} - {5}) if least <= t <= most]
        _log_axis(panel.ax, "x", (least * 0.78, most * 1.28), ticks, panel.bottom)
        panel.ax.set_xlabel("NFE per image" if panel.bottom else "", fontsize=9)
        panel.ax.set_ylabel(quality(table) if panel.left else "", fontsize=9)
    key = _key("best solver at each NFE", color="black", marker=".")
    _heading(figure, "Students against the best solver (mean over training seeds, 95%)", [key, *_level_keys(table)])
    return figure


Points = Sequence[tuple[float, float]]


def _shared(box: np.ndarray, others: np.ndarray) -> float:
    """The area that a box (left, bottom, right, top) has in common with others [N,4]."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return float(np.clip(sides, 0, None).prod(1).sum())


def place_labels(ax: Axes, points: Points, texts: Mapping[int, str], colours: Sequence[str], size: float, lines: Sequence[Points]) -> None:
    """Write each text near its point where it covers least of the points, of the lines, and of the texts before it; a thin line leads
    back from afar. Limits and scales of the axes have to be set before."""
    figure = ax.figure.figure  # type: ignore[union-attr]
    renderer, unit = FigureCanvasAgg(figure).get_renderer(), figure.dpi / 72
    at = np.array([ax.transData.transform(p) for p in points]).reshape(-1, 2)
    inner = [a + (b - a) * k / 12 for line in lines for a, b in pairwise(ax.transData.transform(p) for p in line) for k in range(1, 12)]
    places = np.concatenate([at, np.array(inner).reshape(-1, 2)])
    half = np.where(np.arange(len(places)) < len(at), 3.0, 1.5)[:, None] * unit
    marks, inside = np.hstack([places - half, places + half]), np.array(ax.get_window_extent(renderer).extents)[None]
    taken = np.empty((0, 4))
    for i in sorted(texts, key=lambda i: -at[i, 1]):
        probe = ax.text(0, 0, texts[i], fontsize=size, transform=None)
        wide, high = (1.06 * float(s) for s in probe.get_window_extent(renderer).size)  # hinting differs at the resolution of the file
        probe.remove()
        corner = np.array([wide / 2, high / 2])
        options = []
        for reach, (dx, dy) in product((5, 12, 20, 30, 42), _DIRECTIONS):
            centre = at[i] + [dx * (reach * unit + wide / 2), dy * (reach * unit + high / 2)]
            box = np.hstack([centre - corner, centre + corner])
            cost = 4 * _shared(box, taken) + 2 * _shared(box, marks) + 12 * (wide * high - _shared(box, inside))
            options.append((cost + 0.02 * reach * unit * high, reach, tuple((centre - at[i]) / unit), box))
        _, reach, offset, box = min(options, key=lambda o: o[0])
        taken = np.vstack([taken, box])
        ax.annotate(texts[i], points[i], offset, textcoords="offset points", ha="center", va="center", fontsize=size, color=colours[i],
                    zorder=7, arrowprops={"arrowstyle": "-", "color": colours[i], "linewidth": 0.5} if reach > 12 else None)  # fmt: skip


def _seconds(v: Verdict) -> float | None:
    known = [s for c in v.cells if (s := number(c["train_seconds"])) is not None and s > 0]
    return sum(known) / len(known) if known else None


def _cost_labels(found: Sequence[Verdict]) -> dict[int, str]:
    """By index: every point's name where they are few, of many that of the best of each method."""
    names = {m: _short([(v.variant, v.loss, v.sampler) for v in found if v.method == m]) for m in {v.method for v in found}}
    short = [names[v.method][v.variant, v.loss, v.sampler] if len(names[v.method]) > 1 else "" for v in found]
    best: dict[str, int] = {}
    for i, v in enumerate(found):
        if v.method not in best or v.score.mean < found[best[v.method]].score.mean:
            best[v.method] = i
    named = range(len(found)) if len(found) <= LABELLED else best.values()
    return {i: f"{found[i].method} {short[i]}".strip() for i in named}


def students_cost(table: Sequence[Cell], found: Sequence[Verdict]) -> Figure | None:
    """Quality against training seconds at NFE 1, 2 and 4, and the best solver (of a single model); None where no seconds are known."""
    timed = [(v, s) for v in found if v.nfe in COST_NFES and (s := _seconds(v)) is not None]
    if not timed:
        return None
    nfes = sorted({v.nfe for v, _ in timed})
    figure = Figure()
    panels = _grid(figure, len(nfes), len(nfes), (4.6 if len(nfes) > 1 else 6.5, 3.9), [0.28], 0.66)
    methods = sorted({v.method for v, _ in timed})
    one, metric = len({v.model for v in found}) == 1, quality(table)
    best = {n: float(c[metric]) for n in nfes if one and (c := best_solver(table, n, metric))}
    xs = _span([s for _, s in timed], 1.6)
    ys = [*best.values(), *_extent([v for v, _ in timed])]
    for panel, nfe in zip(panels, nfes):
        ax, here = panel.ax, [(v, s) for v, s in timed if v.nfe == nfe]
        limits = _span([*ys, *_dotted(ax, table)], 1.25)
        _log_axis(ax, "x", xs, _ticks(*xs), True)
        _log_axis(ax, "y", limits, _ticks(*limits), panel.left)
        if nfe in best:
            ax.axhline(best[nfe], color="black", linewidth=1.3, zorder=2)
        texts = _cost_labels([v for v, _ in here])
        colours = [PALETTE[methods.index(v.method) % len(PALETTE)] for v, _ in here]
        for i, (v, s) in enumerate(here):
            below, above = _bars(v.score)
            marker, faint = MARKERS[methods.index(v.method) // len(PALETTE) % len(MARKERS)], 1.0 if i in texts else 0.45
            ax.errorbar([s], [v.score.mean], ([below], [above]), color=colours[i], marker=marker, markersize=6, mec="white", mew=0.5,
                        elinewidth=0.9, capsize=2, alpha=faint, zorder=4)  # fmt: skip
        spans = [((s, v.score.mean - low), (s, v.score.mean + up)) for v, s in here for low, up in [_bars(v.score)]]
        level = [((xs[0], best[nfe]), (xs[1], best[nfe]))] if nfe in best else []
        place_labels(ax, [(s, v.score.mean) for v, s in here], texts, colours, 7.5, [*spans, *level])
        ax.set_title(f"NFE {nfe}", loc="left", fontsize=10, weight="bold")
        ax.set_xlabel("training, s", fontsize=9)
        ax.set_ylabel(f"{metric} (lower is better)" if panel.left else "", fontsize=9)
    line = _key("best solver at this NFE", color="black")
    title = "Quality against training time (mean over training seeds, 95%; of many students the best of each method is named)"
    _heading(figure, title, [line, *_level_keys(table)])
    return figure


def _points(curve: Curve, metric: str) -> list[tuple[float, float, float]]:
    """(1 - adherence, quality, w) of a curve, means over training seeds."""
    pairs = {w: (curve.score(w, in_role("condition")), curve.score(w, metric)) for w in curve.points}
    return [(1 - a.mean, f.mean, w) for w, (a, f) in pairs.items() if a is not None and f is not None]


def _accuracy_axis(ax: Axes, misses: Sequence[float], labels: bool) -> float:
    """An axis of accuracies that is logarithmic in what they lack to 1, rising to the right; returns where 1 itself is drawn."""
    least = min((m for m in misses if m > 0), default=1e-3)
    one, most = least / 2, max(2 * least, *misses)
    ax.set_xscale("log")
    ax.set_xlim(most * 1.4, one / 1.4)
    ax.xaxis.set_major_locator(FixedLocator([*_ticks(2 * least, most, 100), one]))  # their labels are long
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{1 - v:g}" if v > one else "1") if labels else NullFormatter())
    return one


def guidance(table: Sequence[Cell]) -> Figure | None:
    """Quality against adherence to the label over w: a panel for each number of steps, the guided teacher beside the students, and its
    many-step reference; None where nothing has three weights. **Source**: arXiv 2210.03142 (FID against IS)."""
    metric = quality(table)
    found = {c.label + str(c.steps): (c, p) for c in curves(table, metric) if len(p := _points(c, metric)) >= FEWEST}.values()
    students = {c.steps for c, _ in found if c.method != "teacher"}
    longest = max((c.steps for c, _ in found if c.method == "teacher"), default=0)
    far = longest if longest > max(students, default=0) else 0
    steps = sorted(students or {c.steps for c, _ in found} - {far})
    if not steps:
        return None
    figure = Figure()
    columns = min(3, len(steps))
    labels = sorted({c.label for c, _ in found if c.steps in steps}, key=lambda name: (_is_teachers(name), name))
    panels = _grid(figure, len(steps), columns, (3.5, 2.9), [0.26] * len(steps), 0.5 + 0.2 * math.ceil((len(labels) + 1) / (2 * columns)))
    reference = next((p for c, p in found if c.steps == far and c.method == "teacher"), [])
    shown = [p for c, points in found if c.steps in steps for p in points] + reference
    limits = _span([y for _, y, _ in shown], 1.25)
    look = _guidance_styles(labels)
    for panel, n in zip(panels, steps):
        ax = panel.ax
        one = _accuracy_axis(ax, [x for x, _, _ in shown], panel.bottom)
        _log_axis(ax, "y", limits, _ticks(*limits), panel.left)
        known = [max(x, one) for x, _, _ in reference], [y for _, y, _ in reference]
        ax.plot(*known, color=REFERENCE, linewidth=6, solid_capstyle="round", zorder=1)
        points, texts, colours, drawn = [], {}, [], []
        for curve, own in ((c, p) for c, p in found if c.steps == n):
            x, y, weights = zip(*((max(miss, one), score, w) for miss, score, w in own))
            ax.plot(x, y, markersize=4.5, linewidth=1.5, mec="white", mew=0.4, zorder=3, **look[curve.label])
            texts |= {len(points) + i: f"{w:g}" for i, w in enumerate(weights)}
            points += zip(x, y)
            drawn.append(list(zip(x, y)))
            colours += [look[curve.label]["color"]] * len(own)
        place_labels(ax, points, texts, colours, 6.5, drawn)
        ax.set_title(f"{n} step{'s' * (n > 1)}", loc="left", fontsize=10, weight="bold")
        ax.set_xlabel(in_role("condition") if panel.bottom else "", fontsize=9)
        ax.set_ylabel(metric if panel.left else "", fontsize=9)
    keys = [_key(name, **look[name]) for name in labels]
    keys += [_key(f"teacher, {far} steps", color=REFERENCE, linewidth=6)] if reference else []
    title = "Guidance: quality against accuracy (numbers: w; two passes a step above w = 0, but for students that read w)"
    _heading(figure, title, keys, 2 * columns)
    return figure


def _is_teachers(label: str) -> bool:
    return label.partition(",")[0].rpartition(" ")[2] == "teacher"


def _guidance_styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Students in colours, the teacher's solvers black and dashed."""
    out: dict[str, dict[str, Any]] = {}
    for label in labels:
        i = len([n for n in out if _is_teachers(n) == _is_teachers(label)])
        if _is_teachers(label):
            out[label] = {"color": DARK, "linestyle": ("--", ":", "-.")[i % 3], "marker": ("o", "s", "^")[i % 3]}
        else:
            out[label] = {"color": PALETTE[i % len(PALETTE)], "linestyle": "-", "marker": MARKERS[i % len(MARKERS)]}
    return out


def write_student_pictures(rows: Sequence[Row], folder: Path) -> None:
    """students_vs_nfe.png, students_cost.png and guidance.png, as far as the rows have something to show in them."""
    table = cells(rows)
    found = [v for v in verdicts(rows) if v.group.metric == quality(table)]
    figures = {"students_vs_nfe": students_vs_nfe(table, found), "students_cost": students_cost(table, found), "guidance": guidance(table)}
    for name, figure in figures.items():
        if figure is not None:
            save(figure, folder / f"{name}.png")
