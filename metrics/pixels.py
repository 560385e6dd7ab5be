"""The field's 8-bit write-out of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fewstep.data.arrays import Images, let_go
from metrics.ranges import check_floats

LEVELS = (np.arange(256, dtype=np.float64) / 127.5 - 1).astype(np.float32)  # of 8 bits, as floats


def to_uint8(images: np.ndarray) -> np.ndarray:
    """The field's write-out of images in [-1, 1]: floor(clip(127.5 x + 128, 0, 255)), as uint8 of the same shape.

    **Raises**: FloatingPointError for NaN or infinity, which a clip would hide; UsageError for images that are no floats.
    **Source**: EDM's `generate.py` (arXiv 2206.00364); ADM (arXiv 2105.05233) writes (x + 1) 127.5, half a level lower.
    """
    check_floats(images)
    broken = int((~np.isfinite(images).all(axis=tuple(range(1, images.ndim)))).sum())
    if broken:
        raise FloatingPointError(f"{broken} of {len(images)} images hold NaN or infinity: the sampler or its student diverged")
    levels = 127.5 * images
    levels += 128
    return np.clip(levels, 0, 255, out=levels).astype(np.uint8)


def quantise(images: np.ndarray) -> np.ndarray:
    """Images as a reader of the written files sees them: u / 127.5 - 1 for u = `to_uint8(images)`, float32.

    Idempotent, and the identity on 8-bit data sets. Samples, the teacher's solutions and real images all go through it, so that no
    metric can see a difference that a file would not hold. **Raises**: FloatingPointError for NaN or infinity.
    """
    return LEVELS[to_uint8(images)]


@dataclass(frozen=True, eq=False)
class Seen:
    """Images as a function of them leaves them, each when it is read."""

    images: Images
    by: Callable[[np.ndarray], np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.images.shape

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        return self.by(self.images[index])

    def let_go(self) -> None:
        let_go(self.images)


def quantised(images: Images) -> Images:
    """The images after `quantise`: now where they are in memory, else when they are read."""
    return quantise(images) if isinstance(images, np.ndarray) else Seen(images, quantise)
