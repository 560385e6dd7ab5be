"""Where sampling starts that does not start from noise alone: the level of a strength, and the grid from there down."""

from __future__ import annotations

import math
import numbers

import numpy as np

from fewstep.errors import Unreachable, UsageError, near_misses
from fewstep.grid import GIVEN, TimeGrid, make_grid
from fewstep.schedule import VP, Array, RectifiedFlow

SCHEDULES = ("vp", "cosine", "rectified_flow")
PRINTED = 1e-4  # how near to the middle between two levels a strength counts as there: the less noisy one is taken


def check_strength(strength: float) -> float:
    """**Raises**: UsageError for a strength outside of 0 to 1."""
    if not isinstance(strength, numbers.Real) or isinstance(strength, bool) or not 0 <= float(strength) <= 1:
        raise UsageError(f"strength is a number from 0, the picture itself, to 1, nothing of it, got {strength!r}; e.g. 0.6")
    return float(strength)


def _check_schedule(schedule: str) -> None:
    if schedule not in SCHEDULES:
        raise UsageError(f"strengths are times of {', '.join(SCHEDULES)}, got '{schedule}'{near_misses(schedule, SCHEDULES)}")


def level_at(strength: float, sigma_range: tuple[float, float], schedule: str = "vp") -> float:
    """sigma_start: the noise level of a schedule at native time t = strength, where t = 1 is sigma_max.

    `vp`: fitted to the range, as the grid `time_uniform` is. `cosine`: its angle arctan(sigma) is strength times that of sigma_max.
    `rectified_flow`: t = sigma / (1 + sigma), scaled in the same way.
    **Raises**: UsageError for a strength outside of 0 to 1 and for another schedule.
    """
    own, (lo, hi) = check_strength(strength), sigma_range
    _check_schedule(schedule)
    if own == 1:
        return float(hi)
    if schedule == "vp":
        return float(VP.fitted(lo, hi).sigma(own))
    return math.tan(own * math.atan(hi)) if schedule == "cosine" else float(RectifiedFlow().sigma(own * RectifiedFlow().t(hi)))


def strengths_of(grid: TimeGrid, sigma_range: tuple[float, float], schedule: str = "vp") -> Array:
    """The strength of each level of a grid [nodes], the inverse of `level_at`."""
    _check_schedule(schedule)
    lo, hi = sigma_range
    if schedule == "vp":
        return VP.fitted(lo, hi).t(grid.sigmas)
    return np.arctan(grid.sigmas) / math.atan(hi) if schedule == "cosine" else RectifiedFlow().t(grid.sigmas) / RectifiedFlow().t(hi)


def grid_at(
    grid: TimeGrid | str,
    steps: int,
    sigma_range: tuple[float, float],
    strength: float,
    end: str = "sigma_min",
    schedule: str = "vp",
) -> TimeGrid:
    """The grid that sampling at a strength goes down: its first level is where x = picture + sigma_start n starts.

    A family's name: `steps` intervals from `level_at` to the end. A `TimeGrid`, or levels by hand ("at 5 0.821"): a student's own levels,
    from the one whose strength is nearest, which must leave `steps` intervals; 0 takes however many there are (0.75 of four steps that are
    even in time is three). **Raises**: UsageError for a strength outside of 0 to 1, or so small that nothing is left to do; Unreachable
    for another number of steps.
    """
    start = level_at(strength, sigma_range, schedule)
    if isinstance(grid, str) and not grid.startswith(GIVEN):
        if start <= sigma_range[0]:
            raise UsageError(f"strength {strength:g} starts at sigma {start:g}, below the last level {sigma_range[0]:g}; use a larger one")
        return make_grid(grid, steps, (sigma_range[0], start), end)
    own = grid if isinstance(grid, TimeGrid) else make_grid(grid, len(grid.split()), sigma_range, end)
    if own.sigmas.ndim != 1:
        raise UsageError("a strength is for a grid of one trajectory, got one of a level for each sample")
    known = strengths_of(own, sigma_range, schedule)
    away = np.abs(known - strength)
    first = int(np.flatnonzero(away <= away.min() + PRINTED)[-1])
    if first == own.steps:
        few = f"strength {strength:g} is nearest to the end of a student with levels at strengths {', '.join(f'{s:.2f}' for s in known)}"
        raise UsageError(f"{few}, which leaves nothing to do; use {known[-2]:.2f} or more")
    found = TimeGrid(own.sigmas[first:])
    if steps and found.steps != steps:
        left = f"strength {strength:g} leaves {found.steps} of {own.steps} steps"
        raise Unreachable(f"{left} of these levels, not {steps}; {steps} are left at {_hint(known, steps)}")
    return found


def grid_from(
    family: str, steps: int, sigma_range: tuple[float, float], strength: float, end: str = "sigma_min", own: bool = False
) -> TimeGrid:
    """The grid of a cell, an exported student or a command: at strength 1 the whole of `steps` intervals, below one of as many from there
    down, or, of a student that knows its `own` levels alone, what is left of those for `steps`.

    **Raises**: as `grid_at`.
    """
    if strength == 1:
        return make_grid(family, steps, sigma_range, end)
    if own or family.startswith(GIVEN):
        return grid_at(make_grid(family, steps, sigma_range, end), 0, sigma_range, strength)
    return grid_at(family, steps, sigma_range, strength, end)


def _hint(known: Array, steps: int) -> str:
    return f"strength {known[-steps - 1]:.2f}" if steps < len(known) else "no strength"
