"""What a solver is, what a learned one is fitted to, and how many network passes a request can reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from fewstep.cond import Cond
from fewstep.data.source import Source
from fewstep.denoiser import Denoiser
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import TimeGrid
from fewstep.plugins import get
from fewstep.sampling.plan import Plan, with_afs
from fewstep.schedule import Array
from fewstep.tasks.generation import task_for
from fewstep.tasks.task import Task
from methods.claims import Claims
from methods.training import Trainable


class Solver(Protocol):
    """A frozen dataclass: a grid in, a plan out. `version` rises when its numbers change; `claims` is what the certificate checks."""

    @property
    def version(self) -> int: ...

    @property
    def claims(self) -> Claims: ...

    def plan(self, grid: TimeGrid) -> Plan: ...


@dataclass(frozen=True, eq=False)
class Fitting:
    """What a learned solver is fitted to: a teacher (or the student that it is to sample) under its guidance, and the grids `grid(steps)`
    of one family, range and end.

    `steps` counts the intervals of the wanted grid, with the analytical first step among them when `afs` is set. All randomness comes
    from `seed`, and tensors go to `device`, where the teacher is. `train` trains a `Trainable` (resumably, with progress) and gives back
    the exported weights. `data` is what the teacher was trained on, for a solver that compares samples with it. `once(key, make)` is
    make(), or what it made for another fit to the same teacher and seed: the key says what else it depends on, solvers by name.
    """

    teacher: Denoiser
    grid: Callable[[int], TimeGrid]
    steps: int
    afs: bool
    seed: int
    device: str
    train: Callable[[Trainable], Mapping[str, Tensor]]
    data: Source | None = None
    once: Callable[[Sequence[Any], Callable[[], Mapping[str, Tensor]]], Mapping[str, Tensor]] = lambda key, make: make()
    task: Task | None = None

    def conditions(self, seeds: Tensor) -> Cond:
        """What the samples of these seeds [B] are asked for, by the model's task; generation where none is given."""
        return (self.task or task_for(self.teacher)).conditions(seeds, self.teacher)


@runtime_checkable
class Learned(Solver, Protocol):
    """A solver that is fitted to a teacher, a grid and AFS before it can plan; unbound, its `plan` raises UsageError."""

    def check(self, steps: int, grid_of: Callable[[int], TimeGrid], afs: bool) -> None:
        """What `fit` refuses, before any work; steps, grids and AFS as in `Fitting`.

        **Raises**: Unreachable for a number of steps, UsageError for grids that it cannot be fitted to.
        """
        ...

    def fit(self, fitting: Fitting) -> Mapping[str, Tensor]:
        """The artefact. **Raises**: as `check`, before any work."""
        ...

    def passes(self, steps: int, afs: bool = False) -> int:
        """About how many network passes (a backward counts as two) a fit takes, over all its samples: what it will cost."""
        ...

    def stub(self) -> Mapping[str, Tensor]:
        """An artefact that needs no teacher: with it the plan has the same evaluations, so that passes can be counted and certified."""
        ...

    def bound(self, artefact: Mapping[str, Tensor]) -> Solver:
        """The solver with its artefact."""
        ...


def check_order(order: int, highest: int, lowest: int = 1) -> None:
    """**Raises**: UsageError for an order that a family of solvers does not have."""
    if not lowest <= order <= highest:
        raise UsageError(f"order must be {lowest} to {highest}, got {order}")


def fitted_levels(solver: str, levels: Array, grid: TimeGrid) -> TimeGrid:
    """Levels that `solver` was fitted to, for a grid with their ends and number of steps. **Raises**: UsageError for another grid."""
    own, ends = TimeGrid(levels), grid.sigmas[[0, -1]]
    if own.steps != grid.steps or not np.allclose(own.sigmas[[0, -1]], ends, rtol=1e-6, atol=1e-12):
        found = f"{own.steps} steps from {own.sigmas[0]:g} to {own.sigmas[-1]:g}"
        raise UsageError(f"these levels are for {found}, not {grid.steps} from {ends[0]:g} to {ends[1]:g}; fit {solver} to this grid")
    return own


UNNAMED = ("euler",)  # inside many methods that do not name it
PROBE = TimeGrid([80.0, 10.0, 1.0, 0.1, 0.01])


def ode_solver(name: str, user: str) -> Solver:
    """The registered solver `name`, for `user` to run. **Raises**: UsageError for one that needs a fit or draws noise."""
    made = get("solver", name).make()
    if isinstance(made, Learned):
        raise UsageError(f"{user} runs on a solver that needs no fit, got '{name}'; use e.g. ipndm_4")
    if made.plan(PROBE).noises:
        raise UsageError(f"{user} runs on a solver that draws no noise, got '{name}'; use e.g. ipndm_4")
    return made


def evaluations(solver: Solver, steps: int, afs: bool = False) -> int:
    """How many evaluations a solver makes in that many steps to a level above 0."""
    plan = solver.plan(TimeGrid(range(steps + 1, 0, -1)))
    return len((with_afs(plan) if afs else plan).evals)


def check_predicts(predicts: str) -> None:
    """**Raises**: UsageError for a prediction that DPM-Solvers are not written in: `x0` (data) or `eps` (noise)."""
    if predicts not in ("x0", "eps"):
        raise UsageError(f"predicts must be x0 or eps, got '{predicts}'")


def draft(solver: Solver) -> Solver:
    """The solver as it can plan before any fit: itself, or a learned one bound to its stub."""
    return solver.bound(solver.stub()) if isinstance(solver, Learned) else solver


MAX_STEPS = 1000


def steps_for_nfe(count: Callable[[int], int], nfe: int, label: str) -> int:
    """The number of steps that cost exactly `nfe` network passes per image, where `count(steps)` says what a plan of so many costs.

    Where several step counts cost the same (UniPC's first steps), the largest. `count` may raise Unreachable where a step count is not
    allowed (AFS on one step). **Raises**: Unreachable, which states how the counts grow and names the nearest reachable ones.
    """
    counts: dict[int, int] = {}
    found = _guess(count, nfe)
    if found:
        return found
    for steps in range(1, MAX_STEPS + 1):
        try:
            counts[steps] = count(steps)
        except Unreachable:
            if found:
                return found  # the largest that the solver has
            if counts or steps == MAX_STEPS:
                raise
            continue
        if counts[steps] == nfe:
            found = steps
        elif found:
            return found
        if counts[steps] > nfe and len(counts) >= 3:
            break
    if found:
        return found
    below = [c for c in counts.values() if c < nfe]
    above = [c for c in counts.values() if c > nfe]
    near = [*([max(below)] if below else []), *([min(above)] if above else [])]
    hint = " or ".join(str(c) for c in near)
    raise Unreachable(f"{label} uses {_growth(counts)} evaluations; {nfe} is not reachable; try {hint}")


def _guess(count: Callable[[int], int], nfe: int) -> int:
    """The largest number of steps that costs `nfe`, if counts grow as between 4 and 5 steps and so name it at once; else 0."""
    try:
        base, slope = count(4), count(5) - count(4)
        steps = 4 + (nfe - base) // slope if slope > 0 else 0
        right = 1 <= steps < MAX_STEPS and count(steps) == nfe != count(steps + 1)
    except Unreachable:
        return 0
    return steps if right else 0


def _growth(counts: dict[int, int]) -> str:
    """The counts as a formula in the number of steps N, `2N-1`, when they grow evenly; else the first few of them."""
    (n0, c0), (n1, c1), *_ = counts.items()
    slope = (c1 - c0) // (n1 - n0)
    offset = c0 - slope * n0
    if any(c != slope * n + offset for n, c in counts.items()):
        return ", ".join(map(str, list(counts.values())[:4])) + ", ..."
    return f"{'' if slope == 1 else slope}N{f'{offset:+d}' if offset else ''}"
