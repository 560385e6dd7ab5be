"""Suites: data that expand to cells. A block is a small product of its lists; the cells of all blocks are the sweep."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.settings.budgets import NAME as BUDGET
from bench.settings.files import example
from bench.settings.published import options_for, told, untold
from bench.store.addresses import digest
from bench.store.cell import DEFAULTS, NAIVE, PICTURE, Cell, brought, foreign
from fewstep.errors import UsageError, near_misses
from fewstep.files import check_name
from fewstep.grid import make_grid
from fewstep.plugins import entries
from methods.solver import Learned

REAL = ("class_means", "real_heldout", "real_train_subset", "real_train", PICTURE)


@dataclass(frozen=True)
class Suite:
    """A named set of cells on one model under one protocol.

    `samples` images per cell with seeds seed, seed + 1, ...; `reference` (a solver, or `exact`) and `reference_steps` say how the
    teacher's own fine-grid solution is made (see `bench.jobs.solutions`); `options` are those of distillers and solvers by name. `budget`
    is the name of that under which it is (see `bench.settings.budgets`), `mark` what every row of it says, such as that it is no
    measurement. `blocks` has for each cell the number of the first block that it is in, `models` the model that its block names; empty for
    those of the suite.
    """

    name: str
    samples: int
    seed: int
    noise: str
    reference: str
    reference_steps: int
    options: Mapping[str, Mapping[str, Any]]
    cells: tuple[Cell, ...]
    budget: str = ""
    mark: str = ""
    blocks: tuple[int, ...] = dataclasses.field(default=(), compare=False)
    models: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def on(self, model: str, whole: bool) -> Suite:
        """The suite's cells on one model: those of blocks that name it, and with `whole` those of blocks that name none."""
        places = [i for i, named in enumerate(self.models) if named == model or (whole and not named)]
        cells, blocks = (tuple(values[i] for i in places) for values in (self.cells, self.blocks))
        return dataclasses.replace(self, cells=cells, blocks=blocks, models=(model,) * len(cells))


KINDS: dict[str, Any] = {axis: (int, float) if isinstance(value, float) else type(value) for axis, value in DEFAULTS.items()}
KINDS["metrics"] = str
NAMES = {str: "a name", bool: "true or false", int: "an integer", (int, float): "a finite number"}


def solver_group(name: str) -> list[str]:
    """Every registered training-free solver, by group: `flow` follows the probability flow, `stochastic` draws noise."""
    found = []
    for solver, entry in entries("solver").items():
        made = entry.make()
        if isinstance(made, Learned):
            continue
        if bool(made.plan(make_grid("polynomial", 4, (0.002, 80.0))).noises) == (name == "stochastic"):
            found.append(solver)
    return found


GROUPS = ("flow", "stochastic")
NEEDED = ("name", "model", "samples", "reference", "reference_steps", "blocks")
BATCHES = ("batches", "second_batches")  # what a budget multiplies
EXACT = "exact"  # the reference that `bench.evaluate.exact_flow` solves


def _values(axis: str, value: Any) -> list[Any]:
    """The values of one axis, each of the type that `Cell` gives it; `solver: flow` and `solver: stochastic` stand for all of a group.

    **Raises**: UsageError naming the axis and the value.
    """
    values = value if isinstance(value, list) else [value]
    if axis == "solver":
        values = [name for v in values for name in (solver_group(v) if isinstance(v, str) and v in GROUPS else [v])]
    kind = KINDS[axis]
    for v in values:
        wrong = not isinstance(v, kind) or (isinstance(v, bool) and kind is not bool)
        if wrong or (isinstance(v, float) and not math.isfinite(v)):
            raise UsageError(f"suite axis {axis} takes {NAMES[kind]}, got {v!r}; e.g. {axis}: {example(axis, 'suite')}")
    return values


def expand_block(block: Mapping[str, Any]) -> list[Cell]:
    """The cells of one block. **Raises**: UsageError for an unknown axis or a value of the wrong type."""
    for axis in block:
        if axis not in KINDS:
            raise UsageError(f"unknown axis '{axis}' in a suite block{near_misses(axis, list(KINDS))}")
    lists = {axis: _values(axis, value) for axis, value in block.items()}
    metrics = tuple(lists.pop("metrics", ()))
    cells = []
    for values in itertools.product(*lists.values()):
        point = dict(zip(lists, values))
        point["guidance"] = float(point.get("guidance", 1.0))
        cell = Cell(**point, metrics=metrics)
        if cell.method == NAIVE and cell.solver not in REAL:
            raise UsageError(f"unknown naive row '{point.get('solver')}'{near_misses(point.get('solver'), REAL)}")
        if any(point.get(axis) for axis in foreign(cell.trained)):
            those = " and ".join(foreign(cell.trained))
            if cell.trained:
                raise UsageError(f"{cell.method} has its own {those}; leave {those} out of its block")
            raise UsageError(f"{those} are of students, got them for method {cell.method}; leave them out")
        if cell.method == NAIVE and "timing" in metrics:
            raise UsageError("naive rows have no sampler to time; leave timing out of their metrics")
        cells.append(cell)
    return cells


def _dicts(options: Any) -> list[Any]:
    return list(options.values()) if isinstance(options, dict) else []


def budgeted(options: Mapping[str, Mapping[str, Any]], methods: Iterable[str], budget: float) -> Mapping[str, Mapping[str, Any]]:
    """The options of a suite whose students train for `budget` times as many batches, those that have the default number too."""
    if budget == 1:
        return options
    fields_of = {name: entry.fields for name, entry in entries("distiller").items()}
    counts = {name: {"batches": fields_of[name]["batches"]} for name in methods if "batches" in fields_of.get(name, ())}
    found = {**counts, **{name: {**counts.get(name, {}), **own} for name, own in options.items()}}

    def longer(name: str, option: str, value: Any) -> Any:
        counted = name.partition("/")[0] in fields_of and option in BATCHES and isinstance(value, int) and value > 0
        return max(1, round(budget * value)) if counted else value

    return {name: {option: longer(name, option, value) for option, value in own.items()} for name, own in found.items()}


def models_of(config: Mapping[str, Any]) -> list[str]:
    """The models of a suite's configuration that its blocks are on where they name none; nothing where it has something else there."""
    found = config.get("model", [])
    names = found if isinstance(found, list) else [found]
    return names if all(isinstance(name, str) for name in names) else []


def expand(config: Mapping[str, Any], seed: int, noise: str) -> Suite:
    """A suite from its configuration, with base values under every block (of them variant and fit_seed under those of students only, grid,
    end and AFS under the others only).

    A cell in several blocks is one cell with all their metrics. A block that names a `model` is on that one, the others on the suite's.
    **Raises**: UsageError for a study, which has no blocks, and bad values.
    """
    if "study" in config:
        name = config.get("name", "")
        raise UsageError(f"suite {name} is a study without cells; run it with python -m bench.sweep +suite={name}")
    if missing := [key for key in NEEDED if key not in config]:
        raise UsageError(f"the suite lacks {', '.join(missing)}; bench/conf/suite/{example('suite')}.yaml has every key that a suite needs")
    check_name("suite.name", config["name"], "suite.name=mine")
    if not models_of(config):
        raise UsageError(f"suite.model is a model's name or a list of names, got {config['model']!r}; e.g. suite.model={example('model')}")
    steps = config["reference_steps"]
    if not isinstance(config["reference"], str) or not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise UsageError(f"suite.reference is a solver's name and reference_steps at least 1, got {config['reference']!r} and {steps!r}")
    if not isinstance(config["samples"], int) or config["samples"] < 2:
        raise UsageError(f"suite.samples must be at least 2, got {config['samples']}; e.g. suite.samples=2000")
    if not 0 <= seed < 2**62:
        raise UsageError(f"seed must lie in 0..2^62, got {seed}; e.g. seed=0")
    budget = config.get("budget", 1)
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget < math.inf:
        raise UsageError(f"suite.budget multiplies the batches of every student and must be above 0, got {budget!r}; e.g. suite.budget=4")
    base, blocks, options = config.get("base") or {}, config["blocks"], config.get("options") or {}
    if not isinstance(blocks, list) or not all(isinstance(b, dict) for b in [base, options, *blocks, *_dicts(options)]):
        raise UsageError("a suite's blocks are a list of {axis: values}, base is one such, and options are {method: {option: value}}")
    name, mark = config.get(BUDGET) or "", config.get("mark") or ""
    if not (isinstance(name, str) and isinstance(mark, str)):
        raise UsageError(f"suite.{BUDGET} and suite.mark are texts, got {name!r} and {mark!r}; leave them to budget=NAME")
    cells, first = dict[tuple[str, str], Cell](), dict[tuple[str, str], int]()
    for number, block in enumerate(blocks, start=1):
        model, axes = block.get("model", ""), {axis: value for axis, value in block.items() if axis != "model"}
        if not isinstance(model, str):
            raise UsageError(f"the model of a suite's block is a name, got {model!r}; e.g. model: {example('model')}")
        methods = block.get("method", base.get("method", "teacher"))
        for method in methods if isinstance(methods, list) else [methods]:
            others = brought() if Cell(method).trained else foreign(False)
            own = {axis: value for axis, value in base.items() if axis not in others}
            for cell in expand_block({**own, **axes, "method": method}):
                identity = digest(cell.coordinates), model
                before = cells.get(identity, cell)
                cells[identity] = replace(before, metrics=tuple(dict.fromkeys(before.metrics + cell.metrics)))
                first.setdefault(identity, number)
    options = budgeted(options, dict.fromkeys(cell.method for cell in cells.values()), budget)
    made = Suite(config["name"], config["samples"], seed, noise, config["reference"], steps, options, tuple(cells.values()))
    return replace(made, budget=name, mark=mark, blocks=tuple(first.values()), models=tuple(model for _, model in cells))


def students_of(config: Mapping[str, Any] | None, seed: int, noise: str, data: str) -> Suite:
    """The suite that trains a student; without one a suite of no cells, whose students have the settings that are published for the data
    set of this name, or their distillers' own defaults (`bench.settings.published.told` says which)."""
    return Suite("", 0, seed, noise, "", 0, options_for(data), ()) if config is None else expand(config, seed, noise)


def settings_lines(suite: Suite, method: str, data: str) -> list[str]:
    """What a fit says of its settings: without a suite which they are; with one that has none of its method that they are the defaults."""
    if not suite.name:
        return [told(method, data)]
    return untold(suite.name, suite.budget, [] if method in suite.options else [method], data)
