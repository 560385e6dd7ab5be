"""Two-time students: a network that is told where to go, and its jump there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fewstep.cond import NULL, Cond
from fewstep.denoiser import Around, Preconditioned, Sigma

TO = "to"  # the scalar that the network reads the target level from, as the preconditioning tells it levels


@dataclass(frozen=True, eq=False)
class TwoTime(Around):
    """G(x, sigma, to) = (to / sigma) x + (1 - to / sigma) g(x, sigma, to), where g is `base` told `to` as the scalar `to`.

    So G(x, sigma, sigma) = x for any network; called as a denoiser it is g(x, sigma, sigma), which tends to D, while g(x, sigma, 0) tends
    to the consistency function. **Shapes**: x [B, ...], sigma and to a float or [B]. **Source**: arXiv 2310.02279, equation 9.
    """

    base: Preconditioned

    def g(self, x: Tensor, sigma: Sigma, sigma_to: Sigma, cond: Cond = NULL) -> Tensor:
        """The inner function; targets below sigma_min are told as sigma_min."""
        levels = sigma_to.detach().double().cpu().numpy() if isinstance(sigma_to, Tensor) else np.full(len(x), float(sigma_to))
        told = self.base.precond.coefficients(np.maximum(levels, self.sigma_range[0]))[3]
        scalars = {**cond.scalars, TO: torch.from_numpy(told).to(x.device, torch.float32).expand(len(x))}
        return self.base(x, sigma, replace(cond, scalars=scalars))

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        return self.g(x, sigma, sigma, cond)

    def jump(self, x: Tensor, sigma: Sigma, sigma_to: Sigma, cond: Cond = NULL) -> Tensor:
        """The state at sigma_to."""
        ratio = torch.as_tensor(sigma_to, dtype=torch.float64) / torch.as_tensor(sigma, dtype=torch.float64)
        ratio = ratio.to(x.device, x.dtype).view(-1, *[1] * (x.ndim - 1))
        return ratio * x + (1 - ratio) * self.g(x, sigma, sigma_to, cond)
