"""Denoisers D(x, sigma) = E[x0 | x], and the one adapter that makes a denoiser of a network.

D = c_skip x + c_out F(c_in x, c_noise): the preconditioning is the only place where a network's parametrisation is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.cond import NULL, Cond
from fewstep.errors import UsageError
from fewstep.schedule import VP, Array, NoiseSchedule

Sigma = float | Tensor


@runtime_checkable
class Denoiser(Protocol):
    """D(x, sigma, cond) with what a sampler has to know about it.

    **Shapes**: x [B, *shape], sigma a float or [B], result like x. `sigma_range` is where the model was trained; `cost(sigma)` counts
    network passes per sample of one call.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def classes(self) -> int: ...

    @property
    def sigma_range(self) -> tuple[float, float]: ...

    def cost(self, sigma: float) -> int: ...

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor: ...


@runtime_checkable
class FlowMap(Denoiser, Protocol):
    """A two-time student (CTM, shortcut, MeanFlow): `jump` is its state at sigma_to; called as a denoiser it is its own D."""

    def jump(self, x: Tensor, sigma: Sigma, sigma_to: Sigma, cond: Cond = NULL) -> Tensor: ...


@runtime_checkable
class Featured(Denoiser, Protocol):
    """A denoiser that can hand out `features` numbers per sample of its network: the channel mean of the deepest map, flattened.

    0 when the network has no such map. **Source**: the bottleneck features of arXiv 2312.00094, section 3.3.
    """

    @property
    def features(self) -> int: ...

    def with_features(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> tuple[Tensor, Tensor]:
        """D(x, sigma) and the features [B, features] of the same call."""
        ...


def feature_size(denoiser: Denoiser) -> int:
    """Features per sample that `with_features` gives; 0 for a denoiser that has none."""
    return denoiser.features if isinstance(denoiser, Featured) else 0


def with_features(denoiser: Denoiser, x: Tensor, sigma: Sigma, cond: Cond) -> tuple[Tensor, Tensor]:
    """D and features of one call. **Raises**: UsageError for a denoiser without features."""
    if not isinstance(denoiser, Featured) or not denoiser.features:
        raise UsageError(f"a {type(denoiser).__name__} has no features; fit the solver to this model, which then sees times only")
    return denoiser.with_features(x, sigma, cond)


class Precond(Protocol):
    """Preconditioning: the coefficients of D = c_skip x + c_out F(c_in x, c_noise), float64 numpy in and out."""

    @property
    def form(self) -> str: ...

    def coefficients(self, sigma: Array) -> tuple[Array, Array, Array, Array]:
        """(c_skip, c_out, c_in, c_noise) at noise level sigma."""
        ...


@dataclass(frozen=True)
class EDMPrecond:
    """Unit-variance input and training target. **Source**: arXiv 2206.00364, table 1 and equation 7."""

    sigma_data: float
    form: str = "edm"

    def coefficients(self, sigma: Array) -> tuple[Array, Array, Array, Array]:
        total = np.sqrt(sigma**2 + self.sigma_data**2)
        return (self.sigma_data / total) ** 2, sigma * self.sigma_data / total, 1 / total, np.log(sigma) / 4


@dataclass(frozen=True)
class ConsistencyPrecond:
    """EDM preconditioning with the boundary f(x, sigma_min) = x for any network. **Source**: arXiv 2303.01469, appendix C."""

    sigma_data: float
    sigma_min: float
    form: str = "edm"

    def coefficients(self, sigma: Array) -> tuple[Array, Array, Array, Array]:
        total = np.sqrt(sigma**2 + self.sigma_data**2)
        above = sigma - self.sigma_min
        c_skip = self.sigma_data**2 / (above**2 + self.sigma_data**2)
        return c_skip, self.sigma_data * above / total, 1 / total, np.log(sigma) / 4


@dataclass(frozen=True)
class ProcessPrecond:
    """A network in a native process z = alpha x0 + sigma_t n that predicts `x0`, `eps`, `v` = alpha n - sigma_t x0 or `u` = n - x0.

    With x = z / alpha: x0: D = F; eps: D = x - sigma F; v (alpha^2 + sigma_t^2 = 1): D = alpha^2 x - sigma_t F; u (alpha + sigma_t = 1):
    D = (x - sigma F) / (1 + sigma). c_in = alpha and c_noise = time_scale t. **Source**: arXiv 2202.00512 section 4, 2209.03003.
    """

    schedule: NoiseSchedule = VP()
    form: str = "eps"
    time_scale: float = 1.0

    def coefficients(self, sigma: Array) -> tuple[Array, Array, Array, Array]:
        t = self.schedule.t(sigma)
        alpha, sigma_t = self.schedule.alpha_sigma(t)
        one = np.ones_like(alpha)
        c_skip, c_out = {
            "x0": (0 * one, one),
            "eps": (one, -sigma),
            "v": (alpha**2, -sigma_t),
            "u": (1 / (1 + sigma), -sigma / (1 + sigma)),
        }[self.form]
        return c_skip, c_out, alpha, self.time_scale * t


def _columns(value: Array, like: Tensor) -> Tensor:
    """Host float64 coefficients [] or [B], cast once to the dtype and rank of `like` [B, ...]."""
    column = torch.tensor(np.atleast_1d(value)).to(like.device, like.dtype)
    return column.view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True, eq=False)
class Preconditioned:
    """A network as a denoiser: D = c_skip x + c_out F(c_in x, c_noise).

    The coefficients are float64 on the host and cast once; the state keeps its own dtype and the network is called in its parameters'.
    """

    net: nn.Module
    precond: Precond
    shape: tuple[int, ...]
    classes: int
    sigma_range: tuple[float, float]

    def cost(self, sigma: float) -> int:
        return 1

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        host = sigma.detach().double().cpu().numpy() if isinstance(sigma, Tensor) else np.asarray(sigma, dtype=np.float64)
        c_skip, c_out, c_in, c_noise = self.precond.coefficients(host)
        dtype = next(self.net.parameters()).dtype
        time = torch.as_tensor(np.broadcast_to(c_noise, (len(x),)).copy()).to(x.device, torch.float32)
        raw = self.net((_columns(c_in, x) * x).to(dtype), time, cond).to(x.dtype)
        return _columns(c_skip, x) * x + _columns(c_out, x) * raw


@dataclass(frozen=True, eq=False)
class Mapped:
    """A denoiser with a function applied to every D: clipping, dynamic thresholding. Named in the cell, never inside a solver."""

    base: Denoiser
    fn: Callable[[Tensor], Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def classes(self) -> int:
        return self.base.classes

    @property
    def sigma_range(self) -> tuple[float, float]:
        return self.base.sigma_range

    def cost(self, sigma: float) -> int:
        return self.base.cost(sigma)

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        return self.fn(self.base(x, sigma, cond))


def dynamic_threshold(d: Tensor, ratio: float = 0.995, floor: float = 1.0) -> Tensor:
    """D clipped to [-q, q] and divided by q = max(quantile(|D|, ratio), floor) of each sample. **Source**: arXiv 2205.11487, 2.3."""
    q = torch.quantile(d.abs().flatten(1), ratio, dim=1).clamp(min=floor).view(-1, *[1] * (d.ndim - 1))
    return d.clamp(-q, q) / q
