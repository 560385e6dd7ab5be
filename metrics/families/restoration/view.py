"""What is compared of two images: which channels, without which pixels; and means over conditions with their standard errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fewstep.checks import check_count
from fewstep.data.arrays import Images, let_go
from fewstep.errors import Unavailable, UsageError, near_misses
from metrics.intervals import mean_and_error
from metrics.metric import Evidence
from metrics.streaming import block_size

CHANNELS = ("rgb", "y")
LUMA = np.array([65.481, 128.553, 24.966]) / 255  # of red, green and blue, in levels


def luma(levels: np.ndarray, rounded: bool = False) -> np.ndarray:
    """Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255 of levels in 0 to 255: 16 to 235. [B, 3 or 1, H, W] -> [B, 1, H, W].

    BT.601 in limited range, as MATLAB's rgb2ycbcr has it, which super-resolution is measured with; `rounded` to whole levels, as there of
    8-bit images. A grey image is one whose three channels are equal.
    """
    weights = LUMA if levels.shape[1] == 3 else LUMA.sum(keepdims=True)
    y = 16 + np.tensordot(levels, weights, (1, 0))[:, None]
    return np.rint(y) if rounded else y


@dataclass(frozen=True)
class View:
    """The part of images that a metric compares: `channels` (`rgb` as they are, or `y`, see `luma`), sides cut to a multiple of `crop` on
    the right and below (0: not), then `border` pixels shaved from each side.

    **Raises**: UsageError for other values; Unavailable for images of which nothing is left.
    """

    channels: str = "rgb"
    border: int = 0
    crop: int = 0
    rounded: bool = False

    def __post_init__(self) -> None:
        if self.channels not in CHANNELS:
            raise UsageError(f"channels are {' or '.join(CHANNELS)}, got '{self.channels}'{near_misses(self.channels, CHANNELS)}")
        for name in ("border", "crop"):
            check_count(name, getattr(self, name), 0, f"it is a number of pixels, e.g. {name}=4")

    def cut(self, images: np.ndarray, least: int = 1) -> np.ndarray:
        """Images or masks [B, C, H, W] without what is not compared; at least `least` pixels have to be left on each side."""
        high, wide = (n - n % self.crop if self.crop else n for n in images.shape[2:])
        kept = images[:, :, self.border : high - self.border, self.border : wide - self.border]
        if min(high, wide) - 2 * self.border < least:
            of = " x ".join(map(str, images.shape[2:]))
            raise Unavailable(
                f"images of {of} with border={self.border} crop={self.crop} have less than {least} pixels left on a side, which it needs"
            )
        return kept

    def __call__(self, levels: np.ndarray, least: int = 1) -> np.ndarray:
        """**Shapes**: levels [B, C, H, W] in 0 to 255 -> [B, c, h, w]."""
        kept = self.cut(levels, least)
        return luma(kept, self.rounded) if self.channels == "y" else kept

    def told(self) -> dict[str, object]:
        """What a protocol says."""
        own = {"channels": self.channels, "border": self.border, "crop": self.crop}
        return {**own, "rounded": self.rounded} if self.channels == "y" else own


def levels_of(images: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as levels in 0 to 255, float64: whole ones of images that `quantise` left."""
    levels = (images.astype(np.float64) + 1) * 127.5
    near = np.rint(levels)
    return np.where(np.abs(levels - near) < 1e-4, near, levels)  # float32 holds a level to 1e-5


def together(*rows: Images) -> Iterator[tuple[np.ndarray, ...]]:
    """The same rows of each, as many at a time as are small of all."""
    size = min(map(block_size, rows))
    for first in range(0, len(rows[0]), size):
        yield tuple(own[first : first + size] for own in rows)
        for own in rows:
            let_go(own)


@dataclass(frozen=True)
class OverConditions:
    """A mean over conditions of what their samples have in the mean, and its standard error: the spread of conditions over the root of
    their number, None of fewer than two or of values that are all alike."""

    value: float
    std_error: float | None
    conditions: int
    left_out: int = 0

    def told(self) -> dict[str, object]:
        """What a protocol says."""
        without = {"left_out": self.left_out} if self.left_out else {}
        return {"conditions": self.conditions, "std_error": "over conditions, the samples of one averaged first", **without}


def over_conditions(values: np.ndarray, evidence: Evidence) -> OverConditions:
    """Of one value for each sample [N]; samples of one true image are one condition (`Evidence.groups`). Of a masked array the samples are
    left out that have no value: nothing of them is compared.

    **Raises**: FloatingPointError for values that are not finite, Unavailable where no sample has one.
    """
    kept = ~np.ma.getmaskarray(values)
    if not kept.any():
        raise Unavailable("no mask leaves anything to compare; use a smaller border, or masks that hide more")
    values, groups = np.ma.getdata(values)[kept], None if evidence.groups is None else evidence.groups[kept]
    if not np.isfinite(values).all():
        raise FloatingPointError("some samples have no finite value: they or the true images hold NaN or infinity")
    means = values
    if groups is not None:
        _, place, counts = np.unique(groups, return_inverse=True, return_counts=True)
        means = np.bincount(place, values) / counts
    value, error = mean_and_error(means) if len(means) > 1 else (float(means[0]), None)
    return OverConditions(value, error, len(means), int((~kept).sum()))
