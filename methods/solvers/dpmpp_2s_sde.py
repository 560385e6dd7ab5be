"""Single-step DPM-Solver++ on the reverse SDE: a prediction halfway, and noise over both parts of the step."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.errors import UsageError
from fewstep.grid import TimeGrid
from fewstep.noise import Slot
from fewstep.plan import Combine, Eval, Op, Plan, prediction, state
from methods.registry import register
from methods.solver import Claims
from methods.solvers.ddim import ancestral_levels, renoised
from methods.solvers.euler import euler_terms


@register("solver", "dpmpp_2s_sde", "k-diffusion's single-step form, in the terms of arXiv 2211.01095")
@dataclass(frozen=True)
class DPMppSinglestepSDE:
    """Single-step SDE-DPM-Solver++ of order 2, two evaluations and two noises a step.

    A step of order 1 to sigma_m = sigma'^r sigma^(1-r), then one from sigma to sigma' with (1 - 1 / (2 r)) D + D_m / (2 r) for D, whose
    noise is the SDE's own over both parts: b s_up(sigma, sigma_m) z1 + s_up(sigma_m, sigma') z2, of variance s_up(sigma, sigma')^2. The
    first part comes with x_m: x' = b x_m + ((1 - a) (1 - 1 / (2 r)) + a - b) D + (1 - a) D_m / (2 r) + s_up(sigma_m, sigma') z2, with
    a = (sigma' / sigma)^2 and b = (sigma' / sigma_m)^2. x' = D where sigma' = 0. **Source**: k-diffusion at 4601bf08.
    """

    r: float = 0.5
    version: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.r < 1:
            raise UsageError(f"r must lie in (0, 1), got {self.r}; 0.5 is the published midpoint")

    @property
    def claims(self) -> Claims:
        why = "a step's noise contains its midpoint's as the SDE's own does; the published code takes both from a Brownian path over sigma"
        return Claims(order=2, deviations=(why,))

    def plan(self, grid: TimeGrid) -> Plan:
        s, ops = grid.sigmas, list[Op]()
        for i in range(grid.steps):
            x, d, xm, dm, to = state(i), prediction(i), f"xm[{i}]", f"Dm[{i}]", state(i + 1)
            ops.append(Eval(d, x, s[i]))
            if grid.at_zero(i + 1):
                ops.append(Combine(to, euler_terms(x, d, s[i], s[i + 1])))
                continue
            mid = s[i + 1] ** self.r * s[i] ** (1 - self.r)
            down, up = ancestral_levels(s[i], mid)
            ops.append(Combine(xm, renoised(euler_terms(x, d, s[i], down), Slot(i + 1), up)))
            ops.append(Eval(dm, xm, mid))
            a, b, half = (s[i + 1] / s[i]) ** 2, (s[i + 1] / mid) ** 2, 1 / (2 * self.r)
            terms = ((xm, b), (d, (1 - a) * (1 - half) + a - b), (dm, (1 - a) * half))
            ops.append(Combine(to, renoised(terms, Slot(i + 1, 1), ancestral_levels(mid, s[i + 1])[1])))
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))
