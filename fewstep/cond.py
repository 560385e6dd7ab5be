"""Conditions travel as one frozen value, bound to the denoiser call and never to a solver."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

FIELDS = ("label", "text", "image", "mask")
PICTURE = ("image", "mask")


@dataclass(frozen=True)
class Made:
    """What a network's branch made of a condition's picture once, for all of its calls: maps [B, ...], for that very module `by` alone."""

    by: object
    maps: tuple[Tensor, ...]


@dataclass(frozen=True)
class Cond:
    """What a denoiser may be conditioned on; `None` (or an absent scalar) means unconditional.

    **Shapes**: label [B] int64 class indices, where `classes` (one past the last) is the null label; text [B, L, E];
    image [B, C, H, W]; mask [B, 1, H, W], 1 where the image is hidden; each scalar [B]. **Units**: scalars carry what they name (guidance
    weight `w`, step count `steps`).
    `drops` names the fields that guidance leaves out: a task says so (super-resolution keeps its image). `made` is what networks made of
    the picture (see `fewstep.sampling.prepared`); it goes with the picture.
    """

    label: Tensor | None = None
    text: Tensor | None = None
    image: Tensor | None = None
    mask: Tensor | None = None
    scalars: Mapping[str, Tensor] = field(default_factory=dict)
    drops: tuple[str, ...] = FIELDS
    made: tuple[Made, ...] = ()

    def map(self, fn: Callable[[Tensor], Tensor]) -> Cond:
        """The condition with a function applied to every tensor."""

        def go(value: Tensor | None) -> Tensor | None:
            return None if value is None else fn(value)

        own = {name: go(getattr(self, name)) for name in FIELDS}
        made = tuple(Made(one.by, tuple(fn(v) for v in one.maps)) for one in self.made)
        return Cond(**own, scalars={k: fn(v) for k, v in self.scalars.items()}, drops=self.drops, made=made)

    def to(self, device: torch.device | str) -> Cond:
        return self.map(lambda v: v.to(device))

    def __getitem__(self, index) -> Cond:
        """The condition of some samples of the batch."""
        return self.map(lambda v: v[index])

    def names(self) -> tuple[str, ...]:
        """What there is, in the order of `tensors`."""
        own = [name for name in FIELDS if getattr(self, name) is not None]
        return (*own, *self.scalars, *(f"made {len(one.maps)}" for one in self.made))

    def tensors(self) -> list[Tensor]:
        """Every tensor of the condition."""
        given = [value for value in (*(getattr(self, name) for name in FIELDS), *self.scalars.values()) if value is not None]
        return [*given, *(value for one in self.made for value in one.maps)]

    def unconditional(self) -> Cond:
        """The condition without the fields of `drops`: the reference branch of classifier-free guidance. Scalars stay."""
        return replace(self, **dict.fromkeys(self.drops), made=self._made_without(self.drops))

    def _made_without(self, fields: Collection[str]) -> tuple[Made, ...]:
        """What was made of the picture, where none of these fields is of it."""
        return () if set(fields) & set(PICTURE) else self.made

    def without_picture(self) -> Cond:
        """The condition without its picture, and what was made of it."""
        return replace(self, image=None, mask=None, made=())

    def made_by(self, module: object) -> tuple[Tensor, ...] | None:
        """The maps that this very module made of the picture; None where it made none."""
        return next((one.maps for one in self.made if one.by is module), None)

    def with_made(self, by: object, maps: tuple[Tensor, ...]) -> Cond:
        """The condition with what a module made of its picture, instead of what it had made before."""
        return replace(self, made=(*(one for one in self.made if one.by is not by), Made(by, maps)))

    def where(self, chosen: Tensor, other: Cond) -> Cond:
        """The condition with the fields of `drops` taken from another one for the samples chosen [B]."""

        def mixed(own: Tensor | None, theirs: Tensor | None) -> Tensor | None:
            if own is None or theirs is None:
                return own
            return torch.where(chosen.view(-1, *[1] * (own.ndim - 1)), theirs, own)

        return replace(
            self, **{name: mixed(getattr(self, name), getattr(other, name)) for name in self.drops}, made=self._made_without(self.drops)
        )


NULL = Cond()


@runtime_checkable
class Preparing(Protocol):
    """A network with something to make of a condition's picture once, which all of its calls then read."""

    def prepared(self, cond: Cond) -> Cond: ...


def prepared_by(net: object, cond: Cond) -> Cond:
    """The condition with what a network makes of its picture once; itself for a network that makes nothing."""
    return net.prepared(cond) if isinstance(net, Preparing) else cond
