"""Guidance is a wrapper around a denoiser: D = D_ref + scale (D - D_ref)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.cond import NULL, Cond
from fewstep.denoiser import Denoiser, Sigma


@dataclass(frozen=True, eq=False)
class Guided:
    """See `guide`. Without a separate reference network both branches run as one doubled batch."""

    base: Denoiser
    scale: float | Tensor
    ref: Denoiser | None
    interval: tuple[float, float] | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def classes(self) -> int:
        return self.base.classes

    @property
    def sigma_range(self) -> tuple[float, float]:
        return self.base.sigma_range

    def _active(self, sigma: Sigma) -> bool:
        if self.interval is None:
            return True
        if isinstance(sigma, Tensor):
            raise TypeError("a guidance interval needs one sigma per call, got a tensor; use a float sigma or interval=None")
        return self.interval[0] < sigma <= self.interval[1]

    def cost(self, sigma: float) -> int:
        own = self.base.cost(sigma)
        if not self._active(sigma):
            return own
        return own + (self.ref or self.base).cost(sigma)

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        if not self._active(sigma):
            return self.base(x, sigma, cond)
        if self.ref is not None:
            d, d_ref = self.base(x, sigma, cond), self.ref(x, sigma, cond)
        elif cond.text is not None or cond.image is not None:  # no null text or image to stack with: two calls
            d, d_ref = self.base(x, sigma, cond), self.base(x, sigma, cond.unconditional())
        else:
            label = cond.label if cond.label is not None else torch.full((len(x),), self.classes, device=x.device)
            null = torch.full_like(label, self.classes)
            both = Cond(torch.cat([label, null]), scalars={k: torch.cat([v, v]) for k, v in cond.scalars.items()})
            twice = torch.cat([sigma, sigma]) if isinstance(sigma, Tensor) else sigma
            d, d_ref = self.base(torch.cat([x, x]), twice, both).chunk(2)
        scale = self.scale
        if isinstance(scale, Tensor):
            scale = scale.to(x).view(-1, *[1] * (x.ndim - 1))
        return d_ref + scale * (d - d_ref)


def guide(
    denoiser: Denoiser,
    scale: float | Tensor,
    ref: Denoiser | None = None,
    interval: tuple[float, float] | None = None,
) -> Denoiser:
    """D_ref + scale (D - D_ref); scale 1 returns the same denoiser. Papers' w is scale - 1.

    `ref` None is classifier-free guidance (the same denoiser without its label); another denoiser is autoguidance. Outside
    `interval` (low, high] of sigma the plain D is used at plain cost. **Shapes**: scale a float or [B].
    **Source**: arXiv 2207.12598 equation 6; 2404.07724 (interval); 2406.02507 (autoguidance).
    """
    if isinstance(scale, float | int) and scale == 1:
        return denoiser
    return Guided(denoiser, scale, ref, interval)
