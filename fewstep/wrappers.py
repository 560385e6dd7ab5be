"""Denoisers around denoisers: functions of D, and values bound to the scalars that a network reads. Guidance has a file of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.calls import check_call
from fewstep.checks import check_number
from fewstep.cond import NULL, Cond
from fewstep.denoiser import (
    Around,
    Denoiser,
    Jump,
    Level,
    Sigma,
    Unfolded,
    feature_size,
    jump_of,
    layers,
    unfold,
    unfold_jump,
    with_features,
)
from fewstep.errors import UsageError
from fewstep.plugins import register


@dataclass(frozen=True, eq=False)
class Mapped(Around):
    """A denoiser with a function applied to every D: clipping, dynamic thresholding. Named in the cell, never inside a solver."""

    base: Denoiser
    fn: Callable[[Tensor], Tensor]

    @property
    def features(self) -> int:
        return feature_size(self.base)

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        return self.fn(self.base(x, sigma, cond))

    def unfold(self, sigma: Level, cond: Cond) -> Unfolded | None:
        inner = unfold(self.base, sigma, cond)
        return None if inner is None else replace(inner, maps=(*inner.maps, self.fn))

    def with_features(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> tuple[Tensor, Tensor]:
        d, features = with_features(self.base, x, sigma, cond)
        return self.fn(d), features

    def wrapped_jump(self) -> None:
        if jump_of(self.base) is not None:
            raise UsageError("the jump of a flow map shows no D to clip or threshold; drop the mapping or use a solver that asks for D")


@dataclass(frozen=True)
class After:
    """The condition that a pass makes of one made before; equal for equal passes."""

    first: Callable[[Cond, Tensor], Cond]
    then: Callable[[Cond, Tensor], Cond]

    def __call__(self, cond: Cond, x: Tensor) -> Cond:
        return self.then(self.first(cond, x), x)


@dataclass(frozen=True, eq=False)
class WithScalars(Around):
    """A denoiser with values for scalars that its network reads (guidance weight `w`, step count `steps`), for all samples of a call."""

    base: Denoiser
    values: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            check_number(f"scalar '{name}'", value, -math.inf, "it is told to the network for every sample")

    @property
    def features(self) -> int:
        return feature_size(self.base)

    def bound(self, cond: Cond, x: Tensor) -> Cond:
        """The condition with the values [B], over any that it has."""
        filled = {name: torch.full((len(x),), value, device=x.device) for name, value in self.values.items()}
        return replace(cond, scalars={**cond.scalars, **filled})

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        check_call(x, sigma, cond, self.shape, self.classes)
        return self.base(x, sigma, self.bound(cond, x))

    def with_features(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> tuple[Tensor, Tensor]:
        check_call(x, sigma, cond, self.shape, self.classes)
        return with_features(self.base, x, sigma, self.bound(cond, x))

    def unfold(self, sigma: Level, cond: Cond) -> Unfolded | None:
        return self._bound(unfold(self.base, sigma, cond))

    def unfold_jump(self, sigma: Level, to: Level, cond: Cond) -> Unfolded | None:
        return self._bound(unfold_jump(self.base, sigma, to, cond))

    def _bound(self, inner: Unfolded | None) -> Unfolded | None:
        if inner is None:
            return None
        return replace(inner, passes=tuple(replace(p, cond=After(self.bound, p.cond)) for p in inner.passes))

    def wrapped_jump(self) -> Jump | None:
        """The base's jump under the same values."""
        inner = jump_of(self.base)
        if inner is None:
            return None
        return lambda x, sigma, sigma_to, cond: inner(x, sigma, sigma_to, self.bound(cond, x))


def without_picture(cond: Cond, x: Tensor) -> Cond:
    """The condition of a pass that is told no picture."""
    return cond.without_picture()


@dataclass(frozen=True, eq=False)
class Prior(Around):
    """The denoiser that a task of pictures starts from: it is not told them, and says how many `channels` they have, image and mask."""

    base: Denoiser
    channels: int

    @property
    def features(self) -> int:
        return feature_size(self.base)

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        return self.base(x, sigma, without_picture(cond, x))

    def with_features(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> tuple[Tensor, Tensor]:
        return with_features(self.base, x, sigma, without_picture(cond, x))

    def unfold(self, sigma: Level, cond: Cond) -> Unfolded | None:
        inner = unfold(self.base, sigma, without_picture(cond, torch.empty(0)))
        if inner is None:
            return None
        return replace(inner, passes=tuple(replace(p, cond=After(without_picture, p.cond)) for p in inner.passes))

    def wrapped_jump(self) -> None:
        if jump_of(self.base) is not None:
            raise UsageError("a two-time student is no prior of a task of pictures; give it a denoiser")


def picture_channels(denoiser: Denoiser) -> int:
    """The channels of the pictures that a task asks this denoiser by; 0 for one that is asked by none."""
    return next((layer.channels for layer in layers(denoiser) if isinstance(layer, Prior)), 0)


@register("wrapper", "dynamic_threshold", "arXiv 2205.11487")
def dynamic_threshold(d: Tensor, ratio: float = 0.995, floor: float = 1.0) -> Tensor:
    """D clipped to [-q, q] and divided by q = max(quantile(|D|, ratio), floor) of each sample. **Source**: arXiv 2205.11487, 2.3.

    **Raises**: UsageError for a ratio outside of 0 to 1, or a floor that is not above 0.
    """
    if not (0 <= ratio <= 1 and floor > 0):
        raise UsageError(f"dynamic thresholding has a ratio in 0 to 1 and a floor above 0, got {ratio} and {floor}; e.g. 0.995 and 1.0")
    q = torch.quantile(d.abs().flatten(1), ratio, dim=1).clamp(min=floor).view(-1, *[1] * (d.ndim - 1))
    return d.clamp(-q, q) / q


@register("wrapper", "clip", "arXiv 2006.11239")
def clip(d: Tensor) -> Tensor:
    """D clipped to [-1, 1], the range of images. **Source**: arXiv 2006.11239, released code (`clip_denoised`)."""
    return d.clamp(-1, 1)
