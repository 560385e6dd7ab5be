"""The picture beside the network's own input: an input convolution that reads it too, with weights that start at zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.cond import Cond
from fewstep.errors import UsageError
from fewstep.nets.encoding import Context, Encoding, joinable
from fewstep.nets.unet import zero_init
from fewstep.plugins import register


class Beside(nn.Module):
    """conv_in(x) + W c, which is conv_in widened to [x, c]: the picture's share of it is a convolution of its own, without bias.

    So what the network computes of x alone stays the same to the bit. **Source**: arXiv 2111.05826, 2.2; arXiv 2211.09800, 3.2.
    """

    once, factor = True, 1

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = zero_init(nn.Conv2d(channels, width, 3, padding=1, bias=False)).to(memory_format=torch.channels_last)

    def forward(self, picture: Tensor, x: Tensor, c_noise: Tensor, cond: Cond) -> tuple[Tensor, ...]:
        return (self.conv(picture),)

    def join(self, base: Encoding, x: Tensor, context: Context, made: tuple[Tensor, ...]) -> list[Tensor]:
        return base.encode(x, context, hint=made[0])


@register("branch", "concat", "arXiv 2111.05826, 2211.09800")
@dataclass(frozen=True)
class Concat:
    """The channels of the picture beside those of the network's input, as in Palette and InstructPix2Pix; new weights are zero.

    **Raises**: UsageError for a network without encoder.
    """

    version: int = 1

    def __call__(self, base: nn.Module, channels: int) -> Beside:
        net = joinable(base, "branch concat")
        if not channels:
            raise UsageError("branch concat reads a picture, and channels is 0; give it those of the task's pictures, e.g. 3")
        return Beside(channels, net.maps.widths[0])
