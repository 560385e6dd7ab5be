"""Guidance is a wrapper around a denoiser: D = D_ref + scale (D - D_ref)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fewstep.cond import NULL, Cond
from fewstep.denoiser import Around, Denoiser, Level, Pass, Sigma, Unfolded, feature_size, jump_of, own_cond, unfold, with_features
from fewstep.errors import UsageError


def _weighted(passes: tuple[Pass, ...], factor: Level) -> Iterator[Pass]:
    """The passes with every weight times a factor."""
    for p in passes:
        yield replace(p, weights=tuple(factor * weight for weight in p.weights))


@dataclass(frozen=True)
class Unconditional:
    """The condition of a pass without its label, text and image; equal for equal passes."""

    inner: Callable[[Cond, Tensor], Cond]

    def __call__(self, cond: Cond, x: Tensor) -> Cond:
        return self.inner(cond.unconditional(), x)


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

    def _twice(self, cond: Cond, x: Tensor) -> Cond:
        """The condition of the batch with its labels, then again with the null label."""
        label = cond.label if cond.label is not None else torch.full((len(x),), self.classes, device=x.device)
        null = torch.full_like(label, self.classes)
        return Cond(torch.cat([label, null]), scalars={k: torch.cat([v, v]) for k, v in cond.scalars.items()})

    def _doubled(self, x: Tensor, sigma: Sigma, cond: Cond) -> tuple[Tensor, Sigma, Cond]:
        return torch.cat([x, x]), torch.cat([sigma, sigma]) if isinstance(sigma, Tensor) else sigma, self._twice(cond, x)

    def unfold(self, sigma: Level, cond: Cond) -> Unfolded | None:
        """D_ref + scale (D - D_ref) in raw outputs: the passes of both, or of one whose batch holds the samples twice."""
        if self.interval is not None and np.ndim(sigma):
            return None  # the call says what is wrong
        own = unfold(self.base, sigma, cond)
        if own is None or not (self.interval is None or self._active(float(sigma))):
            return own
        traced = isinstance(self.scale, Tensor) and self.scale.requires_grad
        ref = own if self.ref is None else unfold(self.ref, sigma, cond)
        if ref is None or own.maps or ref.maps or traced:
            return None
        read = (*own.read, *(ref.read if self.ref is not None else ()), *((self.scale,) if isinstance(self.scale, Tensor) else ()))
        scale = self.scale.double().cpu().numpy() if isinstance(self.scale, Tensor) else self.scale
        if self.ref is not None:
            passes = (*_weighted(own.passes, scale), *_weighted(ref.passes, 1 - scale))
            return Unfolded(scale * own.skip + (1 - scale) * ref.skip, passes, read=read)
        (p, *more) = own.passes
        if cond.text is not None or cond.image is not None or more or p.cond is not own_cond:
            without = tuple(replace(p, cond=Unconditional(p.cond)) for p in own.passes)
            return Unfolded(own.skip, (*_weighted(own.passes, scale), *_weighted(without, 1 - scale)), read=read)
        weights = tuple(factor * weight for factor in (scale, 1 - scale) for weight in p.weights)
        return Unfolded(own.skip, (replace(p, weights=weights, cond=self._twice),), read=read)

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
