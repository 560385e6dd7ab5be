"""Images that need not fit in memory: whatever has a length and a shape, and gives float32 in [-1, 1] when it is indexed."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from fewstep.errors import Unavailable

PART = 1000  # images read at once by whoever goes through all of them: 12 MB of 32x32 RGB
FEW = 100  # and by whoever computes more of them on the way, which stays small beside the set
PART_BYTES = 16 << 20  # and no more than these, as float32


class Images(Protocol):
    """Images [N, C, H, W], read when they are indexed (by a slice, or by an array of integers): a numpy array is one, too."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: slice | np.ndarray, /) -> np.ndarray: ...


@runtime_checkable
class Mapped(Protocol):
    """Images of which some may be mapped from files."""

    def let_go(self) -> None:
        """Give back the memory of what was read: it stays in the system's cache, and is mapped again when it is read again."""
        ...


def let_go(images: Images | np.ndarray) -> None:
    """`Mapped.let_go` of images that have it, and of arrays in memory maps that are only read."""
    if isinstance(images, Mapped):
        images.let_go()
    found: object = images
    while isinstance(found, np.ndarray):
        found, writable = found.base, found.flags.writeable
        if isinstance(found, mmap.mmap) and not writable and sys.platform == "linux":
            found.madvise(mmap.MADV_DONTNEED)


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

    def let_go(self) -> None:
        let_go(self.levels)


@dataclass(frozen=True, eq=False)
class Absent:
    """Images that are not on this machine: none, of a known shape [C, H, W]. **Raises**: Unavailable, saying why, when one is read."""

    row: tuple[int, ...]
    why: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (0, *self.row)

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        raise Unavailable(self.why)


def part_size(row: Sequence[int], most: int = PART, limit: int = PART_BYTES) -> int:
    """How many rows of this shape (an image's [C, H, W], say) are held at once: `most`, or as many as `limit` bytes hold as float32."""
    return max(1, min(most, limit // (4 * max(1, math.prod(row)))))


def parts(images: Images, size: int = PART) -> Iterator[np.ndarray]:
    """All images, `size` at a time. What was read of a file on the way is not kept in this process."""
    for first in range(0, len(images), size):
        yield images[first : first + size]
        let_go(images)


@dataclass(frozen=True, eq=False)
class Picked:
    """Those of some images that an index [N] names, in its order."""

    images: Images
    index: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.index), *self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        return self.images[self.index[index]]

    def let_go(self) -> None:
        let_go(self.images)


@dataclass(frozen=True, eq=False)
class Joined:
    """Images one after another: of several files, say."""

    pieces: tuple[Images, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.pieces[0].shape[1:])

    def __len__(self) -> int:
        return sum(len(piece) for piece in self.pieces)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        if not isinstance(index, slice) and np.ndim(index) == 0:
            return self[np.atleast_1d(index)][0]
        rows = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index)
        rows = np.flatnonzero(rows) if rows.dtype == bool else np.where(rows < 0, rows + len(self), rows)
        first, found, places = 0, list[np.ndarray](), list[np.ndarray]()
        for piece in self.pieces:
            own = np.flatnonzero((rows >= first) & (rows < first + len(piece)))
            found.append(piece[rows[own] - first])
            places.append(own)
            first += len(piece)
        order = np.concatenate(places)
        if len(order) != len(rows):
            raise IndexError(f"image {rows[(rows < 0) | (rows >= len(self))][0]} of {len(self)}")
        together = np.concatenate([part for part in found if len(part)] or found[:1])
        return together if np.array_equal(order, np.arange(len(order))) else together[np.argsort(order)]

    def let_go(self) -> None:
        for piece in self.pieces:
            let_go(piece)


def pixel_std(images: Images, leaf: int = 1 << 19) -> float:
    """The standard deviation of all pixels about their common mean, in float64, `leaf` pixels at a time.

    It adds up in the order of NumPy's pairwise summation, so that it is `images.astype(np.float64).std()` to the last bit.
    """
    each = int(np.prod(images.shape[1:]))
    count = len(images) * each

    def read(first: int, last: int) -> np.ndarray:
        start = first // each
        rows = images[start : -(-last // each)].reshape(-1)
        return rows[first - start * each : last - start * each].astype(np.float64)

    def total(first: int, size: int, mean: float | None) -> float:
        if size > leaf:
            half = size // 2
            half -= half % 8
            return total(first, half, mean) + total(first + half, size - half, mean)
        values = read(first, first + size)
        let_go(images)
        return np.add.reduce(values if mean is None else (values - mean) ** 2)

    mean = total(0, count, None) / count
    return float(np.sqrt(total(0, count, mean) / count))


def class_means(images: Images, labels: np.ndarray, classes: int) -> np.ndarray:
    """The mean image of each of `classes` classes, [classes, C, H, W]; of a class without images NaN. Added up image by image."""
    sums: dict[int, np.ndarray] = {}
    for i, part in enumerate(parts(images)):
        own = labels[i * PART : i * PART + len(part)]
        for c in np.unique(own).tolist():
            rows = part[own == c]
            sums[c] = np.add.reduce(np.concatenate([sums[c][None], rows]) if c in sums else rows)
    counts = np.bincount(labels, minlength=classes)
    nothing = np.full(images.shape[1:], np.nan, np.float32)
    return np.stack([(sums[c] / np.float64(counts[c])).astype(sums[c].dtype) if c in sums else nothing for c in range(classes)])
