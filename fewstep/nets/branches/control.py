"""ControlNet's branch: a copy of encoder and middle whose maps are added to the network's through convolutions that start at zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.checks import check_count, check_number
from fewstep.cond import Cond
from fewstep.errors import UsageError
from fewstep.nets.branches.control_diffusers import DiffusersControl, control_net
from fewstep.nets.encoding import Context, Encoding, joinable
from fewstep.nets.published.diffusers_text_unet import DiffusersTextUNet
from fewstep.nets.unet import zero_init
from fewstep.plugins import register


def hint_layers(channels: int, widths: Sequence[int], width: int) -> nn.Sequential:
    """From a picture to what is added to the first map: a convolution, two for each further width of which the second halves, and one of
    zeros, SiLU between them. **Source**: arXiv 2302.05543, 3.3."""
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1), nn.SiLU()]
    for narrow, wide in pairwise(widths):
        layers += [nn.Conv2d(narrow, narrow, 3, padding=1), nn.SiLU(), nn.Conv2d(narrow, wide, 3, padding=1, stride=2), nn.SiLU()]
    return nn.Sequential(*layers, zero_init(nn.Conv2d(widths[-1], width, 3, padding=1)))


class Control(nn.Module):
    """h_i + scale Z_i(h_i') for every map that the decoder reads: h' of the copied encoder on conv_in(x) + hint(c), Z zero at first.

    **Source**: arXiv 2302.05543, section 3.
    """

    once = False

    def __init__(self, encoder: nn.Module, hint: nn.Module, widths: Sequence[int], scale: float, factor: int) -> None:
        super().__init__()
        self.encoder, self.hint, self.scale, self.factor = encoder, hint, scale, factor
        self.zeros = nn.ModuleList(zero_init(nn.Conv2d(width, width, 1)) for width in widths)

    def forward(self, picture: Tensor, x: Tensor, c_noise: Tensor, cond: Cond) -> tuple[Tensor, ...]:
        encoder: Any = self.encoder
        maps = encoder.encode(x, encoder.context(x, c_noise, cond), hint=self.hint(picture))
        return tuple(self.scale * zero(h) for zero, h in zip(self.zeros, maps, strict=True))

    def join(self, base: Encoding, x: Tensor, context: Context, made: Sequence[Tensor]) -> list[Tensor]:
        return [h + own for h, own in zip(base.encode(x, context), made, strict=True)]


@register("branch", "control", "arXiv 2302.05543")
@dataclass(frozen=True)
class ControlBranch:
    """ControlNet's construction; of a `UNet2DConditionModel` diffusers' own ControlNetModel.

    `widths` are those of the picture's convolutions: every one after the first halves it, so the picture is 2^(widths - 1) times larger
    than the network's images, and of their size by default. `conditioning_scale` is a factor of all that is added.
    **Raises**: UsageError for widths that are none, and for a network without encoder.
    """

    widths: tuple[int, ...] = (16,)
    conditioning_scale: float = 1.0
    version: int = 1

    def __post_init__(self) -> None:
        check_count("the number of widths of branch control", len(self.widths), 1, "e.g. widths=(16,) for pictures of the images' size")
        for width in self.widths:
            check_count("each of the widths of branch control", width, 1, "e.g. widths=(16, 32)")
        check_number("conditioning_scale of branch control", self.conditioning_scale, 0.0, "1 is what it is trained with")

    def __call__(self, base: nn.Module, channels: int) -> Control | DiffusersControl:
        net = joinable(base, "branch control")
        if not channels:
            raise UsageError("branch control reads a picture, and channels is 0; give it those of the task's pictures, e.g. 3")
        if isinstance(base, DiffusersTextUNet):
            return DiffusersControl(control_net(base, channels, tuple(self.widths)), base, self.conditioning_scale)
        widths = net.maps.widths
        hint = hint_layers(channels, self.widths, widths[0])
        made = Control(net.encoder(), hint, widths, float(self.conditioning_scale), 2 ** (len(self.widths) - 1))
        return made.to(memory_format=torch.channels_last)
