"""Schedules of discrete processes: a thousand betas, whose levels are joined by straight lines in log sigma over the timestep."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from fewstep.checks import check_count, check_level_values
from fewstep.errors import UsageError, near_misses
from fewstep.plugins import register
from fewstep.schedule import Array

ZERO_SNR = np.exp(10.0)  # the level that stands for zero SNR, whose own is infinite: log-SNR -20
FAMILIES = ("linear", "scaled_linear", "cosine")


@register("schedule", "linear", "arXiv 2006.11239")
@register("schedule", "linear_zero_snr", "arXiv 2305.08891", zero_snr=True)
@register("schedule", "scaled_linear", "arXiv 2112.10752", family="scaled_linear", start=0.00085, end=0.012)
@register("schedule", "scaled_linear_zero_snr", "arXiv 2305.08891", family="scaled_linear", start=0.00085, end=0.012, zero_snr=True)
@register("schedule", "cosine_betas", "arXiv 2102.09672", family="cosine")
@register("schedule", "cosine_betas_zero_snr", "arXiv 2305.08891", family="cosine", zero_snr=True)
@dataclass(frozen=True)
class Discrete:
    """z_t = sqrt(a_t) x0 + sqrt(1 - a_t) n, a_t the product of 1 - beta_0 ... 1 - beta_t: sigma(t) = sqrt((1 - a_t) / a_t), t = 0 ... 999.

    `linear` betas rise evenly from `start` to `end`; those of `scaled_linear` have evenly rising roots; `cosine` has a_t proportional to
    cos^2((u + 0.008) / 1.008 pi / 2), u = (t + 1) / steps, and betas of at most 0.999. With `zero_snr` sqrt(a_t) is shifted and scaled so
    that the last one is 0 and the first stays (its infinite level is held at e^10). Between timesteps log sigma is linear in t, so every
    level in the range has a time; one outside has that of the nearer end. **Units**: t in timesteps, counted from 0.
    **Source**: arXiv 2006.11239, 2112.10752, 2102.09672 equation 17, 2305.08891 algorithm 1; the lines in between are ours.
    """

    family: str = "linear"
    start: float = 1e-4
    end: float = 0.02
    steps: int = 1000
    zero_snr: bool = False

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise UsageError(f"unknown family '{self.family}' of betas{near_misses(self.family, FAMILIES)}")
        check_count("the number of timesteps", self.steps, 2, "the published schedules have 1000")
        if self.family != "cosine" and not 0 < self.start <= self.end < 1:
            raise UsageError(f"betas rise from start to end between 0 and 1, got {self.start:g} and {self.end:g}; e.g. 1e-4 and 0.02")

    @cached_property
    def table(self) -> Array:
        """sigma at timesteps 0, 1, ..., [steps] float64. **Raises**: UsageError where it does not rise: such levels have no time."""
        with np.errstate(over="ignore", invalid="ignore"):
            levels = self._levels()
            rising = bool((np.diff(levels) > 0).all())
        if not rising:
            raise UsageError(f"the levels of {self} do not rise from each timestep to the next; use fewer steps, or larger betas")
        return levels

    def _levels(self) -> Array:
        if self.family == "cosine":
            u = np.arange(self.steps + 1) / self.steps
            whole = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1 - whole[1:] / whole[:-1], 0.999)
        elif self.family == "scaled_linear":
            betas = np.linspace(self.start**0.5, self.end**0.5, self.steps) ** 2
        else:
            betas = np.linspace(self.start, self.end, self.steps)
        if not self.zero_snr:
            log_a = np.cumsum(np.log1p(-betas))
            return np.sqrt(np.expm1(-log_a))
        root = np.sqrt(np.cumprod(1 - betas))
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        with np.errstate(divide="ignore"):
            levels = np.sqrt(1 - root**2) / root
        levels[-1] = ZERO_SNR  # whose own is infinite
        return levels

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The levels of the first and the last timestep."""
        return float(self.table[0]), float(self.table[-1])

    def alpha_sigma(self, t: ArrayLike) -> tuple[Array, Array]:
        sigma = self.sigma(t)
        alpha = 1 / np.sqrt(1 + sigma**2)
        return alpha, sigma * alpha

    def sigma(self, t: ArrayLike) -> Array:
        times = np.asarray(t, dtype=np.float64)
        if not ((times >= -1e-9) & (times <= self.steps - 1 + 1e-9)).all():
            wrong = times[~((times >= -1e-9) & (times <= self.steps - 1 + 1e-9))].flat[0] if times.ndim else times
            raise UsageError(f"timestep {wrong:g} has no level; they run from 0 to {self.steps - 1}")
        return np.exp(np.interp(times, np.arange(self.steps), np.log(self.table)))

    def t(self, sigma: ArrayLike) -> Array:
        levels = np.asarray(sigma, dtype=np.float64)
        check_level_values(levels)
        with np.errstate(divide="ignore"):
            return np.interp(np.log(levels), np.log(self.table), np.arange(self.steps, dtype=np.float64))
