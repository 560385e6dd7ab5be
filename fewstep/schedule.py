"""Noise schedules: the only place where a model's native time `t` is known.

Everything else uses sigma, the noise level of x = x0 + sigma n. For a native process z_t = alpha_t x0 + sigma_t n the two are joined
by x = z_t / alpha_t and sigma = sigma_t / alpha_t. All functions take and return float64 (numpy, vectorised).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fewstep.checks import check_level_values, check_number
from fewstep.errors import UsageError
from fewstep.plugins import register

Array = NDArray[np.float64]


class NoiseSchedule(Protocol):
    """A frozen dataclass that names a native process.

    **Raises**: UsageError for a time without a finite level >= 0, and a level that is none: nothing else can be asked back.
    """

    def alpha_sigma(self, t: ArrayLike) -> tuple[Array, Array]:
        """(alpha_t, sigma_t) of z_t = alpha_t x0 + sigma_t n."""
        ...

    def sigma(self, t: ArrayLike) -> Array:
        """Noise level sigma_t / alpha_t at native time t."""
        ...

    def t(self, sigma: ArrayLike) -> Array:
        """Native time at which the noise level is sigma; the inverse of `sigma` to 1e-10."""
        ...


def _f64(value: ArrayLike) -> Array:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as err:
        raise UsageError(f"a schedule takes times and levels as numbers, got {value!r} ({err}); e.g. 0.5") from None


def _levels(sigma: ArrayLike) -> Array:
    """Noise levels as given by a caller. **Raises**: UsageError for one that is not finite, or below 0."""
    values = _f64(sigma)
    check_level_values(values)
    return values


def _at(t: Array, sigma: Array, domain: str) -> Array:
    """The levels at times t. **Raises**: UsageError for a time that has none."""
    good = np.isfinite(sigma) & (sigma >= 0) & (t >= -1e-12)  # a level's own time may be rounded below 0
    if not good.all():
        raise UsageError(f"time t = {t[~good].flat[0] if t.ndim else t:g} has no finite noise level >= 0; t is in {domain}")
    return sigma


def _variance_preserving(sigma: Array) -> tuple[Array, Array]:
    alpha = 1 / np.sqrt(1 + sigma**2)
    return alpha, sigma * alpha


@register("schedule", "edm", "arXiv 2206.00364")
@dataclass(frozen=True)
class EDM:
    """z = x0 + t n: native time is the noise level itself. **Source**: arXiv 2206.00364."""

    def alpha_sigma(self, t: ArrayLike) -> tuple[Array, Array]:
        t = _f64(t)
        return np.ones_like(t), t

    def sigma(self, t: ArrayLike) -> Array:
        return _levels(t)

    def t(self, sigma: ArrayLike) -> Array:
        return _levels(sigma)


@register("schedule", "vp", "arXiv 2011.13456")
@dataclass(frozen=True)
class VP:
    """sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1, t in (0, 1]. **Source**: arXiv 2011.13456 and 2206.00364, table 1."""

    beta_d: float = 19.9
    beta_min: float = 0.1

    @classmethod
    def fitted(cls, sigma_min: float, sigma_max: float, eps_s: float = 1e-3) -> VP:
        """The VP schedule with sigma(eps_s) = sigma_min and sigma(1) = sigma_max (arXiv 2206.00364, released code).

        **Raises**: UsageError when sigma_min is so high that the noise would have to fall with time.
        """
        lo, hi = np.log1p(sigma_min**2), np.log1p(sigma_max**2)
        beta_d = 2 * (lo / eps_s - hi) / (eps_s - 1)
        beta_min = hi - beta_d / 2
        if not min(beta_d * eps_s, beta_d) + beta_min > 0:  # d log(1 + sigma^2) / dt at both ends; linear in between
            raise UsageError(
                f"no VP schedule rises from sigma {sigma_min} at t = {eps_s} to {sigma_max} at t = 1; lower sigma_min or use another grid"
            )
        return cls(float(beta_d), float(beta_min))

    def alpha_sigma(self, t: ArrayLike) -> tuple[Array, Array]:
        return _variance_preserving(self.sigma(t))

    def sigma(self, t: ArrayLike) -> Array:
        t = _f64(t)
        with np.errstate(invalid="ignore", over="ignore"):
            return _at(t, np.sqrt(np.expm1(0.5 * self.beta_d * t**2 + self.beta_min * t)), "(0, 1]")

    def t(self, sigma: ArrayLike) -> Array:
        # The root of beta_d t^2/2 + beta_min t = log(1 + sigma^2), written without cancellation at small sigma.
        log1p = np.log1p(_levels(sigma) ** 2)
        root = np.sqrt(self.beta_min**2 + 2 * self.beta_d * log1p)
        with np.errstate(divide="ignore", invalid="ignore"):
            stable = 2 * log1p / (root + self.beta_min)
        return stable if self.beta_min >= 0 else (root - self.beta_min) / self.beta_d


@register("schedule", "cosine", "arXiv 2202.00512")
@dataclass(frozen=True)
class Cosine:
    """alpha_t = cos(A t + b) rescaled so that logSNR runs between its ends: logSNR(t) = -2 log tan(A t + b).

    **Units**: logSNR = log(alpha^2 / sigma^2), natural. **Source**: arXiv 2202.00512, section 4 and its released code.
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def _ends(self) -> tuple[float, float]:
        b = np.arctan(np.exp(-0.5 * self.logsnr_max))
        return float(np.arctan(np.exp(-0.5 * self.logsnr_min)) - b), float(b)

    def alpha_sigma(self, t: ArrayLike) -> tuple[Array, Array]:
        a, b = self._ends()
        angle = a * _f64(t) + b
        return np.cos(angle), np.sin(angle)

    def sigma(self, t: ArrayLike) -> Array:
        a, b = self._ends()
        with np.errstate(invalid="ignore"):
            return _at(_f64(t), np.tan(a * _f64(t) + b), "[0, 1]")

    def t(self, sigma: ArrayLike) -> Array:
        a, b = self._ends()
        return (np.arctan(_levels(sigma)) - b) / a


@register("schedule", "rectified_flow", "arXiv 2209.03003")
@dataclass(frozen=True)
class RectifiedFlow:
    """z = (1 - t) x0 + t n, t in [0, 1): sigma = t / (1 - t). **Source**: arXiv 2209.03003."""

    def alpha_sigma(self, t: ArrayLike) -> tuple[Array, Array]:
        t = _f64(t)
        return 1 - t, t

    def sigma(self, t: ArrayLike) -> Array:
        t = _f64(t)
        with np.errstate(divide="ignore", invalid="ignore"):
            return _at(t, t / (1 - t), "[0, 1)")

    def t(self, sigma: ArrayLike) -> Array:
        sigma = _levels(sigma)
        return sigma / (1 + sigma)


@register("schedule", "trigflow", "arXiv 2410.11081")
@dataclass(frozen=True)
class TrigFlow:
    """z = cos(t) x0 + sin(t) sigma_data n, t in [0, pi/2): sigma = sigma_data tan t. **Source**: arXiv 2410.11081, section 3."""

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        check_number("sigma_data", self.sigma_data, 0, "it is the standard deviation of the data, e.g. 0.5")

    def alpha_sigma(self, t: ArrayLike) -> tuple[Array, Array]:
        t = _f64(t)
        return np.cos(t), self.sigma_data * np.sin(t)

    def sigma(self, t: ArrayLike) -> Array:
        with np.errstate(invalid="ignore"):
            return _at(_f64(t), self.sigma_data * np.tan(_f64(t)), "[0, pi/2)")

    def t(self, sigma: ArrayLike) -> Array:
        return np.arctan(_levels(sigma) / self.sigma_data)
