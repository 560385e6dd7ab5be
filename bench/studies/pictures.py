"""The pictures and files of the study of trajectories. Needs no torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from bench.reports.plots.style import COLOURS, MARKERS, save
from bench.reports.tables import replace_file
from bench.studies.writing import Change, Curves, by_distance, heat, long_table, neighbours_text, trajectories_text

FLOOR = 1e-4  # per cent: below it shares are not drawn
FEW = 24  # samples that are drawn one by one
SHOWN = 6  # dimensions beside the line that are drawn
BETTER, WORSE = "#0072B2", "#D55E00"


def _styled(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title, loc="left", fontsize=12)
    ax.set(xlabel=x, ylabel=y)
    ax.grid(True, which="major", color="#DDDDDD", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _falling(ax: Axes) -> None:
    """A logarithmic x axis that falls to the right, as a trajectory goes, with plain numbers."""
    ax.set_xscale("log")
    ax.invert_xaxis()
    ax.xaxis.set_major_locator(LogLocator(base=10))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _curves(ax: Axes, x: np.ndarray, y: np.ndarray, colour: str, label: str) -> None:
    """Some samples thin, the mean thick."""
    for one in range(min(FEW, len(x))):
        ax.plot(x[one], y[one], color=colour, linewidth=0.6, alpha=0.3, zorder=2)
    ax.plot(x.mean(0), y.mean(0), color=colour, linewidth=2.4, label=label, zorder=4)


def _plane(ax: Axes, curves: Sequence[Curves]) -> None:
    _styled(ax, "In the plane of its line and its leading direction", "distance left along the line (RMS, data units)",
            "deviation along direction 1 (RMS, data units)")  # fmt: skip
    for c, colour in zip(curves, COLOURS):
        inner = slice(0, -1)  # the end itself has no place on a logarithmic axis
        left = np.where(c.ahead > 0, c.ahead, np.nan)
        _curves(ax, left[:, inner], c.plane[:, inner, 0], colour, c.named)
    _falling(ax)
    ax.set_xlim(right=curves[0].sigmas[-1])
    ax.legend(frameon=False, fontsize=9.5, title=f"{FEW} samples each; thick: mean", title_fontsize=8.5)


def _space(ax: Axes, curves: Sequence[Curves]) -> None:
    _styled(ax, "Along the line: the two leading directions", "deviation along direction 1 (RMS, data units)",
            "deviation along direction 2 (RMS, data units)")  # fmt: skip
    for c, colour in zip(curves, COLOURS):
        if c.plane.shape[2] > 1:
            _curves(ax, c.plane[:, :, 0], c.plane[:, :, 1], colour, c.named)
    ax.plot(0, 0, "o", color="#222222", markersize=5, zorder=5)
    ax.annotate("both ends", (0, 0), (7, 0), textcoords="offset points", va="center", fontsize=8.5, color="#222222", zorder=6,
                bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1})  # fmt: skip


def _away(ax: Axes, curves: Sequence[Curves]) -> None:
    _styled(ax, "Deviation from the straight line", "noise level sigma (data units)", "deviation (RMS, data units)")
    for c, colour in zip(curves, COLOURS):
        middle, around = c.away.mean(0), c.away.std(0, ddof=1)
        ax.fill_between(c.sigmas, middle - around, middle + around, color=colour, alpha=0.18, linewidth=0)
        ax.plot(c.sigmas, middle, color=colour, linewidth=2, label=f"{c.named}: mean ± sd")
    _falling(ax)
    ax.legend(frameon=False, fontsize=9.5)


def _outside(ax: Axes, curves: Sequence[Curves]) -> None:
    _styled(ax, "What is left outside k dimensions beside the line", "k", "share of squared deviation (%)")
    for i, c in enumerate(c for c in curves if np.isfinite(c.shares).any()):
        left = 100 * c.outside[:, : SHOWN + 1]
        k = np.arange(left.shape[1])
        low, middle, high = np.nanquantile(left, 0.05, 0), np.nanmean(left, 0), np.nanquantile(left, 0.95, 0)
        ax.fill_between(k, np.maximum(low, FLOOR), np.maximum(high, FLOOR), color=COLOURS[i], alpha=0.15, linewidth=0)
        ax.plot(k, np.maximum(middle, FLOOR / 10), color=COLOURS[i], marker=MARKERS[i], markersize=5, label=f"{c.named}: mean, 5 to 95 %")
    ax.set_yscale("log")
    ax.set_ylim(bottom=FLOOR)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=9.5)
    else:
        ax.text(0.5, 0.5, "all trajectories are straight", transform=ax.transAxes, ha="center", va="center", color="#888888")


def trajectories(curves: Sequence[Curves], model: str) -> Figure:
    """Four panels: curves in the plane and across the line, deviation against sigma, and shares beyond k dimensions."""
    figure = Figure(figsize=(12.5, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    for ax, draw in zip(axes.flat, (_plane, _space, _away, _outside)):
        draw(ax, curves)
    steps, count = len(curves[0].sigmas) - 1, len(curves[0].length)
    figure.suptitle(f"Trajectories of {model} ({count} samples, {steps} steps), each in a frame of its own", x=0.01, ha="left", fontsize=13)
    return figure


def _heat(ax: Axes, table: np.ndarray, levels: Sequence[float]) -> None:
    shades = LinearSegmentedColormap.from_list("change", [BETTER, "#FFFFFF", WORSE])
    bound = float(min(100.0, np.abs(table).max()) or 1.0)
    image = ax.imshow(table, cmap=shades, vmin=-bound, vmax=bound)
    for n, line in enumerate(table):
        for m, value in enumerate(line):
            strong = abs(value) > 0.65 * bound
            ax.text(m, n, f"{value:+.0f}" if abs(value) >= 10 else f"{value:+.1f}", ha="center", va="center", fontsize=9,
                    color="white" if strong else "#222222", weight="bold" if m == n else "normal")  # fmt: skip
    names = [f"{high:.3g} to {low:.2g}" for high, low in itertools.pairwise(levels)]
    ax.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=9)
    ax.set_yticks(range(len(names)), names, fontsize=9)
    ax.set(xlabel="loss measured on interval m (sigma, data units)", ylabel="fine-tuned on interval n (sigma, data units)")
    ax.set_title("Change of the distillation loss on held-out noise (%)", loc="left", fontsize=12)
    ax.spines[:].set_visible(False)
    beyond = "max" if table.max() > bound else "neither"
    ax.figure.colorbar(image, ax=ax, shrink=0.8, extend=beyond, label="relative change (%), blue: better")


def _distance(ax: Axes, changes: Sequence[Change]) -> None:
    _styled(ax, "By distance from the interval trained on", "m - n (left: higher noise levels)", "relative change of the loss (%)")
    near = by_distance(changes)
    for k, values in near.items():
        ax.plot([k] * len(values), 100 * values, "o", color=COLOURS[5], markersize=4, alpha=0.5, mew=0, zorder=2)
    middle = [100 * float(np.median(v)) for v in near.values()]
    ax.plot(list(near), middle, color=BETTER, marker="o", markersize=6, linewidth=2, zorder=4, label="median")
    ax.plot([], [], "o", color=COLOURS[5], markersize=4, label="one training")
    ax.axhline(0, color="#444444", linewidth=1, zorder=1)
    ax.set_yscale("symlog", linthresh=10)
    ax.yaxis.set_major_locator(FixedLocator([0, *(sign * v for v in (3, 10, 30, 100, 300, 1000) for sign in (-1, 1))]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:+g}" if v else "0"))
    ax.set_ylim(-100, max(30.0, 130 * max(float(v.max()) for v in near.values())))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, fontsize=9.5)


def neighbours(changes: Sequence[Change], levels: Sequence[float]) -> Figure:
    """The mean relative change for every pair of intervals, and by their distance."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _heat(left, 100 * heat(changes).mean(0), levels)
    _distance(right, changes)
    return figure


def write_study(
    folder: Path,
    facts: Mapping[str, Any],
    trained: Mapping[str, Any],
    curves: Sequence[Curves],
    changes: Sequence[Change],
    levels: Sequence[float],
) -> None:
    """study.csv, study.md, trajectories.png, and neighbours.png where copies were trained (one of another run is removed)."""
    text = f"# Study: {facts['model']}\n\n{trajectories_text(facts, curves)}"
    if changes:
        text += "\n" + neighbours_text(trained, changes, levels)
        save(neighbours(changes, levels), folder / "neighbours.png")
    else:
        text += f"\nFine-tuning was left out: the closed form `{facts['model']}` has no network.\n"
        (folder / "neighbours.png").unlink(missing_ok=True)
    save(trajectories(curves, facts["model"]), folder / "trajectories.png")
    replace_file(folder / "study.md", text.encode())
    replace_file(folder / "study.csv", long_table(curves, changes).to_csv(index=False, lineterminator="\n", float_format="%.8g").encode())
