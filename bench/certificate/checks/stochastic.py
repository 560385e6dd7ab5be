"""One step of a plan that draws noise: its mean under a given D, and the mean and variance that it makes of the exact marginal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.certificate.closed import RATES, Basis, Forced, Still, gaussian, moments
from bench.certificate.history import FLOOR, exact_step
from fewstep.grid import TimeGrid
from fewstep.noise import Slot
from fewstep.sampling.plan import Apply, Plan, interpret


@dataclass(frozen=True)
class Quiet:
    """Noise that is zero."""

    def normal(self, slot: Slot, shape: Sequence[int]) -> Tensor:
        return torch.zeros(1, *shape, dtype=torch.float64)

    def labels(self, classes: int) -> Tensor:
        return torch.zeros(1, dtype=torch.int64)


def mean_error(plan: Plan, grid: TimeGrid, step: int) -> tuple[float, float]:
    """The error of the mean of a step that draws noise, where D is a given function of sigma alone, and the size that says nothing.

    For D = sigma^-c the mean of a step that keeps the share a = e^(-k h) of the state, h = log(sigma / sigma'), is exactly
    a x + k / (k + c) (sigma'^-c - a sigma^-c): the SDE forgets its state at the rate k and D takes its place. Every c of `RATES`.
    """
    data = Still(Forced())
    part = exact_step(plan, grid, step, data)
    rows = interpret(part, data, torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, len(RATES)), Quiet())[part.states[-1]]
    sigma, to = float(grid.sigmas[step]), float(grid.sigmas[step + 1])
    kept = rows[1] - rows[0]
    rate = -torch.log(kept) / math.log(sigma / to)
    exact = rate / (rate + RATES) * (to**-RATES - kept * sigma**-RATES)
    return float((rows[0] - exact).norm()), FLOOR * float((to**-RATES).norm())


def remembers(plan: Plan, grid: TimeGrid, step: int) -> bool:
    """Whether a step reads anything from before the state it starts from."""
    part = exact_step(plan, grid, step, Still(gaussian()))
    return any(isinstance(op, Apply) and op.outs != (plan.states[step],) for op in part.ops)


def marginal_error(plan: Plan, grid: TimeGrid, step: int) -> tuple[float, float]:
    """The error of mean and variance after a step from the Gaussian's exact marginal, and the size that says nothing."""
    data = gaussian()
    part = exact_step(plan, grid, step, Still(data))
    basis = Basis(part.noises)
    rows = interpret(part, data, basis.start(data.shape), basis)[part.states[-1]]
    found = torch.cat(moments(rows, data.mean, data.std**2 + float(grid.sigmas[step]) ** 2))
    exact = torch.cat([data.mean, data.std**2 + float(grid.sigmas[step + 1]) ** 2])
    return float((found - exact).norm()), FLOOR * float(exact.norm())
