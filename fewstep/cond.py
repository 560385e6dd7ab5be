"""Conditions travel as one frozen value, bound to the denoiser call and never to a solver."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

FIELDS = ("label", "text", "image", "mask")


@dataclass(frozen=True)
class Cond:
    """What a denoiser may be conditioned on; `None` (or an absent scalar) means unconditional.

    **Shapes**: label [B] int64 class indices, where `classes` (one past the last) is the null label; text [B, L, E];
    image [B, C, H, W]; mask [B, 1, H, W], 1 where the image is hidden; each scalar [B]. **Units**: scalars carry what they name (guidance
    weight `w`, step count `steps`).
    `drops` names the fields that guidance leaves out: a task says so (super-resolution keeps its image).
    """

    label: Tensor | None = None
    text: Tensor | None = None
    image: Tensor | None = None
    mask: Tensor | None = None
    scalars: Mapping[str, Tensor] = field(default_factory=dict)
    drops: tuple[str, ...] = FIELDS

    def map(self, fn: Callable[[Tensor], Tensor]) -> Cond:
        """The condition with a function applied to every tensor."""

        def go(value: Tensor | None) -> Tensor | None:
            return None if value is None else fn(value)

        own = {name: go(getattr(self, name)) for name in FIELDS}
        return Cond(**own, scalars={k: fn(v) for k, v in self.scalars.items()}, drops=self.drops)

    def to(self, device: torch.device | str) -> Cond:
        return self.map(lambda v: v.to(device))

    def __getitem__(self, index) -> Cond:
        """The condition of some samples of the batch."""
        return self.map(lambda v: v[index])

    def names(self) -> tuple[str, ...]:
        """What there is, in the order of `tensors`."""
        own = [name for name in FIELDS if getattr(self, name) is not None]
        return (*own, *self.scalars)

    def tensors(self) -> list[Tensor]:
        """Every tensor of the condition."""
        return [value for value in (*(getattr(self, name) for name in FIELDS), *self.scalars.values()) if value is not None]

    def unconditional(self) -> Cond:
        """The condition without the fields of `drops`: the reference branch of classifier-free guidance. Scalars stay."""
        return replace(self, **dict.fromkeys(self.drops))

    def where(self, chosen: Tensor, other: Cond) -> Cond:
        """The condition with the fields of `drops` taken from another one for the samples chosen [B]."""

        def mixed(own: Tensor | None, theirs: Tensor | None) -> Tensor | None:
            if own is None or theirs is None:
                return own
            return torch.where(chosen.view(-1, *[1] * (own.ndim - 1)), theirs, own)

        return replace(self, **{name: mixed(getattr(self, name), getattr(other, name)) for name in self.drops})


NULL = Cond()
