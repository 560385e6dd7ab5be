"""Preconditioning: the only place where a network's parametrisation is known. D = c_skip x + c_out F(c_in x, c_noise)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from fewstep.checks import check_count, check_number
from fewstep.errors import UsageError, near_misses
from fewstep.schedule import VP, Array, NoiseSchedule

FORMS = ("x0", "eps", "v", "x0_eps", "u")  # of a network in a native process


class Precond(Protocol):
    """Preconditioning: the coefficients of D = c_skip x + c_out F(c_in x, c_noise), float64 numpy in and out."""

    @property
    def form(self) -> str: ...

    def coefficients(self, sigma: Array) -> tuple[Array, Array, Array, Array]:
        """(c_skip, c_out, c_in, c_noise) at noise level sigma."""
        ...


def _check_data(sigma_data: float) -> None:
    check_number("sigma_data", sigma_data, 0, "it is the standard deviation of the data, e.g. 0.5")


@dataclass(frozen=True)
class EDMPrecond:
    """Unit-variance input and training target. **Source**: arXiv 2206.00364, table 1 and equation 7."""

    sigma_data: float
    form: str = "edm"

    def __post_init__(self) -> None:
        _check_data(self.sigma_data)

    def coefficients(self, sigma: Array) -> tuple[Array, Array, Array, Array]:
        total = np.sqrt(sigma**2 + self.sigma_data**2)
        return (self.sigma_data / total) ** 2, sigma * self.sigma_data / total, 1 / total, np.log(sigma) / 4


@dataclass(frozen=True)
class ConsistencyPrecond:
    """EDM preconditioning with the boundary f(x, sigma_min) = x for any network. **Source**: arXiv 2303.01469, appendix C."""

    sigma_data: float
    sigma_min: float
    form: str = "edm"

    def __post_init__(self) -> None:
        _check_data(self.sigma_data)

    def coefficients(self, sigma: Array) -> tuple[Array, Array, Array, Array]:
        total = np.sqrt(sigma**2 + self.sigma_data**2)
        above = sigma - self.sigma_min
        c_skip = self.sigma_data**2 / (above**2 + self.sigma_data**2)
        return c_skip, self.sigma_data * above / total, 1 / total, np.log(sigma) / 4


@dataclass(frozen=True)
class BoundedPrecond:
    """Any preconditioning with the boundary f(x, sigma_min) = x: f = x + (1 - sigma_min / sigma) (D - x).

    What `ConsistencyPrecond` is to EDM's, with the same c_out there. **Source**: arXiv 2310.02279, G(x, sigma, sigma_min).
    """

    base: Precond
    sigma_min: float

    @property
    def form(self) -> str:
        return self.base.form

    def coefficients(self, sigma: Array) -> tuple[Array, Array, Array, Array]:
        c_skip, c_out, c_in, c_noise = self.base.coefficients(sigma)
        share = 1 - self.sigma_min / sigma
        return 1 - share * (1 - c_skip), share * c_out, c_in, c_noise


@dataclass(frozen=True)
class TimestepPrecond:
    """Any preconditioning with the boundary of latent consistency models: f = c_skip z + c_out D, z = alpha x, in timesteps t = 1000 u - 1.

    c_skip = s^2 / ((10 t)^2 + s^2) and c_out = 10 t / sqrt((10 t)^2 + s^2) with s = 1/2; u is the native time of a VP schedule. Between
    t = 0, where f = z, and the teacher's D there is next to nothing: at t = 1 c_out is 0.9988. **Source**: arXiv 2310.04378, released code.
    """

    base: Precond
    schedule: VP
    sigma_data: float = 0.5

    @property
    def form(self) -> str:
        return self.base.form

    def coefficients(self, sigma: Array) -> tuple[Array, Array, Array, Array]:
        c_skip, c_out, c_in, c_noise = self.base.coefficients(sigma)
        scaled = 10 * np.maximum(1000 * self.schedule.t(sigma) - 1, 0.0)  # a rounded t = 0 may fall below it
        total = np.hypot(scaled, self.sigma_data)
        alpha, _ = self.schedule.alpha_sigma(self.schedule.t(sigma))
        own = scaled / total
        return (self.sigma_data / total) ** 2 * alpha + own * c_skip, own * c_out, c_in, c_noise


@dataclass(frozen=True)
class VEPrecond:
    """A network in the variance-exploding process itself: D = x + sigma F(x, log(sigma / 2)). **Source**: arXiv 2011.13456, 2206.00364."""

    form: str = "eps"

    def coefficients(self, sigma: Array) -> tuple[Array, Array, Array, Array]:
        one = np.ones_like(sigma)
        return one, sigma, one, np.log(sigma / 2)


@dataclass(frozen=True)
class IDDPMPrecond:
    """A network of improved DDPM, which knows `steps` levels u_j: D = x - sigma F(x / sqrt(sigma^2 + 1), steps - 1 - j), u_j the nearest.

    u_steps = 0, u_(j-1)^2 + 1 = (u_j^2 + 1) / max(a(j-1) / a(j), c_1) with a(j) = sin^2(pi / 2 j / steps / (c_2 + 1)).
    **Source**: arXiv 2102.09672, 2206.00364 table 1 and released code.
    """

    steps: int = 1000
    c_1: float = 0.001
    c_2: float = 0.008
    form: str = "eps"

    def __post_init__(self) -> None:
        check_count("the number of levels", self.steps, 2, "the published networks have 1000")

    @cached_property
    def table(self) -> Array:
        """u_0 > u_1 > ... > u_steps = 0."""
        share = np.sin(np.pi / 2 * np.arange(self.steps + 1) / self.steps / (self.c_2 + 1)) ** 2
        grown = np.ones(self.steps + 1)
        for j in range(self.steps, 0, -1):
            grown[j - 1] = grown[j] / max(share[j - 1] / share[j], self.c_1)
        return np.sqrt(grown - 1)

    def coefficients(self, sigma: Array) -> tuple[Array, Array, Array, Array]:
        rising = self.table[::-1]
        above = np.clip(np.searchsorted(rising, sigma), 1, self.steps)
        nearest = np.where(sigma - rising[above - 1] <= rising[above] - sigma, above - 1, above)  # steps - j
        return np.ones_like(sigma), -sigma, 1 / np.sqrt(sigma**2 + 1), np.asarray(nearest - 1, dtype=np.float64)


@dataclass(frozen=True)
class DifferencePrecond:
    """D = z - F for a network F made to predict eps in a native process z = alpha x: the head of a one-step student, nothing divided by
    alpha. **Source**: arXiv 2101.02388, released code."""

    base: Precond

    @property
    def form(self) -> str:
        return self.base.form

    def coefficients(self, sigma: Array) -> tuple[Array, Array, Array, Array]:
        _, _, c_in, c_noise = self.base.coefficients(sigma)
        return c_in, -np.ones_like(c_in), c_in, c_noise


@dataclass(frozen=True)
class ProcessPrecond:
    """A network in a native process z = alpha x0 + sigma_t n that predicts `x0`, `eps`, `v` = alpha n - sigma_t x0 or `u` = n - x0.

    With x = z / alpha: x0: D = F; eps: D = x - sigma F; v (alpha^2 + sigma_t^2 = 1): D = alpha^2 x - sigma_t F; u (alpha + sigma_t = 1):
    D = (x - sigma F) / (1 + sigma). `x0_eps` (alpha^2 + sigma_t^2 = 1) predicts both, already folded as F = sigma_t^2 x~ - alpha sigma_t e~
    (`fewstep.nets.x0_eps`), which is bounded at every level: D = sigma_t^2 x~ + alpha (z - sigma_t e~) = alpha^2 x + F.
    c_in = alpha and c_noise = time_scale t. In float32 D is as exact as the network at every level, but for eps, whose error is sigma times
    the network's. **Source**: arXiv 2202.00512 section 4, 2209.03003.
    """

    schedule: NoiseSchedule = VP()
    form: str = "eps"
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UsageError(f"unknown form '{self.form}' of a network{near_misses(self.form, FORMS)}")

    def coefficients(self, sigma: Array) -> tuple[Array, Array, Array, Array]:
        t = self.schedule.t(sigma)
        alpha, sigma_t = self.schedule.alpha_sigma(t)
        one = np.ones_like(alpha)
        c_skip, c_out = {
            "x0": (0 * one, one),
            "eps": (one, -sigma),
            "v": (alpha**2, -sigma_t),
            "x0_eps": (alpha**2, one),
            "u": (1 / (1 + sigma), -sigma / (1 + sigma)),
        }[self.form]
        return c_skip, c_out, alpha, self.time_scale * t
