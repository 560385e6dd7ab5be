"""Closed forms that a plan is run on, and a noise source that shows what a plan does with every draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.analytic import Gaussian
from fewstep.cond import NULL, Cond
from fewstep.denoiser import Around, Denoiser, Sigma
from fewstep.noise import Slot

# Several variances and a mean that is not zero in one vector, so that no coefficient error hides in a symmetric problem.
MEAN = torch.tensor([0.5, -0.3, 0.2, -0.6], dtype=torch.float64)
STD = torch.tensor([0.3, 0.8, 1.0, 2.5], dtype=torch.float64)
START = MEAN + torch.sqrt(STD**2 + 1) * torch.tensor([[1.0, -0.5, 0.8, 0.6]], dtype=torch.float64)  # a state at sigma 1
RATES = torch.tensor([0.7, -0.4, 1.3, 0.2], dtype=torch.float64)
POINT = torch.tensor([0.7, -0.2], dtype=torch.float64)


class Truth(Denoiser, Protocol):
    """A denoiser with its exact trajectories."""

    def flow(self, x: Tensor, sigma: Sigma, sigma_to: Sigma) -> Tensor: ...


def gaussian() -> Gaussian:
    """The Gaussian of the order checks."""
    return Gaussian(MEAN, STD, tuple(MEAN.shape))


def points() -> Gaussian:
    """Data at one point c: D = c everywhere and x(sigma') = c + sigma' / sigma (x - c)."""
    return Gaussian(POINT, torch.zeros_like(POINT), tuple(POINT.shape))


@dataclass(frozen=True)
class Forced:
    """D = sigma^-c whatever the state, one c of `RATES` an element: x(sigma) = g + sigma times a constant, g = sigma^-c / (1 + c).

    The Gaussian alone is too kind: its trajectories sqrt(v + sigma^2) make the leading error of the midpoint rule vanish.
    """

    shape: tuple[int, ...] = tuple(RATES.shape)
    classes: int = 0
    sigma_range: tuple[float, float] = (0.002, 80.0)

    def cost(self, sigma: float) -> int:
        return 1

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        return (torch.as_tensor(sigma, dtype=torch.float64).reshape(-1, 1) ** -RATES).expand_as(x)

    def flow(self, x: Tensor, sigma: Sigma, sigma_to: Sigma) -> Tensor:
        s, to = (torch.as_tensor(level, dtype=torch.float64).reshape(-1, 1) for level in (sigma, sigma_to))
        return to / s * (x - s**-RATES / (1 + RATES)) + to**-RATES / (1 + RATES)


@dataclass(frozen=True, eq=False)
class Still(Around):
    """A denoiser, with states that stay where they are: the part of a plan that makes one step then starts at that step's state."""

    base: Denoiser

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        return self.base(x, sigma)

    def flow(self, x: Tensor, sigma: Sigma, sigma_to: Sigma) -> Tensor:
        return x


@dataclass(frozen=True, eq=False)
class Student(Around):
    """The exact student of a Gaussian: its consistency function down to `end`, and its flow map.

    f(x, sigma) = mean + sqrt((v + end^2) / (v + sigma^2)) (x - mean); `jump` goes to any level.
    """

    base: Gaussian
    end: float
    consistency: bool

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        return self.base.flow(x, sigma, self.end) if self.consistency else self.base(x, sigma)

    def jump(self, x: Tensor, sigma: Sigma, sigma_to: Sigma, cond: Cond = NULL) -> Tensor:
        return self.base.flow(x, sigma, sigma_to)


def ideal(data: Gaussian, evaluates: str, end: float) -> Denoiser:
    """The exact network of a kind: `denoiser`, `consistency` (to the level `end`), or `flow_map`."""
    return data if evaluates == "denoiser" else Student(data, end, evaluates == "consistency")


@dataclass(frozen=True)
class Basis:
    """Noise whose row 2 + k is one in draw k and zero elsewhere.

    Run on rows x = 0, x = 1, 0, 0, ... a plan that is affine in x and in its draws shows its offset, its gain and its gain of every draw.
    """

    slots: Sequence[Slot]

    def normal(self, slot: Slot, shape: Sequence[int]) -> Tensor:
        out = torch.zeros(2 + len(self.slots), *shape, dtype=torch.float64)
        out[2 + self.slots.index(slot)] = 1
        return out

    def labels(self, classes: int) -> Tensor:
        return torch.zeros(2 + len(self.slots), dtype=torch.int64)

    def start(self, shape: Sequence[int]) -> Tensor:
        """The rows of the initial state."""
        out = torch.zeros(2 + len(self.slots), *shape, dtype=torch.float64)
        out[1] = 1
        return out


def moments(rows: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a state from its rows on the basis, when the start has the given ones (elements are independent)."""
    gain = rows[1] - rows[0]
    return rows[0] + gain * mean, gain**2 * variance + ((rows[2:] - rows[0]) ** 2).sum(0)
