"""Rows that need not fit in memory: how a metric goes through them, a block at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fewstep.data.arrays import Images, part_size, parts

HELD = 32 << 20  # bytes of rows that are simply read: 2,000 features of Inception's 2,048
BLOCK_BYTES = 4 << 20  # of a block as float32: sums are of float64, and several of them are held at once
BLOCK = 1024  # images that an extractor sees at once: whole batches of ours, so that features do not depend on it


def blocks(rows: Images, most: int = 1000) -> Iterator[np.ndarray]:
    """All rows, so many at a time that arithmetic in float64 takes little memory. Equal shapes have equal blocks."""
    return parts(rows, block_size(rows, most))


def block_size(rows: Images, most: int = 1000) -> int:
    """How many rows `blocks` gives at once."""
    return part_size(rows.shape[1:], most, BLOCK_BYTES)


def held(rows: Images, itemsize: int = 8) -> bool:
    """Whether the rows fit in memory with numbers of so many bytes."""
    return itemsize * int(np.prod(rows.shape, dtype=np.int64)) <= HELD


def within_reach(rows: Images) -> Images:
    """The rows themselves where they fit in memory, to be read once; as they are where they do not."""
    return rows[:] if held(rows) else rows


def finite(features: np.ndarray) -> np.ndarray:
    """Features [N, d] as they are. **Raises**: FloatingPointError for NaN or infinity."""
    if not np.isfinite(features).all():
        raise FloatingPointError("features hold NaN or infinity: the images or the extractor's weights are broken")
    return features


def flat(images: np.ndarray) -> np.ndarray:
    """Images [N, C, H, W] as rows [N, C H W] of float64."""
    return images.reshape(len(images), -1).astype(np.float64)
