"""A cell: one point of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One point of a sweep. `method` is `teacher` for a solver on the teacher, `naive` for a reference row, or a distiller's name, which
    brings its own solver, grid and end. `wrap` names a function of every D: `clip` or `dynamic_threshold`. Of a student, `variant` names
    options of the suite (those under method/variant, beside the method's) and `fit_seed` is the seed it was trained with."""

    method: str = "teacher"
    solver: str = ""
    grid: str = ""
    end: str = ""
    afs: bool = False
    nfe: int = 0
    guidance: float = 1.0
    loss: str = ""
    wrap: str = ""
    variant: str = ""
    fit_seed: int = 0
    metrics: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        seed = f"seed {self.fit_seed}" if self.fit_seed else ""
        parts = [self.method, self.variant, self.loss, self.solver, self.grid, self.end, "afs" if self.afs else "", self.wrap, seed]
        guided = f" at guidance {self.guidance:g}" if self.guidance != 1 else ""
        return f"{'/'.join(p for p in parts if p)} NFE {self.nfe}{guided}"


def cell_name(row: Mapping[str, Any]) -> str:
    """The cell of a row, for people: its model's name and the cell's label."""
    return f"{row['model']} {Cell(**{axis: row[axis] for axis in AXES if axis != 'metrics'}).label}"


AXES = tuple(f.name for f in fields(Cell))
