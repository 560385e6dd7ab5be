"""Single-step DPM-Solver++ on the reverse SDE: a prediction halfway, and noise over both parts of the step."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.grid import TimeGrid
from fewstep.noise import Slot
from fewstep.plugins import register
from fewstep.sampling.plan import Combine, Eval, Op, Plan, prediction, state
from methods.claims import Claims
from methods.solvers.ddim import ancestral_levels, renoised
from methods.solvers.dpm import check_inner
from methods.solvers.euler import euler_terms, single_step_plan


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
        check_inner(self.r)

    @property
    def claims(self) -> Claims:
        why = "a step's noise contains its midpoint's as the SDE's own does; the published code takes both from a Brownian path over sigma"
        return Claims(order=2, deviations=(why,))

    def plan(self, grid: TimeGrid) -> Plan:
        s = grid.sigmas

        def ops_of(i: int) -> list[Op]:
            x, d, xm, dm = state(i), prediction(i), f"xm[{i}]", f"Dm[{i}]"
            mid = s[i + 1] ** self.r * s[i] ** (1 - self.r)
            down, up = ancestral_levels(s[i], mid)
            a, b, half = (s[i + 1] / s[i]) ** 2, (s[i + 1] / mid) ** 2, 1 / (2 * self.r)
            terms = ((xm, b), (d, (1 - a) * (1 - half) + a - b), (dm, (1 - a) * half))
            return [
                Combine(xm, renoised(euler_terms(x, d, s[i], down), Slot(i + 1), up)),
                Eval(dm, xm, mid),
                Combine(state(i + 1), renoised(terms, Slot(i + 1, 1), ancestral_levels(mid, s[i + 1])[1])),
            ]

        return single_step_plan(grid, ops_of)
