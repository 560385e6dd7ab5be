"""T2I-Adapter's branch: a small network on the picture, once per image, whose maps are added to the encoder's at every level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.checks import check_count
from fewstep.cond import Cond
from fewstep.errors import UsageError
from fewstep.nets.encoding import Context, Encoding, joinable
from fewstep.nets.unet import zero_init
from fewstep.plugins import register

LIGHT, FULL = "light_adapter", "full_adapter"


class Features(nn.Module):
    """h + Z_l(a_l) of the last map of each level before it is halved, a of diffusers' `T2IAdapter`; Z of zeros at the start, or no Z.

    **Source**: arXiv 2302.08453, section 3.2.
    """

    once = True

    def __init__(self, adapter: Any, levels: Sequence[int], factor: int, zero: bool) -> None:
        super().__init__()
        self.adapter, self.factor = adapter, factor
        self.zeros = nn.ModuleList(zero_init(nn.Conv2d(width, width, 1)) for width in levels) if zero else None

    def forward(self, picture: Tensor, x: Tensor, c_noise: Tensor, cond: Cond) -> tuple[Tensor, ...]:
        maps = self.adapter(picture)
        return tuple(maps if self.zeros is None else (zero(h) for zero, h in zip(self.zeros, maps, strict=True)))

    def join(self, base: Encoding, x: Tensor, context: Context, made: Sequence[Tensor]) -> list[Tensor]:
        return base.encode(x, context, added=made)


def adapter_of(levels: Sequence[int], channels: int, blocks: int, factor: int, light: bool) -> nn.Module:
    """diffusers' `T2IAdapter` with a map for each of these levels. The light one makes one more than it is given widths, as wide as the
    last: where the last two levels are not alike that one goes."""
    from diffusers.models.adapter import T2IAdapter

    alike = light and len(levels) > 1 and levels[-1] == levels[-2]
    widths = list(levels[:-1] if alike else levels)
    made = T2IAdapter(channels, widths, blocks, factor, LIGHT if light else FULL)
    made.adapter.body = nn.ModuleList(list(made.adapter.body)[: len(levels)])
    return made


@register("branch", "t2i", "arXiv 2302.08453")
@register("branch", "t2i_light", "arXiv 2302.08453", light=True, blocks=4)
@dataclass(frozen=True)
class T2I:
    """A T2I-Adapter of diffusers (`light`: its light one): pixels unshuffled by `factor`, how many times larger the picture is than the
    network's images, then `blocks` residual blocks a level.

    What it adds passes a 1 x 1 convolution of zeros, which the published ones have not (`zero` false: no identity at the start). It
    depends on the picture alone and runs once for a trajectory.
    **Raises**: UsageError for counts that are none, widths too small for the light one, and a network without encoder.
    """

    blocks: int = 2
    factor: int = 1
    zero: bool = True
    light: bool = False
    version: int = 1

    def __post_init__(self) -> None:
        for what, value in (("blocks", self.blocks), ("factor", self.factor)):
            check_count(f"{what} of a T2I-Adapter", value, 1, "e.g. blocks=2 and factor=1 for pictures of the images' size")

    def __call__(self, base: nn.Module, channels: int) -> Features:
        levels = joinable(base, "branch t2i").maps.levels
        if not channels:
            raise UsageError("branch t2i reads a picture, and channels is 0; give it those of the task's pictures, e.g. 3")
        if self.light and min(levels) < 4:
            raise UsageError(f"branch t2i_light has a quarter of each level's channels inside, and the network has {levels}; use t2i")
        adapter = adapter_of(levels, channels, self.blocks, self.factor, self.light)
        return Features(adapter, levels, self.factor, self.zero).to(memory_format=torch.channels_last)
