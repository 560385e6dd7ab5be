"""Time grids: strictly decreasing noise levels, host float64. A grid is data; where it ends (0 or sigma_min) is its own choice."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from fewstep.checks import check_count, check_range
from fewstep.errors import Unreachable, UsageError, near_misses
from fewstep.plugins import get, register
from fewstep.schedule import VP, Array


@dataclass(frozen=True, eq=False)
class TimeGrid:
    """Noise levels sigma_0 > sigma_1 > ... >= 0 of one trajectory, or of one per sample.

    **Shapes**: [nodes] or [nodes, B], float64; `steps` = nodes - 1. **Raises**: UsageError for fewer than two nodes, values that do
    not strictly decrease, are negative or not finite.
    """

    sigmas: Array

    def __init__(self, sigmas: ArrayLike) -> None:
        values = _host(sigmas)
        if values.ndim not in (1, 2) or len(values) < 2:
            raise UsageError(f"a grid needs at least two noise levels, got shape {values.shape}; give steps + 1 values")
        if not np.isfinite(values).all() or (values < 0).any():
            wrong = values[~np.isfinite(values) | (values < 0)][0]
            raise UsageError(f"a grid needs finite noise levels >= 0, got {wrong:g}; check sigma_min and sigma_max")
        rises = np.argwhere(np.diff(values, axis=0) >= 0)
        if len(rises):
            i, *sample = rises[0]
            pair = f"{values[i, *sample]:g} and then {values[i + 1, *sample]:g}"
            raise UsageError(f"a grid must strictly decrease, got {pair}; order the levels from high to low, each once")
        values.setflags(write=False)
        object.__setattr__(self, "sigmas", values)

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def at_zero(self, node: int) -> bool:
        """Whether a node's level is 0, where a solver that cannot step there takes an Euler step.

        **Raises**: UsageError where it is 0 for some samples only: such a step has no coefficients in common.
        """
        zero = self.sigmas[node] == 0
        if zero.any() and not zero.all():
            raise UsageError(f"node {node} is 0 for {zero.sum()} of {zero.size} samples; end all of them at 0 or none, or use euler")
        return bool(zero.all())


def _host(sigmas: ArrayLike) -> Array:
    """The levels as a float64 array of its own. **Raises**: UsageError for what are no real numbers."""
    try:
        raw = np.asarray(sigmas)
        if raw.dtype.kind not in "fiu":
            raise ValueError(f"{raw.dtype}")
        return np.array(raw, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as err:  # the last of a tensor with gradients
        raise UsageError(f"a grid needs noise levels as numbers, got {type(sigmas).__name__} ({err}); e.g. TimeGrid([80.0, 0.5])") from None


def _ramp(nodes: int) -> Array:
    return np.linspace(0.0, 1.0, nodes) if nodes > 1 else np.zeros(1)


@register("grid", "polynomial", "arXiv 2206.00364, equation 5")
def polynomial(nodes: int, lo: float, hi: float, rho: float = 7.0) -> Array:
    """sigma^(1/rho) evenly spaced, rho 7."""
    top, bottom = hi ** (1 / rho), lo ** (1 / rho)
    return (top + _ramp(nodes) * (bottom - top)) ** rho


@register("grid", "logsnr", "arXiv 2206.00927, uniform logSNR steps")
def logsnr(nodes: int, lo: float, hi: float) -> Array:
    """log sigma evenly spaced."""
    return np.exp(np.log(hi) + _ramp(nodes) * (np.log(lo) - np.log(hi)))


@register("grid", "time_uniform", "arXiv 2206.00364, released code")
def time_uniform(nodes: int, lo: float, hi: float, rho: float = 1.0, eps_s: float = 1e-3) -> Array:
    """Native time of a VP schedule fitted to the range, evenly spaced."""
    u = (1 + _ramp(nodes) * (eps_s ** (1 / rho) - 1)) ** rho
    return VP.fitted(lo, hi, eps_s).sigma(u)


@register("grid", "time_uniform_rho2", "zju-pi/diff-sampler, released code (its grid of DEIS, arXiv 2204.13902)")
def time_uniform_rho2(nodes: int, lo: float, hi: float, eps_s: float = 1e-3) -> Array:
    """The square root of `time_uniform`'s time, evenly spaced."""
    return time_uniform(nodes, lo, hi, 2.0, eps_s)


@register("grid", "cosine", "arXiv 2202.00512")
def cosine(nodes: int, lo: float, hi: float) -> Array:
    """Native time of the cosine schedule, which is linear in arctan(sigma), evenly spaced."""
    bottom, top = np.arctan([lo, hi])
    return np.tan(top + _ramp(nodes) * (bottom - top))


LCM_TIMES = 50  # every twentieth of 1000 timesteps


@register("grid", "lcm", "arXiv 2310.04378, released code")
def lcm(nodes: int, lo: float, hi: float) -> Array:
    """Timesteps 999, 979, ..., 19 of a VP schedule of 1000 fitted to the range, thinned."""
    steps = nodes - 1
    if steps > LCM_TIMES:
        raise Unreachable(f"the lcm grid picks from {LCM_TIMES} timesteps, so it has 1 to {LCM_TIMES} steps, not {steps}; use time_uniform")
    picked = LCM_TIMES - np.floor(np.linspace(0, LCM_TIMES, max(1, steps), endpoint=False))
    return np.append(VP.fitted(lo, hi).sigma(picked / LCM_TIMES), lo)[:nodes]


ENDS = ("zero", "sigma_min", "zero_last")
GIVEN = "at "  # before the inner levels of a grid by hand: "at 5 0.821"


def _at(text: str, steps: int, lo: float, hi: float) -> Array:
    """Levels from hi to lo with those of a text between them."""
    try:
        inner = [float(word) for word in text.split()]
    except ValueError:
        raise UsageError(f"levels by hand are numbers, got 'at {text}'; e.g. 'at 5 0.821'") from None
    if not inner or any(a <= b for a, b in pairwise([hi, *inner, lo])):
        raise UsageError(f"levels by hand fall from {hi:g} to {lo:g} and lie between the two, got 'at {text}'; e.g. 'at 5 0.821'")
    if steps != len(inner) + 1:
        raise Unreachable(f"a grid at {text} has {len(inner) + 1} steps and no other number; give one level fewer than steps")
    return np.array([hi, *inner, lo])


def make_grid(family: str, steps: int, sigma_range: tuple[float, float], end: str = "sigma_min") -> TimeGrid:
    """The grid of a family with `steps` intervals over sigma_range = (sigma_min, sigma_max).

    end `sigma_min`: steps + 1 levels from sigma_max to sigma_min. `zero`: `steps` levels from sigma_max to sigma_min (for one step
    only sigma_max), then 0, as in arXiv 2206.00364. `zero_last`: as `sigma_min` with the last level replaced by 0, so that the N-step
    grid is every second level of the 2N-step grid. Inner levels by hand take a family's place: "at 5 0.821", for three steps.

    **Raises**: UsageError for unknown names, steps < 1, a range that is none or levels outside of it; Unreachable for another number of
    them.
    """
    if not isinstance(family, str):
        raise UsageError(f"a grid is named by a text, got {family!r}; e.g. polynomial")
    by_hand = family.startswith(GIVEN)
    spaced = None if by_hand else get("grid", family).target
    if end not in ENDS:
        raise UsageError(f"unknown end '{end}'{near_misses(end, list(ENDS))}")
    check_count("the number of steps", steps, 1, "a grid needs at least one step")
    lo, hi = check_range(sigma_range)
    intervals = steps - 1 if end == "zero" else steps  # above 0
    levels = _at(family.removeprefix(GIVEN), intervals, lo, hi) if spaced is None else spaced(intervals + 1, lo, hi)
    levels[0] = hi  # the ends are exact, not rounded powers
    if len(levels) > 1:
        levels[-1] = lo
    if end == "zero":
        return TimeGrid(np.append(levels, 0.0))
    if end == "zero_last":
        levels[-1] = 0.0
    return TimeGrid(levels)
