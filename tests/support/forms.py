"""Networks of every form on the clipped cosine schedule that are exact at known levels."""

from __future__ import annotations

import math

import numpy as np
import torch

from fewstep.cond import Cond
from fewstep.denoiser import Preconditioned
from fewstep.grid import make_grid
from fewstep.precond import ProcessPrecond
from fewstep.schedule import Cosine

RANGE = (math.exp(-10), math.exp(10))  # log-SNR 20 to -20
FORMS = ("x0", "v", "eps", "x0_eps")
SHAPE = (1, 4, 4)


class TableNet(torch.nn.Module):
    """The network that makes D = gain x at the levels of a grid, in any form on the cosine schedule: c_noise is rounded to the nearest."""

    def __init__(self, sigmas: np.ndarray, gains: np.ndarray, precond: ProcessPrecond) -> None:
        super().__init__()
        c_skip, c_out, c_in, times = precond.coefficients(sigmas)
        self.times, self.raw = torch.from_numpy(times), torch.from_numpy((gains - c_skip) / (c_out * c_in))
        self.dtype_tag = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: torch.Tensor, time: torch.Tensor, cond: Cond) -> torch.Tensor:
        half = (self.times[1:] + self.times[:-1]) / 2  # a falling grid of times
        return self.raw[len(half) - torch.searchsorted(half.flip(0), time.double())].view(-1, 1, 1, 1) * x


def denoiser(net: torch.nn.Module, form: str, classes: int = 2) -> Preconditioned:
    return Preconditioned(net, ProcessPrecond(Cosine(), form), SHAPE, classes, RANGE)


def grid_of(steps: int) -> np.ndarray:
    return make_grid("cosine", steps, RANGE, "zero_last").sigmas


def alpha(sigma: np.ndarray) -> np.ndarray:
    return 1 / np.sqrt(1 + sigma**2)
