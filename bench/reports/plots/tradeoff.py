"""Two ways of being good at a task of pictures: like images at all, and like the true one. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.reports.plots.asked import told_of
from bench.reports.plots.style import COLOURS, MARKERS, save
from bench.reports.tables import Row, cells, number, shown
from bench.reports.verdicts import quality
from metrics import metrics_by_name

Cell = Mapping[str, Any]
NAME = "tradeoff.png"


def likeness(table: Sequence[Cell]) -> str:
    """The perceptual distance to true images that most cells have, of several the first; empty where none has one."""
    names = sorted((m for m in metrics_by_name() if shown(m).role == "likeness"), key=lambda m: shown(m).place)
    known = {m: sum(number(c.get(m)) is not None for c in table) for m in names}
    return max(names, key=lambda m: known[m]) if any(known.values()) else ""


def tradeoff(table: Sequence[Cell]) -> Figure | None:
    """For all that differs but passes and seeds a line over the passes, which stand beside its points (means over seeds): the lower left
    is better. None where no cell was compared with true images, or no line has two points."""
    near, far = likeness(table), quality(table)
    known = [c for c in table if near and c["guidance"] == 1 and None not in (number(c.get(near)), number(c.get(far)))]
    lines: dict[str, dict[int, list[Cell]]] = {}
    for cell in (c for c in known if c["method"] != "naive"):
        lines.setdefault(", ".join(told_of(cell)), {}).setdefault(cell["nfe"], []).append(cell)
    if max((len(found) for found in lines.values()), default=0) < 2:
        return None
    figure = Figure(figsize=(8.2, 5.2))
    ax = figure.add_axes((0.09, 0.11, 0.62, 0.82))
    for index, (name, found) in enumerate(sorted(lines.items())):
        passes = sorted(found)
        x, y = ([sum(float(c[metric]) for c in found[nfe]) / len(found[nfe]) for nfe in passes] for metric in (near, far))
        how = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 5, "linewidth": 1.3}
        ax.plot(x, y, ("-", "--", ":")[index // len(COLOURS) % 3], label=name, **how)
        for nfe, at in zip(passes, zip(x, y)):
            ax.annotate(str(nfe), at, textcoords="offset points", xytext=(4, 3), fontsize=6.5)
    for cell in (c for c in known if c["method"] == "naive"):
        ax.plot(float(cell[near]), float(cell[far]), "kx", markersize=7)
        ax.annotate(cell["solver"], (float(cell[near]), float(cell[far])), textcoords="offset points", xytext=(4, 3), fontsize=7)
    ax.set(xlabel=f"{near} (to the true image)", ylabel=f"{far} (to real images)")
    ax.grid(alpha=0.25)
    ax.set_title("numbers are passes; lower left is better", fontsize=9)
    figure.legend(loc="center left", bbox_to_anchor=(0.72, 0.5), fontsize=7, frameon=False)
    return figure


def write_tradeoff(rows: Sequence[Row], folder: Path) -> None:
    """tradeoff.png of each model that has one: of several, in a folder of its name."""
    models = sorted({row["model"] for row in rows})
    for model in models:
        place = (folder / model if models[1:] else folder) / NAME
        figure = tradeoff(cells([row for row in rows if row["model"] == model]))
        if figure is None:
            place.unlink(missing_ok=True)  # of an earlier suite of this name
        else:
            save(figure, place)
