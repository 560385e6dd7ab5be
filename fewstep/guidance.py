"""Guidance is a wrapper around a denoiser: D = D_ref + scale (D - D_ref)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.cond import NULL, Cond
from fewstep.denoiser import Around, Denoiser, Sigma, feature_size, jump_of, with_features
from fewstep.errors import UsageError


@dataclass(frozen=True, eq=False)
class Guided(Around):
    """See `guide`. Without a separate reference network both branches run as one doubled batch."""

    base: Denoiser
    scale: float | Tensor
    ref: Denoiser | None
    interval: tuple[float, float] | None

    @property
    def features(self) -> int:
        return feature_size(self.base)

    def _active(self, sigma: Sigma) -> bool:
        if self.interval is None:
            return True
        if isinstance(sigma, Tensor):
            raise UsageError(
                "a guidance interval needs one sigma per call, got one per sample; drop it or use a solver that predicts no levels"
            )
        return self.interval[0] < sigma <= self.interval[1]

    def cost(self, sigma: float) -> int:
        own = self.base.cost(sigma)
        if not self._active(sigma):
            return own
        return own + (self.ref or self.base).cost(sigma)

    def _mixed(self, d: Tensor, d_ref: Tensor) -> Tensor:
        scale = self.scale
        if isinstance(scale, Tensor):
            scale = scale.to(d).view(-1, *[1] * (d.ndim - 1))
        return d_ref + scale * (d - d_ref)

    def _doubled(self, x: Tensor, sigma: Sigma, cond: Cond) -> tuple[Tensor, Sigma, Cond]:
        """The batch with its labels, then again with the null label."""
        label = cond.label if cond.label is not None else torch.full((len(x),), self.classes, device=x.device)
        null = torch.full_like(label, self.classes)
        both = Cond(torch.cat([label, null]), scalars={k: torch.cat([v, v]) for k, v in cond.scalars.items()})
        return torch.cat([x, x]), torch.cat([sigma, sigma]) if isinstance(sigma, Tensor) else sigma, both

    def _reference(self, x: Tensor, sigma: Sigma, cond: Cond) -> Tensor | None:
        """D_ref where it takes a call of its own; None where both branches share one doubled batch."""
        if self.ref is not None:
            return self.ref(x, sigma, cond)
        if cond.text is not None or cond.image is not None:  # no null text or image to stack with: two calls
            return self.base(x, sigma, cond.unconditional())
        return None

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        if not self._active(sigma):
            return self.base(x, sigma, cond)
        d_ref = self._reference(x, sigma, cond)
        if d_ref is not None:
            return self._mixed(self.base(x, sigma, cond), d_ref)
        d, d_ref = self.base(*self._doubled(x, sigma, cond)).chunk(2)
        return self._mixed(d, d_ref)

    def with_features(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> tuple[Tensor, Tensor]:
        """As a call; the features are those of the conditional branch (arXiv 2312.00094, released code)."""
        if not self._active(sigma):
            return with_features(self.base, x, sigma, cond)
        d_ref = self._reference(x, sigma, cond)
        if d_ref is not None:
            d, features = with_features(self.base, x, sigma, cond)
            return self._mixed(d, d_ref), features
        both, features = with_features(self.base, *self._doubled(x, sigma, cond))
        d, d_ref = both.chunk(2)
        return self._mixed(d, d_ref), features.chunk(2)[0]

    def wrapped_jump(self) -> None:
        if any(jump_of(part) is not None for part in (self.base, self.ref or self.base)):
            raise UsageError("guidance mixes two D, and the jump of a flow map is none; drop the guidance or use a solver that asks for D")


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
