"""Super-resolution of images that were made smaller by bicubic resampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from fewstep.checks import check_count
from fewstep.data.degradation import Told
from fewstep.errors import UsageError
from fewstep.plugins import register

TIE = 1e-3  # of a level: halves, which averages of 8-bit levels often are, are rounded up whatever the last bits of a sum


def resized(images: Tensor, size: Sequence[int], mode: str = "bicubic") -> Tensor:
    """Images [B, C, H, W] at another size: bicubic (a = -1/2) or bilinear with the filter widened by the factor when they get smaller,
    weights renormalised at the edges, as Pillow does to pictures of floats; `area` averages."""
    if mode == "area":
        return F.interpolate(images, size=tuple(size), mode="area")
    return F.interpolate(images, size=tuple(size), mode=mode, antialias=True)


def rounded_levels(images: Tensor) -> Tensor:
    """Images in [-1, 1] as 8-bit files hold them; halves of a level are rounded up, as Pillow does."""
    return ((images.clamp(-1, 1) + 1) * 127.5 + (0.5 + TIE)).floor().clamp(max=255) / 127.5 - 1


def shrunk(shape: Sequence[int], factor: int) -> tuple[int, ...]:
    """The shape [C, H, W] of images so many times smaller. **Raises**: UsageError where that is no whole number of pixels."""
    if any(n % factor for n in shape[1:]):
        raise UsageError(f"images of {shape[1]} x {shape[2]} are no whole number of pixels {factor} times smaller; crop them")
    return (shape[0], *(n // factor for n in shape[1:]))


@register("degradation", "bicubic_x2", "none (the common case)", factor=2)
@register("degradation", "bicubic_x4", "none (the common case)", factor=4)
@dataclass(frozen=True)
class Bicubic:
    """An image `factor` times smaller, in 8 bits, enlarged to its own size again; seeds change nothing."""

    factor: int = 4
    version: int = 1

    def __post_init__(self) -> None:
        check_count("the factor of super-resolution", self.factor, 2, "e.g. factor=4")

    def channels(self, shape: Sequence[int]) -> int:
        return shrunk(shape, self.factor)[0]

    def small(self, images: Tensor, seeds: Tensor) -> Tensor:
        """The small image, in 8 bits."""
        return rounded_levels(resized(images, shrunk(images.shape[1:], self.factor)[1:]))

    def __call__(self, images: Tensor, seeds: Tensor) -> Told:
        return Told(rounded_levels(resized(self.small(images, seeds), images.shape[2:])))
