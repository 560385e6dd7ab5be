"""Super-resolution of images that were made smaller by bicubic resampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.checks import check_count
from fewstep.data.degradation import Told
from fewstep.errors import UsageError
from fewstep.plugins import register

FIXED = 1 << 22  # Pillow's weights are multiples of 1 / FIXED
TIE = 1e-4  # of a level: halves are rounded up, whatever the last bits of a float32


def resized(images: Tensor, size: Sequence[int], mode: str = "bicubic") -> Tensor:
    """Images [B, C, H, W] at another size: bicubic (a = -1/2) or bilinear with the filter widened by the factor when they get smaller,
    weights renormalised at the edges, as Pillow does to pictures of floats; `area` averages."""
    if mode == "area":
        return F.interpolate(images, size=tuple(size), mode="area")
    return F.interpolate(images, size=tuple(size), mode=mode, antialias=True)


def rounded_levels(images: Tensor) -> Tensor:
    """Images in [-1, 1] as 8-bit files hold them."""
    return levels_of(images) / 127.5 - 1


def levels_of(images: Tensor) -> Tensor:
    """The levels 0 to 255 of images in [-1, 1], in their own dtype."""
    return ((images.clamp(-1, 1) + 1) * 127.5 + (0.5 + TIE)).floor().clamp(max=255)


@cache
def _weights(old: int, new: int) -> Tensor:
    """Pillow's bicubic weights of rows of `old` pixels at `new` ones, times FIXED, rounded half away from zero: integers as float64."""
    wide = max(old / new, 1.0)
    centre = (torch.arange(new, dtype=torch.float64)[:, None] + 0.5) * (old / new)
    at = torch.arange(old, dtype=torch.float64)[None]
    first, last = (centre - 2 * wide + 0.5).clamp(min=0).floor(), (centre + 2 * wide + 0.5).floor()
    x = ((at - centre + 0.5) / wide).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    found = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x))) * ((at >= first) & (at < last))
    fixed = found / found.sum(1, keepdim=True) * FIXED
    return fixed.sign() * (fixed.abs() + 0.5).floor()


def resized_levels(images: Tensor, size: Sequence[int]) -> Tensor:
    """Images in [-1, 1], in 8 bits, resized bicubically: square ones to the very levels that Pillow makes of such files.

    Columns first, rounded and clipped, then rows (of some tall pictures Pillow takes rows first), with weights that are integers over
    FIXED: sums are exact, on every device.
    """
    levels = levels_of(images).double()
    for axis, new in ((3, int(size[1])), (2, int(size[0]))):
        if new != (old := images.shape[axis]):
            weights = _weights(old, new).to(levels.device)
            total = levels @ weights.T if axis == 3 else weights @ levels
            levels = torch.floor(total / FIXED + 0.5).clamp(0, 255)
    return (levels / 127.5 - 1).to(images.dtype)


def shrunk(shape: Sequence[int], factor: int) -> tuple[int, ...]:
    """The shape [C, H, W] of images so many times smaller. **Raises**: UsageError where that is no whole number of pixels."""
    if any(n % factor for n in shape[1:]):
        raise UsageError(f"images of {shape[1]} x {shape[2]} are no whole number of pixels {factor} times smaller; crop them")
    return (shape[0], *(n // factor for n in shape[1:]))


@register("degradation", "bicubic_x2", "none (the common case)", factor=2)
@register("degradation", "bicubic_x4", "none (the common case)", factor=4)
@dataclass(frozen=True)
class Bicubic:
    """An image `factor` times smaller, enlarged to its own size again, both times to 8 bits as Pillow does; seeds change nothing."""

    factor: int = 4
    version: int = 1

    def __post_init__(self) -> None:
        check_count("the factor of super-resolution", self.factor, 2, "e.g. factor=4")

    def channels(self, shape: Sequence[int]) -> int:
        return shrunk(shape, self.factor)[0]

    def small(self, images: Tensor, seeds: Tensor) -> Tensor:
        """The small image, in 8 bits."""
        return resized_levels(images, shrunk(images.shape[1:], self.factor)[1:])

    def __call__(self, images: Tensor, seeds: Tensor) -> Told:
        return Told(resized_levels(self.small(images, seeds), images.shape[2:]))
