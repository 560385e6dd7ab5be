"""Image-to-image: guides that keep little of a photograph, as people draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.checks import check_count
from fewstep.data.degradation import Told
from fewstep.data.degradations.bicubic import rounded_levels
from fewstep.errors import UsageError
from fewstep.plugins import register

ROUNDS = 8  # of the search for the colours of an image


def smoothed(images: Tensor, size: int) -> Tensor:
    """Images [B, C, H, W] by the median of size x size pixels around each, their edges repeated: flat patches with sharp borders."""
    pad = size // 2
    wide = F.pad(images, (pad,) * 4, mode="replicate")
    patches = wide.unfold(2, size, 1).unfold(3, size, 1).flatten(4)
    return patches.median(dim=4).values


def few_colours(images: Tensor, count: int) -> Tensor:
    """Images [B, C, H, W] with at most `count` colours each: Lloyd's search from colours spread evenly over their brightness, in float64.

    No draw: the first colours are those at the quantiles (k + 1/2) / count of an image's brightness.
    """
    pixels = images.double().flatten(2).transpose(1, 2)  # [B, N, C]
    n = pixels.shape[1]
    order = pixels.mean(2).argsort(dim=1, stable=True)
    at = ((torch.arange(count, device=images.device) + 0.5) * n / count).long().clamp(max=n - 1)
    colours = pixels.gather(1, order[:, at, None].expand(-1, -1, pixels.shape[2]))
    nearest = _nearest(pixels, colours)
    for _ in range(ROUNDS):
        member = F.one_hot(nearest, count).to(pixels)  # [B, N, count]
        size = member.sum(1)[..., None]
        colours = torch.where(size > 0, member.transpose(1, 2) @ pixels / size.clamp(min=1), colours)
        nearest = _nearest(pixels, colours)
    found = colours.gather(1, nearest[..., None].expand(-1, -1, pixels.shape[2]))
    return found.transpose(1, 2).reshape(images.shape).to(images.dtype)


def _nearest(pixels: Tensor, colours: Tensor) -> Tensor:
    """The nearest of colours [B, K, C] to each of pixels [B, N, C]."""
    return ((colours**2).sum(2)[:, None] - 2 * pixels @ colours.transpose(1, 2)).argmin(2)


@register("degradation", "posterised", "arXiv 2108.01073 (guides), our own", colours=6, smooth=1)
@register("degradation", "strokes", "arXiv 2108.01073 (strokes from photographs)", colours=6, smooth=5)
@dataclass(frozen=True)
class FewColours:
    """A photograph of at most `colours` colours, each patch first smoothed by a median of `smooth` pixels (1: not); seeds change nothing.

    SDEdit's simulated strokes have a median of 23 pixels at 256 and six colours: about as large a share of 32 pixels is 3 to 5.
    **Source**: arXiv 2108.01073, appendix (stroke simulation), with our own search for the colours.
    """

    colours: int = 6
    smooth: int = 5
    version: int = 1

    def __post_init__(self) -> None:
        check_count("the number of colours", self.colours, 2, "e.g. colours=6")
        check_count("the size of the median", self.smooth, 1, "e.g. smooth=5; 1 for none")
        if self.smooth % 2 == 0:
            raise UsageError(f"the median is of an odd number of pixels, got smooth={self.smooth}; e.g. smooth=5")

    def channels(self, shape: Sequence[int]) -> int:
        return shape[0]

    def __call__(self, images: Tensor, seeds: Tensor) -> Told:
        if not len(images):
            return Told(images)
        flat = smoothed(images, self.smooth) if self.smooth > 1 else images
        return Told(rounded_levels(few_colours(flat, self.colours)))
