"""Images that need not fit in memory: whatever has a length and a shape, and gives float32 in [-1, 1] when it is indexed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

PART = 1000  # images read at once by whoever goes through all of them: 12 MB of 32x32 RGB
PART_BYTES = 16 << 20  # and no more than these, as float32


class Images(Protocol):
    """Images [N, C, H, W], read when they are indexed (by a slice, or by an array of integers): a numpy array is one, too."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: slice | np.ndarray, /) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Scaled:
    """Levels in their own dtype (uint8 in a memory map, say) as images: level / unit + shift, in float32.

    **Shapes**: levels [N, C, H, W]. **Units**: images in [-1, 1]; 8-bit files have 127.5 levels to the unit.
    """

    levels: np.ndarray
    unit: float = 127.5
    shift: float = -1.0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.levels.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        return self.levels[index].astype(np.float32) / np.float32(self.unit) + np.float32(self.shift)


def part_size(row: Sequence[int], most: int = PART, limit: int = PART_BYTES) -> int:
    """How many rows of this shape (an image's [C, H, W], say) are held at once: `most`, or as many as `limit` bytes hold as float32."""
    return max(1, min(most, limit // (4 * max(1, math.prod(row)))))


def parts(images: Images, size: int = PART) -> Iterator[np.ndarray]:
    """All images, `size` at a time."""
    for first in range(0, len(images), size):
        yield images[first : first + size]
