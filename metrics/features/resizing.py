"""The resizings that feature networks are fed through, each as a matrix: NumPy alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

CUBIC = -0.5  # Pillow's parameter of Keys' cubic


def tensorflow1(size: int, to: int) -> np.ndarray:
    """TensorFlow 1's bilinear: the source of output i is i * size / to, without half a pixel of offset; edges are clamped.

    Positions are float32, as there. **Source**: `resize_bilinear` of TensorFlow 1 with `align_corners=False`, in the FID graph.
    """
    place = np.arange(to, dtype=np.float32) * np.float32(size / to)
    below = np.floor(place).astype(np.int64)
    share = (place - below.astype(np.float32)).astype(np.float64)
    return _between(below, share, size)


def torch_bilinear(size: int, to: int) -> np.ndarray:
    """torch's `interpolate(mode="bilinear", align_corners=False)`: half a pixel of offset, no smoothing where it shrinks.

    Positions are float32, as there.
    """
    half = np.float32(0.5)
    place = np.maximum((np.arange(to, dtype=np.float32) + half) * np.float32(size / to) - half, 0)
    below = np.floor(place).astype(np.int64)
    return _between(below, (place - below.astype(np.float32)).astype(np.float64), size)


def _between(below: np.ndarray, share: np.ndarray, size: int) -> np.ndarray:
    matrix = np.zeros((len(below), size))
    rows = np.arange(len(below))
    np.add.at(matrix, (rows, np.minimum(below, size - 1)), 1 - share)
    np.add.at(matrix, (rows, np.minimum(below + 1, size - 1)), share)
    return matrix


def _keys(x: np.ndarray) -> np.ndarray:
    """Keys' cubic with parameter a: (a + 2) x^3 - (a + 3) x^2 + 1 up to 1, a (x^3 - 5 x^2 + 8 x - 4) up to 2."""
    x = np.abs(x)
    near, far = ((CUBIC + 2) * x - (CUBIC + 3)) * x**2 + 1, CUBIC * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def pillow_bicubic(size: int, to: int) -> np.ndarray:
    """Pillow's bicubic: Keys' cubic (a = -1/2), widened where it shrinks, cut off at the edges and made to sum to 1."""
    scale = size / to
    wide = max(scale, 1.0)
    matrix = np.zeros((to, size))
    for i in range(to):
        centre = (i + 0.5) * scale
        first, last = max(int(centre - 2 * wide + 0.5), 0), min(int(centre + 2 * wide + 0.5), size)
        weights = _keys((np.arange(first, last) - centre + 0.5) / wide)
        matrix[i, first:last] = weights / weights.sum()
    return matrix


RESIZERS = {"tensorflow1": tensorflow1, "torch_bilinear": torch_bilinear, "pillow_bicubic": pillow_bicubic}


@lru_cache(maxsize=32)
def resize_matrix(how: str, size: int, to: int) -> np.ndarray:
    """The [to, size] matrix A of a resizing: an image x becomes A x A' (of a square one)."""
    matrix = np.eye(size) if size == to else RESIZERS[how](size, to)
    matrix.setflags(write=False)
    return matrix
