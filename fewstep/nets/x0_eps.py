"""A network that predicts both the clean data and the noise, and weighs them by the noise level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from fewstep.cond import NULL, Cond
from fewstep.errors import UsageError
from fewstep.nets.encoding import Context, Maps, both_ways
from fewstep.nets.unet import UNet
from fewstep.plugins import register
from fewstep.schedule import Cosine

OWN = ("channels", "blocks", "emb", "dropout", "scalars")  # what a UNet inside may be given


@register("network", "x0_eps", "arXiv 2202.00512")
class X0Eps(nn.Module):
    """F = s^2 x~ - a s e~ of a `UNet` with two outputs x~ and e~, on the cosine schedule: the form `x0_eps` of `ProcessPrecond`.

    D = s^2 x~ + a (z - s e~) then weighs the two estimates of x0, x~ and (z - s e~) / a, by s^2 and a^2. c_noise [B] is native time
    (time_scale 1), from which the levels a and s are made; all else as in `UNet`. **Source**: arXiv 2202.00512, section 4.
    """

    form = "x0_eps"
    version: ClassVar[int] = 1  # of what the same weights compute

    def __init__(self, shape: Sequence[int], classes: int, unet: Mapping[str, Any]) -> None:
        super().__init__()
        if not isinstance(unet, Mapping) or not set(unet) <= set(OWN):
            raise UsageError(f"unet holds options of a UNet by name ({', '.join(OWN)}), got {unet!r}; e.g. {{'channels': (32, 64)}}")
        self.unet = UNet(shape, classes, **unet, outputs=2)
        self.angles = tuple(math.atan(float(sigma)) for sigma in Cosine().sigma([0.0, 1.0]))  # arctan(sigma), linear in t

    @property
    def feature_size(self) -> int:
        return self.unet.feature_size

    @property
    def emb_channels(self) -> int:
        return self.unet.emb_channels

    @property
    def embed_scalars(self) -> nn.ModuleDict:
        return self.unet.embed_scalars

    @property
    def shape(self) -> tuple[int, ...]:
        return self.unet.shape

    @property
    def classes(self) -> int:
        return self.unet.classes

    @property
    def maps(self) -> Maps:
        return self.unet.maps

    def context(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Context:
        return replace(self.unet.context(x, c_noise, cond), time=c_noise)

    def encode(self, x: Tensor, context: Context, hint: Tensor | None = None, added: Sequence[Tensor] = ()) -> list[Tensor]:
        return self.unet.encode(x, context, hint, added)

    def decode(self, maps: Sequence[Tensor], context: Context) -> Tensor:
        both, time = self.unet.decode(maps, context), context.time
        assert time is not None
        first, last = self.angles
        angle = (first + (last - first) * time.double()).view(-1, *[1] * (both.ndim - 1))
        a, s = angle.cos().to(both), angle.sin().to(both)
        clean, eps = both.chunk(2, dim=1)
        return s * (s * clean - a * eps)

    def encoder(self, channels: int = 0) -> UNet:
        return self.unet.encoder(channels)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond = NULL, features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        return both_ways(self, x, c_noise, cond, features)
