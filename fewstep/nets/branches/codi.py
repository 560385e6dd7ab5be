"""CoDi's branch: a copy of the network's encoder that reads the picture, joined to it by learnable scalars that start at zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.cond import NULL, Cond
from fewstep.errors import UsageError, near_misses
from fewstep.nets.encoding import Context, Encoding, Maps, joinable
from fewstep.plugins import register

JOINS = ("interpolate", "additive")
SCALARS = ("level", "one")


class ConditionalEncoder(nn.Module):
    """h' = (1 - mu) h + mu h_c (or h + mu h_c) of every map that the decoder reads, h_c those of an encoder on the picture.

    **Shapes**: `mu` [levels], or [1]. **Source**: arXiv 2310.01407, equation 10.
    """

    def __init__(self, encoder: nn.Module, maps: Maps, join: str, each: bool, told: bool) -> None:
        super().__init__()
        self.encoder, self.additive, self.once, self.factor = encoder, join == "additive", not told, 1
        self.of = tuple(maps.level(index) if each else 0 for index in range(len(maps.widths)))
        self.mu = nn.Parameter(torch.zeros(max(self.of) + 1))

    def forward(self, picture: Tensor, x: Tensor, c_noise: Tensor, cond: Cond) -> tuple[Tensor, ...]:
        encoder: Any = self.encoder
        if self.once:
            c_noise, cond = torch.zeros(len(picture), device=picture.device), NULL
        return tuple(encoder.encode(picture, encoder.context(picture, c_noise, cond)))

    def join(self, base: Encoding, x: Tensor, context: Context, made: Sequence[Tensor]) -> list[Tensor]:
        mus = self.mu.unbind()
        both = [(mus[at], h, own) for at, h, own in zip(self.of, base.encode(x, context), made, strict=True)]
        if self.additive:
            return [h + mu * own for mu, h, own in both]
        return [(1 - mu) * h + mu * own for mu, h, own in both]


@register("branch", "codi_told", "arXiv 2310.01407", told=True)
@register("branch", "codi_one", "arXiv 2310.01407", mu="one")
@register("branch", "codi_additive", "arXiv 2310.01407", join="additive")
@register("branch", "codi", "arXiv 2310.01407")
@dataclass(frozen=True)
class CoDi:
    """The network's encoder once more, on the picture through an input convolution of its own, joined by equation 10.

    `join`: `interpolate` is the equation, `additive` (h + mu h_c) what the author's drawing and all released code have. `mu`: a scalar for
    each `level`, since the drawing has one at every level of the encoder (the text leaves it open), or `one` in all. `told`: the encoder
    is told noise level, label and text like the network's; without, h_c is a function of the picture alone, as the equation has it, and
    is made once for a trajectory (the blocks that read a level are told 0, and no label).
    **Raises**: UsageError for another join or mu, and for a network without encoder.
    """

    join: str = "interpolate"
    mu: str = "level"
    told: bool = False
    version: int = 1

    def __post_init__(self) -> None:
        for what, value, known in (("join", self.join, JOINS), ("mu", self.mu, SCALARS)):
            if value not in known:
                raise UsageError(f"{what} of branch codi is {' or '.join(known)}, got '{value}'{near_misses(value, known)}")

    def __call__(self, base: nn.Module, channels: int) -> ConditionalEncoder:
        net = joinable(base, "branch codi")
        if not channels:
            raise UsageError("branch codi reads a picture, and channels is 0; give it those of the task's pictures, e.g. 3")
        return ConditionalEncoder(net.encoder(channels), net.maps, self.join, self.mu == "level", self.told)
