"""Closed-form denoisers: exact ground truth, no network, no training."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.cond import NULL, Cond
from fewstep.denoiser import Denoiser, Preconditioned, Sigma


def _column(sigma: Sigma, x: Tensor) -> Tensor:
    value = sigma if isinstance(sigma, Tensor) else torch.tensor(float(sigma), dtype=torch.float64)
    return value.to(x).reshape(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Data x0 ~ N(mean, diag(std^2)) per element: D = mean + std^2 / (std^2 + sigma^2) (x - mean), and the exact flow.

    **Shapes**: mean and std broadcast to `shape`. **Source**: the posterior mean of a Gaussian, arXiv 2206.00364 appendix B.
    """

    mean: Tensor
    std: Tensor
    shape: tuple[int, ...]
    classes: int = 0
    sigma_range: tuple[float, float] = (0.002, 80.0)

    def cost(self, sigma: float) -> int:
        return 1

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        s, mean, var = _column(sigma, x), self.mean.to(x), self.std.to(x) ** 2
        return mean + var / (var + s**2) * (x - mean)

    def flow(self, x: Tensor, sigma: Sigma, sigma_to: Sigma) -> Tensor:
        """The probability flow's state at sigma_to: mean + sqrt((std^2 + sigma_to^2) / (std^2 + sigma^2)) (x - mean)."""
        s, s2, mean, var = _column(sigma, x), _column(sigma_to, x), self.mean.to(x), self.std.to(x) ** 2
        return mean + torch.sqrt((var + s2**2) / (var + s**2)) * (x - mean)


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Data from isotropic Gaussians: means [K, *shape], std [K], logw [K]; with `classes` > 0, component k has class k mod classes.

    D(x, sigma) = sum_k r_k (mean_k + std_k^2 / v_k (x - mean_k)), v_k = std_k^2 + sigma^2, r the posterior over components (those of
    the label's class when one is given). std 0 is the exact denoiser of a finite image set. `init` is the network that students of
    this teacher start from, fitted by a warm start.
    """

    means: Tensor
    std: Tensor
    logw: Tensor
    classes: int = 0
    sigma_range: tuple[float, float] = (0.002, 80.0)
    init: Preconditioned | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.means.shape[1:])

    def cost(self, sigma: float) -> int:
        return 1

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        flat, means = x.flatten(1), self.means.to(x).flatten(1)
        s = _column(sigma, flat)
        v = self.std.to(x) ** 2 + s**2
        sq = (flat**2).sum(1, keepdim=True) - 2 * flat @ means.T + (means**2).sum(1)
        logits = self.logw.to(x) - sq / (2 * v) - 0.5 * flat.shape[1] * torch.log(v)
        if cond.label is not None and self.classes:
            own = torch.arange(len(means), device=x.device) % self.classes
            excluded = (own[None] != cond.label[:, None]) & (cond.label[:, None] < self.classes)
            logits = logits.masked_fill(excluded, -math.inf)
        r = torch.softmax(logits, dim=1)
        shrink = self.std.to(x) ** 2 / v
        out = (r * (1 - shrink)) @ means + (r * shrink).sum(1, keepdim=True) * flat
        return out.view_as(x)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Exact samples [count, *shape] in the means' dtype and their component indices."""
        k = torch.multinomial(self.logw.exp(), count, replacement=True, generator=generator)
        noise = torch.randn(count, *self.shape, generator=generator, dtype=self.means.dtype)
        return self.means[k] + self.std[k].view(-1, *[1] * len(self.shape)) * noise, k


@dataclass(eq=False)
class Counting:
    """A denoiser that counts what it is asked: `calls` evaluations of `base` and the conditions they carried."""

    base: Denoiser
    calls: int = 0

    def __post_init__(self) -> None:
        self.conds: list[Cond] = []
        self.shape, self.classes, self.sigma_range = self.base.shape, self.base.classes, self.base.sigma_range

    def cost(self, sigma: float) -> int:
        return self.base.cost(sigma)

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        self.calls += 1
        self.conds.append(cond)
        return self.base(x, sigma, cond)
