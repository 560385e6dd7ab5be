"""Two-time students: a network that is told where to go, and its jump there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fewstep.calls import check_levels
from fewstep.checks import check_level_values
from fewstep.cond import NULL, Cond
from fewstep.denoiser import Around, Level, Preconditioned, Sigma, Unfolded
from fewstep.schedule import Array

TO = "sigma_to"  # the scalar that the network reads the target level from, as the preconditioning tells it levels


@dataclass(frozen=True, eq=False)
class Told:
    """The condition of a pass, with a target level as the network reads it: one for all samples, or [B]."""

    level: Array

    def __call__(self, cond: Cond, x: Tensor) -> Cond:
        if self.level.ndim:
            told = torch.from_numpy(self.level).to(x.device, torch.float32).expand(len(x))
        else:  # made on the device, which a CUDA graph can capture
            told = torch.full((len(x),), float(self.level), dtype=torch.float32, device=x.device)
        return replace(cond, scalars={**cond.scalars, TO: told})


@dataclass(frozen=True, eq=False)
class TwoTime(Around):
    """G(x, sigma, to) = (to / sigma) x + (1 - to / sigma) g(x, sigma, to), where g is `base` told `to` as the scalar `sigma_to`.

    So G(x, sigma, sigma) = x for any network; called as a denoiser it is g(x, sigma, sigma), which tends to D, while g(x, sigma, 0) tends
    to the consistency function. **Shapes**: x [B, ...], sigma and to a float or [B]. **Source**: arXiv 2310.02279, equation 9.
    """

    base: Preconditioned

    def _told(self, sigma_to: Level) -> Told:
        """Targets below sigma_min are told as sigma_min."""
        check_level_values(sigma_to, "sigma_to")
        return Told(np.asarray(self.base.precond.coefficients(np.maximum(sigma_to, self.sigma_range[0]))[3]))

    def g(self, x: Tensor, sigma: Sigma, sigma_to: Sigma, cond: Cond = NULL) -> Tensor:
        """The inner function."""
        check_levels(sigma_to, len(x), "sigma_to")
        told = self._told(sigma_to.detach().double().cpu().numpy() if isinstance(sigma_to, Tensor) else sigma_to)
        return self.base(x, sigma, told(cond, x))

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        return self.g(x, sigma, sigma, cond)

    def jump(self, x: Tensor, sigma: Sigma, sigma_to: Sigma, cond: Cond = NULL) -> Tensor:
        """The state at sigma_to. **Raises**: UsageError for levels that are none, or below sigma_to 0; at sigma 0 there is no way to go."""
        check_levels(sigma, len(x), positive=True)
        check_levels(sigma_to, len(x), "sigma_to")
        ratio = torch.as_tensor(sigma_to, dtype=torch.float64) / torch.as_tensor(sigma, dtype=torch.float64)
        ratio = ratio.to(x.device, x.dtype).view(-1, *[1] * (x.ndim - 1))
        return ratio * x + (1 - ratio) * self.g(x, sigma, sigma_to, cond)

    def unfold(self, sigma: Level, cond: Cond) -> Unfolded:
        return self._unfolded(sigma, sigma, 0.0, cond)

    def unfold_jump(self, sigma: Level, to: Level, cond: Cond) -> Unfolded:
        return self._unfolded(sigma, to, np.divide(to, sigma), cond)

    def _unfolded(self, sigma: Level, to: Level, ratio: Level, cond: Cond) -> Unfolded:
        """ratio x + (1 - ratio) g."""
        inner, told, share = self.base.unfold(sigma, cond), self._told(to), 1 - ratio
        passes = tuple(replace(p, weights=tuple(share * weight for weight in p.weights), cond=told) for p in inner.passes)
        return replace(inner, skip=ratio + share * inner.skip, passes=passes)
