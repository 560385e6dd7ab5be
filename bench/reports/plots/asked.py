"""Pictures that samples were asked by, what each method made of them, and the true images, side by side. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bench.reports.plots.style import save
from bench.reports.tables import Row, cells, student_name
from bench.space.keeping import asked_by, displayed
from bench.store.cell import AXES, DEFAULTS, brought
from fewstep.grid import GIVEN

Cell = Mapping[str, Any]
NAME = "asked.png"
PLAIN = ("method", "solver", "nfe", "variant", "loss", "fit_seed", "guidance")  # coordinates that labels have in a way of their own
ROWS, MOST = 8, 14  # pictures, and columns between the picture and the truth
FEW, MANY = 4, 10  # of two numbers of passes of one method: the one nearest to FEW, and the largest from MANY on


def told_of(cell: Cell) -> list[str]:
    """What a cell is, but for its passes and its seed: who and how it is sampled, of the rest what is not the default."""
    who = [] if cell["method"] == "teacher" else [student_name(cell)]
    rest = [name for name in AXES if name not in (*PLAIN, *(brought() if cell["method"] != "teacher" else ()))]
    how = [
        f"{name} {cell[name]}" if not isinstance(cell[name], bool) else name
        for name in rest
        if cell.get(name) not in (None, DEFAULTS[name])
    ]
    by_hand = [cell["grid"]] if cell["method"] != "teacher" and str(cell.get("grid") or "").startswith(GIVEN) else []
    return [*who, cell["solver"], *by_hand, *how]


def _columns(table: Sequence[Cell]) -> list[Cell]:
    """Of all that differs but passes and seeds the cell at few passes and that at most, where these are many; by passes, few first."""
    chosen: dict[tuple[str, ...], list[Cell]] = {}
    for cell in table:
        if cell["method"] != "naive" and cell["artifact"] and cell["guidance"] == 1:
            chosen.setdefault(tuple(told_of(cell)), []).append(cell)
    found: list[Cell] = []
    for own in chosen.values():
        few = min(own, key=lambda c: (abs(c["nfe"] - FEW), c["nfe"], c.get("fit_seed") or 0))
        most = max(own, key=lambda c: (c["nfe"], -(c.get("fit_seed") or 0)))
        found += [few] if most is few or most["nfe"] < MANY else [few, most]
    return sorted(found, key=lambda c: (c["nfe"] >= MANY, c["method"] == "teacher"))


def _label(cell: Cell) -> str:
    return "\n".join([*told_of(cell), f"NFE {cell['nfe']}"])


def _tiles(figure: Figure, images: np.ndarray, column: int, columns: int, label: str, top: float) -> None:
    height = (1 - top) / ROWS
    for row, image in enumerate(images[:ROWS]):
        ax = figure.add_axes(((column + 0.03) / columns, 1 - top - (row + 1) * height + 0.03 * height, 0.94 / columns, 0.94 * height))
        ax.set_axis_off()
        shown = np.clip((np.moveaxis(image, 0, -1) + 1) / 2, 0, 1)
        ax.imshow(shown[..., 0] if shown.shape[-1] == 1 else shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    figure.text((column + 0.5) / columns, 1 - top + 0.01, label, ha="center", va="bottom", fontsize=5.5)


def asked(table: Sequence[Cell], rows: Sequence[Row], store: Path) -> Figure | None:
    """Rows: the first samples, each with the same picture, seed and noise in all columns; None where nothing was asked by pictures."""
    told = [(row.get("protocol") or {}).get("pairs") for row in rows]  # of some metrics that word is something else
    keys = [pairs["shown"] for pairs in told if isinstance(pairs, Mapping) and pairs.get("shown")]
    found = asked_by(store, keys[-1]) if keys else None
    if found is None:
        return None
    made = [(cell, images) for cell in _columns(table) if (images := displayed(store, cell["artifact"])) is not None]
    many = [pair for pair in made if pair[0]["nfe"] >= MANY]
    shown = [pair for pair in made if pair[0]["nfe"] < MANY][: max(1, MOST - len(many))] + many[:MOST]
    columns, top = 2 + len(shown), 0.17
    figure = Figure(figsize=(0.72 * columns, 0.72 * ROWS / (1 - top)))
    _tiles(figure, found[0][:ROWS], 0, columns, "asked by", top)
    for column, (cell, images) in enumerate(shown, start=1):
        _tiles(figure, images.images[:ROWS], column, columns, _label(cell), top)
    _tiles(figure, found[1][:ROWS], columns - 1, columns, "true image", top)
    return figure


def write_asked(rows: Sequence[Row], folder: Path, store: Path) -> None:
    """asked.png of each model whose task has pictures: of several, in a folder of its name."""
    models = sorted({row["model"] for row in rows})
    for model in models:
        own = [row for row in rows if row["model"] == model]
        figure, place = asked(cells(own), own, store), (folder / model if models[1:] else folder) / NAME
        if figure is None:
            place.unlink(missing_ok=True)  # of an earlier suite of this name
        else:
            save(figure, place)
