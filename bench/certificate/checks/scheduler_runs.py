"""The schedulers of diffusers run in their own loops, on a known mixture, in float64 wherever they allow it.

Levels are cast to float64 before the loop, or given. What remains is the state: some schedulers keep it in float64, others cast it to
float32 in every step.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.analytic import GaussianMixture
from fewstep.grid import TimeGrid, make_grid
from fewstep.noise import Slot
from fewstep.precond import EDMPrecond
from fewstep.sampling.plan import Plan
from fewstep.sampling.runner import run
from fewstep.schedule import Array

BATCH, SHAPE = 5, (3, 2, 2)
RANGE = (0.01, 80.0)  # of given levels


@cache
def mixture() -> GaussianMixture:
    """Four Gaussians of spread 0.2 to 0.8: final states are of size 3."""
    means = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    std = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    return GaussianMixture(means, std, torch.full((4,), -np.log(4.0), dtype=torch.float64))


def _start(sigma: float) -> Tensor:
    return sigma * torch.randn(BATCH, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _source(step: int) -> torch.Generator:
    return torch.Generator().manual_seed(2 + step)


def _data(x: Tensor, sigma: float) -> Tensor:
    return mixture()(x, sigma)


def _slope(x: Tensor, sigma: float) -> Tensor:
    return (x - mixture()(x, sigma)) / sigma


def _edm(x: Tensor, sigma: float) -> Tensor:
    """F of a perfect EDM network: D = c_skip x + c_out F, at sigma_data 1/2."""
    c_skip, c_out, _, _ = (float(c) for c in EDMPrecond(0.5).coefficients(np.asarray(sigma)))
    return (mixture()(x, sigma) - c_skip * x) / c_out


PREDICTIONS = {"sample": _data, "epsilon": _slope, "F": _edm}
Levels = Callable[[Any, int], Array]  # (scheduler, steps) -> the level of every pass of its loop, and the last; prepares the scheduler


def own(scheduler: Any, steps: int) -> Array:
    """The levels of a scheduler that lists them."""
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()
    return scheduler.sigmas.numpy()


def given(family: str, end: str = "sigma_min") -> Levels:
    """The levels of one of our grids over `RANGE`, put in place of the scheduler's."""

    def levels(scheduler: Any, steps: int) -> Array:
        values = make_grid(family, steps, RANGE, end).sigmas
        scheduler.set_timesteps(steps)
        scheduler.sigmas = torch.tensor(values)
        return values

    return levels


def discrete(scheduler: Any, steps: int) -> Array:
    """The levels of a scheduler over abar = 1 / (1 + sigma^2), which ends at abar = 1 and then computes in float64."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(steps)
    abar = scheduler.alphas_cumprod[scheduler.timesteps].numpy()
    return np.append(np.sqrt((1 - abar) / abar), 0.0)


@dataclass(frozen=True)
class Driven:
    """x at a scheduler's last level, its levels (strictly decreasing), and the noise that its steps drew."""

    x: Tensor
    levels: Array
    noise: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Scheduler:
    """A scheduler of diffusers: its class, how it is made, what its network predicts, its levels, and its noise.

    `preserving`: its state is z = x / sqrt(1 + sigma^2). `noise`: the type in which a step draws from its generator, none where it draws
    none. `step`: further arguments of its step.
    """

    name: str
    settings: Mapping[str, Any]
    predicts: str
    levels: Levels
    preserving: bool = True
    noise: torch.dtype | None = None
    step: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The call that makes it."""
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in self.settings.items())})"

    def _scale(self, sigma: float) -> float:
        return float(np.sqrt(1 + sigma**2)) if self.preserving else 1.0

    def drive(self, steps: int) -> Driven:
        """The scheduler's own loop, from the same start for every scheduler."""
        made = self._made()
        levels = self.levels(made, steps)
        made.is_scale_input_called = True  # the network here scales its own input
        z = _start(levels[0]) / self._scale(levels[0])
        for i, t in enumerate(made.timesteps):
            sigma = float(levels[i])
            output = PREDICTIONS[self.predicts](z * self._scale(sigma), sigma)
            drawn = {} if self.noise is None else {"generator": _source(i)}
            z = made.step(output, t, z, **self.step, **drawn).prev_sample
        noise = () if self.noise is None else tuple(self._drawn(i) for i in range(steps))
        once = np.unique(levels)[::-1].copy()  # Heun's list names every level but the first and last twice
        return Driven(z * self._scale(levels[-1]), once, noise)

    def _made(self) -> Any:
        with warnings.catch_warnings():  # they deprecate noise prediction and any algorithm_type but their default
            warnings.simplefilter("ignore", FutureWarning)
            return getattr(importlib.import_module("diffusers"), self.name)(**self.settings)

    def _drawn(self, step: int) -> Tensor:
        return torch.randn(BATCH, *SHAPE, generator=_source(step), dtype=self.noise).double()


@dataclass(frozen=True)
class Replayed:
    """The noise that a scheduler drew: draw 0 of every step."""

    values: Sequence[Tensor]

    def normal(self, slot: Slot, shape: Sequence[int]) -> Tensor:
        assert slot.role == 0, "a scheduler draws once a step"
        return self.values[slot.step - 1]

    def labels(self, classes: int) -> Tensor:
        return torch.zeros(BATCH, dtype=torch.int64)


def ours(plan: Plan, grid: TimeGrid, noise: Sequence[Tensor] = ()) -> Tensor:
    """x of one of our plans, from the start and with the noise of a scheduler."""
    return run(plan, mixture(), _start(grid.sigmas[0]), Replayed(noise))[plan.states[-1]]
