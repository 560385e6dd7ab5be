"""Euler and Heun in the native time and scaled state of another process: the ablation sampler of EDM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewstep.errors import UsageError
from fewstep.grid import TimeGrid
from fewstep.plugins import register
from fewstep.sampling.plan import Combine, Eval, Op, Plan, prediction, state
from fewstep.schedule import VP, Array
from methods.claims import UNEVEN, Claims, Defect

PROCESS = VP()
SCHEDULES = ("vp", "ve", "linear")
WHY = "a step in native time and scaled state is not exact where D is constant, not even to sigma = 0"
# (schedule, second_order): 6 steps from 80 to 0.002, x_0 = c + 80, the largest distance from c + sigma over 80.
GRIDS = ("polynomial", "logsnr", "time_uniform", UNEVEN)
TRANSPORT = {
    ("vp", False): (0.00517466, 0.00547775, 0.00288623, 0.00496269),
    ("vp", True): (0.0419207, 0.00599527, 1.48439, 0.00345401),
    ("ve", False): (0.193883, 0.343622, 0.272271, 0.327278),
    ("ve", True): (75.8471, 1882.75, 2.6443, 854.261),
}


def _time(schedule: str, sigma: Array) -> Array:
    return {"vp": PROCESS.t, "ve": np.square, "linear": np.asarray}[schedule](sigma)


def _sigma(schedule: str, t: Array) -> Array:
    return {"vp": PROCESS.sigma, "ve": np.sqrt, "linear": np.asarray}[schedule](t)


def _log_speed(schedule: str, t: Array, sigma: Array) -> Array:
    """sigma'(t) / sigma(t)."""
    if schedule == "vp":
        return (PROCESS.beta_d * t + PROCESS.beta_min) * (1 + sigma**2) / (2 * sigma**2)
    return 1 / ((2 if schedule == "ve" else 1) * t)


@register("solver", "edm_euler_vp", "arXiv 2206.00364 (table 1, VP)", schedule="vp", second_order=False)
@register("solver", "edm_heun_vp", "arXiv 2206.00364 (table 1, VP)", schedule="vp")
@register("solver", "edm_heun_ve", "arXiv 2206.00364 (table 1, VE)", schedule="ve")
@register("solver", "edm_euler_linear", "arXiv 2206.00364 (table 1, EDM)", second_order=False)
@dataclass(frozen=True)
class EDMAblation:
    """Euler or a second-order step in z = s(t) x over t: dz = ((sigma'/sigma + s'/s) z - (s sigma'/sigma) D) dt.

    sigma(t): vp, sqrt(t) (ve) or t (linear); s: 1 / sqrt(1 + sigma^2) with vp, else 1. The second evaluation is at t + alpha h (alpha = 1
    Heun, 1/2 midpoint), with weights 1 - 1 / (2 alpha) and 1 / (2 alpha); none where sigma' = 0. Written in x.
    **Source**: arXiv 2206.00364, table 1 and its general-purpose sampler; released code.
    """

    schedule: str = "linear"
    second_order: bool = True
    alpha: float = 1.0
    version: int = 1

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UsageError(f"schedule must be one of {', '.join(SCHEDULES)}, got '{self.schedule}'")
        if not 0 < self.alpha <= 1:
            raise UsageError(f"alpha must be in (0, 1], got {self.alpha}; 1 is Heun, 0.5 the midpoint rule")
        if self.alpha != 1 and (self.schedule != "linear" or not self.second_order):
            raise UsageError(f"alpha={self.alpha} needs schedule=linear and second_order=true; use alpha=1")

    @property
    def claims(self) -> Claims:
        sizes = TRANSPORT.get((self.schedule, self.second_order), ())
        defects = tuple(Defect("transport", grid, size, WHY) for grid, size in zip(GRIDS, sizes))
        fitted = ("the published sampler refits the vp schedule to its range; here beta_d = 19.9, beta_min = 0.1 always",)
        return Claims(order=2 if self.second_order else 1, defects=defects, deviations=fitted if self.schedule == "vp" else ())

    def plan(self, grid: TimeGrid) -> Plan:
        s, ops = grid.sigmas, list[Op]()
        t = _time(self.schedule, s)
        for i in range(grid.steps):
            x, d, to = state(i), prediction(i), state(i + 1)
            h, (a, b), scale = t[i + 1] - t[i], self._rates(t[i], s[i]), self._scale(s[i + 1]) / self._scale(s[i])
            ops.append(Eval(d, x, s[i]))
            if not self.second_order or grid.at_zero(i + 1):
                ops.append(Combine(to, ((x, (1 + h * a) / scale), (d, -h * b / scale))))
                continue
            t_in, s_in = self._second(t[i : i + 2], s[i + 1])
            inner, (a_in, b_in) = self._scale(s_in) / self._scale(s[i]), self._rates(t_in, s_in)
            u = ((1 + self.alpha * h * a) / inner, -self.alpha * h * b / inner)
            ops.append(Combine(f"x1[{i}]", ((x, u[0]), (d, u[1]))))
            ops.append(Eval(f"D1[{i}]", f"x1[{i}]", s_in))
            w = 1 / (2 * self.alpha)
            on_x = 1 + h * ((1 - w) * a + w * a_in * inner * u[0])
            on_d = h * (-(1 - w) * b + w * a_in * inner * u[1])
            ops.append(Combine(to, ((x, on_x / scale), (d, on_d / scale), (f"D1[{i}]", -h * w * b_in * inner / scale))))
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))

    def _second(self, t: Array, sigma_to: Array) -> tuple[Array, Array]:
        """Time and level of the second evaluation, between the times t of a step to `sigma_to`.

        With alpha = 1 they are the step's own end: t + h would round it to 0 where sigma' / sigma is below 1e-8 and time is sigma^2.
        """
        if self.alpha == 1:
            return t[1], sigma_to
        inner = (1 - self.alpha) * t[0] + self.alpha * t[1]
        return inner, _sigma(self.schedule, inner)

    def _scale(self, sigma: Array) -> Array:
        return 1 / np.sqrt(1 + sigma**2) if self.schedule == "vp" else np.ones_like(sigma)

    def _rates(self, t: Array, sigma: Array) -> tuple[Array, Array]:
        """(sigma'/sigma + s'/s, sigma'/sigma): with s = 1 / sqrt(1 + sigma^2), s'/s = -(sigma'/sigma) sigma^2 / (1 + sigma^2)."""
        speed = _log_speed(self.schedule, t, sigma)
        return (speed / (1 + sigma**2) if self.schedule == "vp" else speed), speed
