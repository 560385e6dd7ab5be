"""Suites: data that expand to cells. A block is a small product of its lists; the cells of all blocks are the sweep."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from bench.store import digest
from fewstep.errors import UsageError, near_misses

NAIVE = ("class_means", "real_heldout", "real_train")


@dataclass(frozen=True)
class Cell:
    """One point of a sweep. `method` is `teacher` for a training-free solver, `naive` for a reference row, or a distiller's name,
    which brings its own solver, grid and end."""

    method: str = "teacher"
    solver: str = ""
    grid: str = ""
    end: str = ""
    afs: bool = False
    nfe: int = 0
    guidance: float = 1.0
    loss: str = ""
    metrics: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        parts = [self.method, self.loss, self.solver, self.grid, self.end, "afs" if self.afs else ""]
        guided = f" at guidance {self.guidance:g}" if self.guidance != 1 else ""
        return f"{'/'.join(p for p in parts if p)} NFE {self.nfe}{guided}"


@dataclass(frozen=True)
class Suite:
    """A named set of cells on one model under one protocol.

    `samples` images per cell with seeds seed, seed + 1, ...; `reference_steps` is the teacher's own fine-grid solution (heun on the
    polynomial grid) that psnr_teacher compares with; `fits` are options of the distillers by name.
    """

    name: str
    samples: int
    seed: int
    noise: str
    reference_steps: int
    fits: Mapping[str, Mapping[str, Any]]
    cells: tuple[Cell, ...]


AXES = tuple(f.name for f in fields(Cell))


def _values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def expand_block(block: Mapping[str, Any]) -> list[Cell]:
    """The cells of one block. **Raises**: UsageError for an unknown axis or a value of the wrong type."""
    for axis in block:
        if axis not in AXES:
            raise UsageError(f"unknown axis '{axis}' in a suite block{near_misses(axis, AXES)}")
    names = [a for a in block if a != "metrics"]
    cells = []
    for values in itertools.product(*(_values(block[a]) for a in names)):
        point = dict(zip(names, values))
        if not isinstance(point.get("nfe", 0), int) or not isinstance(point.get("guidance", 1.0), int | float):
            raise UsageError(f"nfe must be an integer and guidance a number, got {point}")
        point["guidance"] = float(point.get("guidance", 1.0))
        cells.append(Cell(**point, metrics=tuple(block.get("metrics", ()))))
    return cells


def expand(config: Mapping[str, Any], seed: int, noise: str) -> Suite:
    """A suite from its configuration: base values under every block; a cell in several blocks is one cell with all their metrics."""
    if config["samples"] < 2:
        raise UsageError(f"suite.samples must be at least 2, got {config['samples']}; e.g. suite.samples=2000")
    base = dict(config.get("base") or {})
    cells: dict[str, Cell] = {}
    for block in config["blocks"]:
        for cell in expand_block({**base, **block}):
            identity = digest([getattr(cell, a) for a in AXES if a != "metrics"])
            before = cells.get(identity, cell)
            cells[identity] = replace(before, metrics=tuple(dict.fromkeys(before.metrics + cell.metrics)))
    return Suite(config["name"], config["samples"], seed, noise, config["reference_steps"], config.get("fits") or {}, tuple(cells.values()))
