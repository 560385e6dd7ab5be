"""Energy distance: a distance of distributions that needs no features, 0 only where they agree. NumPy alone."""

from __future__ import annotations

import numpy as np

from fewstep.schedule import Array


def distances(x: Array, y: Array) -> Array:
    """|x_i - y_j| of rows x [N, d] and y [M, d], as [N, M]."""
    square = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return np.sqrt(np.maximum(square, 0))


def energy(across: Array, within_x: Array, within_y: Array) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| from `distances` [N, M], [N, N] and [M, M], pairs of a row with itself left out: unbiased.

    **Source**: Szekely and Rizzo, J. Stat. Plan. Inference 143 (2013).
    """
    n, m = across.shape
    return float(2 * across.mean() - within_x.sum() / (n * (n - 1)) - within_y.sum() / (m * (m - 1)))


def energy_distance(x: Array, y: Array) -> float:
    """The energy distance of samples x [N, ...] and y [M, ...], flattened, in float64."""
    x, y = (z.reshape(len(z), -1).astype(np.float64) for z in (x, y))
    return energy(distances(x, y), distances(x, x), distances(y, y))
