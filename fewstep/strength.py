"""Where sampling starts that does not start from noise alone: the level of a strength, and the grid from there down."""

from __future__ import annotations

import math
import numbers

import numpy as np

from fewstep.errors import Unreachable, UsageError, near_misses
from fewstep.grid import GIVEN, TimeGrid, make_grid
from fewstep.schedule import VP, Cosine, RectifiedFlow

WITHIN = 1e-6  # relative: a student's own level that a strength names is met, however it was rounded
SCHEDULES = ("vp", "cosine", "rectified_flow")


def check_strength(strength: float) -> float:
    """**Raises**: UsageError for a strength outside of 0 to 1."""
    if not isinstance(strength, numbers.Real) or isinstance(strength, bool) or not 0 <= float(strength) <= 1:
        raise UsageError(f"strength is a number from 0, the picture itself, to 1, nothing of it, got {strength!r}; e.g. 0.6")
    return float(strength)


def level_at(strength: float, sigma_range: tuple[float, float], schedule: str = "vp") -> float:
    """sigma_start: the noise level of a schedule at native time t = strength, where t = 1 is sigma_max.

    `vp`: fitted to the range, as the grid `time_uniform` is, so that strength 0.75 of four of its steps is three of them. `cosine`: its
    angle arctan(sigma) is strength times that of sigma_max. `rectified_flow`: t = sigma / (1 + sigma), scaled in the same way.
    **Raises**: UsageError for a strength outside of 0 to 1 and for another schedule.
    """
    own, (lo, hi) = check_strength(strength), sigma_range
    if schedule not in SCHEDULES:
        raise UsageError(f"strengths are times of {', '.join(SCHEDULES)}, got '{schedule}'{near_misses(schedule, SCHEDULES)}")
    if own == 1:
        return float(hi)
    if schedule == "vp":
        return float(VP.fitted(lo, hi).sigma(own))
    of = Cosine() if schedule == "cosine" else RectifiedFlow()
    return math.tan(own * math.atan(hi)) if schedule == "cosine" else float(of.sigma(own * of.t(hi)))


def grid_at(
    grid: TimeGrid | str,
    steps: int,
    sigma_range: tuple[float, float],
    strength: float,
    end: str = "sigma_min",
    schedule: str = "vp",
) -> TimeGrid:
    """The grid that sampling at a strength goes down: its first level is where x = picture + sigma_start n starts.

    A family's name: `steps` intervals from `level_at` to the end. A `TimeGrid`, or levels by hand ("at 5 0.821"): a student's own nodes
    from the highest that is no higher than `level_at`, which must leave `steps` intervals; 0 takes however many there are.
    **Raises**: UsageError for a strength outside of 0 to 1, or at which nothing is left to do; Unreachable for another number of steps.
    """
    start = level_at(strength, sigma_range, schedule)
    if isinstance(grid, str) and not grid.startswith(GIVEN):
        if start <= sigma_range[0] * (1 + WITHIN):
            raise UsageError(f"strength {strength:g} starts at sigma {start:g}, below the last level {sigma_range[0]:g}; use a larger one")
        return make_grid(grid, steps, (sigma_range[0], start), end)
    own = grid if isinstance(grid, TimeGrid) else make_grid(grid, len(grid.split()), sigma_range, end)
    if own.sigmas.ndim != 1:
        raise UsageError("a strength is for a grid of one trajectory, got one of a level for each sample")
    first = int(np.argmax(own.sigmas <= start * (1 + WITHIN)))
    if own.sigmas[first] > start * (1 + WITHIN) or first > own.steps - 1:
        least = next((s for s in np.arange(0.01, 1.0, 0.01) if level_at(s, sigma_range, schedule) >= own.sigmas[-2]), 1.0)
        nodes = ", ".join(f"{s:.3g}" for s in own.sigmas[:-1])
        raise UsageError(f"strength {strength:g} starts at sigma {start:g}, below all levels {nodes} to step from; use {least:g} or more")
    found = TimeGrid(own.sigmas[first:])
    if steps and found.steps != steps:
        raise Unreachable(
            f"strength {strength:g} leaves {found.steps} of {own.steps} steps of these levels, not {steps}; use another strength"
        )
    return found


def strength_of(grid: TimeGrid, steps: int, sigma_range: tuple[float, float], schedule: str = "vp") -> float:
    """The least strength, to 1 in 1000, that leaves a student's last `steps` steps. **Raises**: Unreachable where it has fewer."""
    if not 1 <= steps <= grid.steps:
        raise Unreachable(f"these levels have {grid.steps} steps, of which the last {steps} cannot be taken; use 1 to {grid.steps}")
    level = float(grid.sigmas[grid.steps - steps])
    low, high = 0, 1000
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if level_at(middle / 1000, sigma_range, schedule) >= level * (1 - WITHIN) else (middle + 1, high)
    return low / 1000
