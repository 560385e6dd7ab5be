"""Guidance is a wrapper around a denoiser: D = D_ref + scale (D - D_ref)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fewstep.calls import check_call, check_cond, check_state
from fewstep.checks import check_number
from fewstep.cond import NULL, Cond
from fewstep.denoiser import (
    Around,
    Denoiser,
    Level,
    Pass,
    Sigma,
    Unfolded,
    check_null,
    feature_size,
    jump_of,
    own_cond,
    unfold,
    with_features,
)
from fewstep.errors import UsageError


def _weighted(passes: tuple[Pass, ...], factor: Level) -> Iterator[Pass]:
    """The passes with every weight times a factor."""
    for p in passes:
        yield replace(p, weights=tuple(factor * weight for weight in p.weights))


@dataclass(frozen=True)
class Unconditional:
    """The condition of a pass without what it says that guidance drops; equal for equal passes."""

    inner: Callable[[Cond, Tensor], Cond]

    def __call__(self, cond: Cond, x: Tensor) -> Cond:
        return self.inner(cond.unconditional(), x)


@dataclass(frozen=True)
class Unlabelled:
    """The condition of a pass of a reference without classes; equal for equal passes."""

    inner: Callable[[Cond, Tensor], Cond]

    def __call__(self, cond: Cond, x: Tensor) -> Cond:
        return self.inner(replace(cond, label=None), x)


@dataclass(frozen=True, eq=False)
class Guided(Around):
    """See `guide`. Without a separate reference network both branches run as one doubled batch."""

    base: Denoiser
    scale: float | Tensor
    ref: Denoiser | None
    interval: tuple[float, float] | None

    def __post_init__(self) -> None:
        _check_scale(self.scale)
        if self.ref is not None and self.ref.shape != self.base.shape:
            found = f"{list(self.base.shape)} and its reference {list(self.ref.shape)}"
            raise UsageError(f"the guided model makes {found}; guide it by one of the same shape")
        if self.ref is not None and self.ref.classes not in (0, self.base.classes):
            found = f"{self.base.classes} classes and its reference {self.ref.classes}"
            raise UsageError(f"the guided model has {found}; guide it by one of the same classes, or without any")
        if self.ref is None:
            check_null(self.base, "guidance")
        if self.interval is not None:
            _check_interval(self.interval)

    def inner(self) -> tuple[Denoiser, ...]:
        return (self.base,) if self.ref is None else (self.base, self.ref)

    def with_inner(self, *inner: Denoiser) -> Guided:
        return replace(self, base=inner[0], ref=inner[1] if inner[1:] else None)

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
            if scale.numel() not in (1, len(d)):
                raise UsageError(f"guidance has {scale.numel()} scales for {len(d)} samples; give each its own, or all one")
            scale = scale.to(d).view(-1, *[1] * (d.ndim - 1))
        return d_ref + scale * (d - d_ref)

    def _twice(self, cond: Cond, x: Tensor) -> Cond:
        """The condition of the batch, then again with the null label."""
        null = torch.full((len(x),), self.classes, device=x.device)
        label = null if cond.label is None else cond.label
        return replace(cond.map(lambda v: torch.cat([v, v])), label=torch.cat([label, null.to(label.dtype)]))

    def _doubled(self, x: Tensor, sigma: Sigma, cond: Cond) -> tuple[Tensor, Sigma, Cond]:
        check_call(x, sigma, cond, self.shape, self.classes)  # which would speak of twice the samples if the base found it
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
        if self.ref is not None and not self.ref.classes:
            ref = replace(ref, passes=tuple(replace(p, cond=Unlabelled(p.cond)) for p in ref.passes))
        read = (*own.read, *(ref.read if self.ref is not None else ()), *((self.scale,) if isinstance(self.scale, Tensor) else ()))
        scale = self.scale.double().cpu().numpy() if isinstance(self.scale, Tensor) else self.scale
        if self.ref is not None:
            passes = (*_weighted(own.passes, scale), *_weighted(ref.passes, 1 - scale))
            return Unfolded(scale * own.skip + (1 - scale) * ref.skip, passes, read=read)
        (p, *more) = own.passes
        if not _stacks(cond) or more or p.cond is not own_cond:
            without = tuple(replace(p, cond=Unconditional(p.cond)) for p in own.passes)
            return Unfolded(own.skip, (*_weighted(own.passes, scale), *_weighted(without, 1 - scale)), read=read)
        weights = tuple(factor * weight for factor in (scale, 1 - scale) for weight in p.weights)
        return Unfolded(own.skip, (replace(p, weights=weights, cond=self._twice),), read=read)

    def _reference(self, x: Tensor, sigma: Sigma, cond: Cond) -> Tensor | None:
        """D_ref where it takes a call of its own; None where both branches share one doubled batch."""
        check_state(x, self.shape)
        check_cond(cond, len(x), x.device)
        if self.ref is not None:
            return self.ref(x, sigma, cond if self.ref.classes else replace(cond, label=None))
        if not _stacks(cond):
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


def _stacks(cond: Cond) -> bool:
    """Whether a condition and the same without what guidance drops go into one batch: there is a null label, and no null text or image."""
    return "label" in cond.drops and all(getattr(cond, name) is None for name in cond.drops if name != "label")


def _check_scale(scale: float | Tensor) -> None:
    """**Raises**: UsageError for a scale that is no number, also in a tensor on the host."""
    hint = "1 is no guidance, papers' w is scale - 1"
    if not isinstance(scale, Tensor):
        check_number("a guidance scale", scale, -math.inf, hint)
    elif scale.ndim > 1 or not scale.is_floating_point():
        raise UsageError(f"guidance scales are {scale.dtype} {list(scale.shape)}; give a float, or floats [B]; {hint}")
    elif scale.device.type == "cpu" and not scale.detach().isfinite().all():
        raise UsageError(f"guidance scales are finite, got {scale.tolist()}; {hint}")


def _check_interval(interval: tuple[float, float]) -> None:
    """**Raises**: UsageError unless it is two numbers, the lower one first."""
    try:
        low, high = (float(level) for level in interval)
    except (TypeError, ValueError):
        low = high = math.nan
    if not low < high:
        raise UsageError(f"a guidance interval is two levels (low, high), low below high, got {interval!r}; e.g. (0.3, 2.0)")


def guide(
    denoiser: Denoiser,
    scale: float | Tensor,
    ref: Denoiser | None = None,
    interval: tuple[float, float] | None = None,
) -> Denoiser:
    """D_ref + scale (D - D_ref); scale 1 returns the same denoiser. Papers' w is scale - 1.

    `ref` None is classifier-free guidance (the same denoiser without its label); another denoiser is autoguidance. Outside
    `interval` (low, high] of sigma the plain D is used at plain cost. A reference without classes is not told labels.
    **Shapes**: scale a float or [B]. **Raises**: UsageError for scales or an interval that are none, a reference that does not fit, and
    without one for a network that was never trained without labels.
    **Source**: arXiv 2207.12598 equation 6; 2404.07724 (interval); 2406.02507 (autoguidance).
    """
    if isinstance(scale, float | int) and scale == 1:
        return denoiser
    return Guided(denoiser, scale, ref, interval)
