"""The grids of the certificate: every family of the package, and one of irregular gaps."""

from __future__ import annotations

import numpy as np

from fewstep.grid import TimeGrid, make_grid
from fewstep.schedule import Array
from methods.claims import CERTIFIED, UNEVEN

GRIDS = (*CERTIFIED, UNEVEN)
RANGE = (0.002, 80.0)
PATTERN = (1.0, 1.4, 0.7, 0.9)  # irregular gaps in log sigma, repeated; their mean is 1


def gaps(count: int) -> Array:
    """The first `count` of the irregular gaps."""
    return np.resize(np.array(PATTERN), count)


def _uneven(nodes: int, lo: float, hi: float) -> Array:
    depth = np.cumsum([0.0, *gaps(nodes - 1)])
    levels = hi * np.exp(-np.log(hi / lo) * depth / max(depth[-1], 1.0))
    levels[0] = hi
    if nodes > 1:
        levels[-1] = lo
    return levels


def build(name: str, steps: int, end: str = "sigma_min", sigma_range: tuple[float, float] = RANGE) -> TimeGrid:
    """The grid `name` with that many intervals; ends as in `fewstep.grid.make_grid`."""
    if name != UNEVEN:
        return make_grid(name, steps, sigma_range, end)
    lo, hi = sigma_range
    if end == "zero":
        return TimeGrid(np.append(_uneven(steps, lo, hi), 0.0))
    levels = _uneven(steps + 1, lo, hi)
    levels[-1] = 0.0 if end == "zero_last" else lo
    return TimeGrid(levels)


def spaced(h: float, count: int, even: bool, top: float) -> TimeGrid:
    """`count` gaps of mean h in log sigma below `top`."""
    return TimeGrid(top * np.exp(-h * np.cumsum([0.0, *(np.ones(count) if even else gaps(count))])))
