"""A cell: one point of a sweep, and the only place that says which coordinates there are. Imports no torch.

Suites' axes, the fields and identities of rows, the columns of tables and the labels for people follow from the fields of `Cell`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WHO, HOW, COST = "who", "how", "cost"  # whose samples, how they are sampled, and at what cost
TRAINED, UNTRAINED = "students", "teachers"  # to which of them an axis belongs that does not belong to all
NAIVE, TEACHER = "naive", "teacher"  # methods that are no students
PICTURE = "picture"  # the reference row of the pictures that samples are asked by, taken for outputs


def axis(default: Any, about: str, of: str = "", brought: bool = False) -> Any:
    """A coordinate: what it is about, whose it is (empty: everyone's), and whether a student brings its own unless a block has one."""
    return dataclasses.field(default=default, metadata={"about": about, "of": of, "brought": brought})


@dataclass(frozen=True)
class Cell:
    """One point of a sweep. `method` is `teacher` for a solver on the teacher, `naive` for a reference row, or a distiller's name, which
    brings its own solver, grid and end. `wrap` names a function of every D: `clip` or `dynamic_threshold`. `dtype` is what networks compute
    in: `bf16`, `fp16`, or empty for float32. `strength` says where sampling starts from a task's picture (1: from noise alone), `replaced`
    that what is known of the image is put into every D. Of a student, `variant` names options of the suite (those under method/variant,
    beside the method's) and `fit_seed` is the seed it was trained with."""

    method: str = axis(TEACHER, WHO)
    solver: str = axis("", HOW)
    grid: str = axis("", HOW, brought=True)
    end: str = axis("", HOW, UNTRAINED, brought=True)
    afs: bool = axis(False, HOW, UNTRAINED, brought=True)
    wrap: str = axis("", HOW)
    dtype: str = axis("", HOW)
    strength: float = axis(1.0, HOW)
    replaced: bool = axis(False, HOW)
    guidance: float = axis(1.0, COST)
    nfe: int = axis(0, COST)
    variant: str = axis("", WHO, TRAINED)
    loss: str = axis("", WHO)
    fit_seed: int = axis(0, WHO, TRAINED)
    metrics: tuple[str, ...] = ()

    @property
    def trained(self) -> bool:
        """Whether a student is sampled."""
        return self.method not in (TEACHER, NAIVE)

    @property
    def coordinates(self) -> dict[str, Any]:
        """Every axis by name."""
        return {name: getattr(self, name) for name in AXES}

    @property
    def label(self) -> str:
        """The cell in words: its texts, what numbers say of a student, passes, and guidance where there is some."""
        texts = [self._told(name) for name in (*about(WHO), *about(HOW)) if isinstance(DEFAULTS[name], str | bool)]
        seed = f"seed {self.fit_seed}" if self.fit_seed else ""
        guided = f" at guidance {self.guidance:g}" if self.guidance != 1 else ""
        started = f" at strength {self.strength:g}" if self.strength != 1 else ""
        return f"{'/'.join(part for part in (*texts, seed) if part)} NFE {self.nfe}{guided}{started}"

    def _told(self, name: str) -> str:
        value = getattr(self, name)
        return (name if value else "") if isinstance(value, bool) else value


_FIELDS = {f.name: f for f in dataclasses.fields(Cell) if f.metadata}
AXES = tuple(_FIELDS)
DEFAULTS: dict[str, Any] = {name: f.default for name, f in _FIELDS.items()}


def about(*what: str) -> tuple[str, ...]:
    """The axes about these, in the order of `what`."""
    return tuple(name for one in what for name, f in _FIELDS.items() if f.metadata["about"] == one)


def foreign(trained: bool) -> tuple[str, ...]:
    """The axes that a block of students (or of others) must not have."""
    return tuple(name for name, f in _FIELDS.items() if f.metadata["of"] == (UNTRAINED if trained else TRAINED))


def brought() -> tuple[str, ...]:
    """The axes whose values in a suite's base are no students': each has its own."""
    return tuple(name for name, f in _FIELDS.items() if f.metadata["brought"])


def cell_name(row: Mapping[str, Any]) -> str:
    """The cell of a row, for people: its model's name and the cell's label. Rows from before an axis was there have its default."""
    return f"{row['model']} {Cell(**{name: row.get(name, DEFAULTS[name]) for name in AXES}).label}"
