"""What a distiller is, and how its student is sampled."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import UsageError
from fewstep.grid import TimeGrid, make_grid
from fewstep.precond import BoundedPrecond, ConsistencyPrecond, EDMPrecond
from fewstep.sampling.plan import Plan
from methods.start import start_of
from methods.training import Trainable

ZERO_SNR, EDM_HIGHEST = 1e3, 80.0
ROUNDING = 1e-6  # of weights and, relative, of levels


def bounded(sigma_range: tuple[float, float]) -> tuple[float, float]:
    """The range of grids that are not a teacher's own: where its highest level stands for zero SNR, as e^10 of the clipped cosine schedule
    does, they start at EDM's 80, since their first steps would go through nothing but noise."""
    low, high = sigma_range
    return low, EDM_HIGHEST if high > ZERO_SNR else high


@dataclass(frozen=True)
class Sampling:
    """How a student is sampled: a registered solver, a grid family and where the grid ends (see `fewstep.grid.make_grid`).

    `afs`: the first step is the analytical one. `solvers` are others that it can be sampled with, `any_level` says that its grid may be
    another with the same ends (levels by hand). `tells_steps`: its network reads the number of steps as the scalar `steps`. `w`: its
    network reads the guidance weight as the scalar `w` itself, and this is the range it was trained in; without one, a student is guided
    from outside like its teacher. `sigma_min`: a level that its grids do not go below, where that is above the teacher's own. `nodes`: how
    many levels of its grid a flow map was trained to jump between, where it cannot be expected to know others (0: it can).
    """

    solver: str
    grid: str
    end: str
    afs: bool = False
    solvers: tuple[str, ...] = ()
    tells_steps: bool = False
    w: tuple[float, float] | None = None
    sigma_min: float = 0.0
    any_level: bool = False
    nodes: int = 0

    def range_in(self, sigma_range: tuple[float, float]) -> tuple[float, float]:
        """The range of the student's grids, given its teacher's. **Raises**: UsageError where it is empty."""
        low, high = sigma_range if self.grid == "cosine" else bounded(sigma_range)
        if self.sigma_min >= high:
            raise UsageError(f"a student's grid ends below the highest level {high:g}, got sigma_min={self.sigma_min:g}; use e.g. 0.006")
        return max(self.sigma_min, low), high

    def w_warning(self, guidance: float) -> str:
        """Why a student that reads the guidance weight should not be trusted at this guidance; empty where it may."""
        w = guidance - 1
        if self.w is None or self.w[0] - ROUNDING <= w <= self.w[1] + ROUNDING:
            return ""
        return f"w = {w:g} is outside of the range {self.w[0]:g} to {self.w[1]:g} it was trained in"

    def jump_warning(self, plan: Plan, sigma_range: tuple[float, float]) -> str:
        """Why a student that knows some levels only, of a teacher with this range, should not be trusted in this plan: jumps from or to
        others; empty where it may."""
        if not self.nodes:
            return ""
        known = make_grid(self.grid, self.nodes - 1, self.range_in(sigma_range), self.end).sigmas
        ends = {float(level) for e in plan.evals if e.to is not None for level in (e.sigma, e.to) if not isinstance(level, str)}
        others = ", ".join(f"{s:.4g}" for s in sorted(ends, reverse=True) if np.abs(known - s).min() > ROUNDING * s)
        return f"it jumps from or to {others}, not among the {self.nodes} levels it was trained to jump between" if others else ""

    def warning(self, guidance: float, plan: Plan, sigma_range: tuple[float, float]) -> str:
        """Both warnings, as far as there are any."""
        return "; ".join(filter(None, (self.w_warning(guidance), self.jump_warning(plan, sigma_range))))


class Distiller(Trainable, Protocol):
    """A Trainable whose result samples in few steps.

    One with a field `steps` is trained for that number of steps alone, a fit for each; sweeps set it to the cell's.
    """

    @property
    def loss(self) -> str: ...

    def phase_for(self, steps: int) -> str:
        """The phase whose export samples in `steps` steps. **Raises**: UsageError when there is none."""
        ...

    def student(self, net: nn.Module, teacher: Denoiser) -> Denoiser:
        """The trained net as a denoiser, with its boundary conditions and bound scalars."""
        ...

    def sampling(self) -> Sampling:
        """How this student is meant to be sampled."""
        ...


@dataclass(frozen=True)
class Pairs:
    """Stored samples that a method learns from: `count` of the teacher's own, made by a solver in so many steps."""

    solver: str
    steps: int
    grid: str
    end: str
    count: int


@runtime_checkable
class Paired(Distiller, Protocol):
    """A Distiller whose batches are pairs: `batch.noise`, and as `batch.x0` what the teacher makes of x = sigma_max noise."""

    def pairs(self) -> Pairs: ...


def check_weights(method: str, w_min: float, w_max: float) -> None:
    """**Raises**: UsageError for a range of guidance weights that is empty, or not one of guidance."""
    if not 0 <= w_min < w_max < math.inf:
        got = f"got w_min={w_min:g} and w_max={w_max:g}; use e.g. 0 and 4, or cd or pd for a student without guidance"
        raise UsageError(f"{method} draws guidance weights from w_min to w_max with 0 <= w_min < w_max, {got}")


def consistent(net: nn.Module, teacher: Denoiser, method: str) -> Preconditioned:
    """A student's network with the boundary f(x, sigma_min) = x: EDM's as in arXiv 2303.01469, others under `BoundedPrecond`."""
    start = start_of(teacher, method)
    own, lowest = start.precond, start.sigma_range[0]
    bounded = ConsistencyPrecond(own.sigma_data, lowest) if isinstance(own, EDMPrecond) else BoundedPrecond(own, lowest)
    return replace(start, net=net, precond=bounded)


def per_sample(levels: np.ndarray, index: Tensor) -> TimeGrid:
    """A training step's grid: levels [nodes_total] gathered at index [nodes, B]."""
    return TimeGrid(levels[index.cpu().numpy()])
