"""Multistep DPM-Solver++ on the reverse SDE: exponential integrators in lambda = -log sigma, with fresh noise in every step."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.elementary import log
from fewstep.grid import TimeGrid
from fewstep.noise import Slot
from fewstep.plugins import register
from fewstep.sampling.plan import Combine, Eval, Op, Plan, prediction, state
from methods.claims import Claims
from methods.solver import check_order
from methods.solvers.ddim import ancestral_levels, renoised
from methods.solvers.dpm_multistep import PUBLISHED, multistep_order, multistep_terms, newest, predictions

THIRD = (
    "published as order 3: its second difference has half of the Taylor weight, and the variance is of order 2 in any case",
    "the second step is that of dpmpp_2m_sde; k-diffusion's weights the difference by p1 / 2h + 1 in place of -p1 / 2, p1 = expm1(-2h)",
    "with lower_order_final the order falls to 2 and 1 on the last two steps, as in dpmpp_3m; k-diffusion keeps 3 up to the step to 0",
    "diffusers' sde-dpmsolver++ subtracts 1/2 where k-diffusion and this solver add it in the weight of the second difference",
)


@register("solver", "dpmpp_1s_sde", "arXiv 2211.01095 (SDE-DPM-Solver++, order 1, equal to DDPM)", order=1)
@register("solver", "dpmpp_2m_sde", "arXiv 2211.01095 (SDE-DPM-Solver++(2M))", order=2)
@register("solver", "dpmpp_3m_sde", "arXiv 2211.01095 (k-diffusion code, SDE form of the order 3 as published)", order=3)
@dataclass(frozen=True)
class DPMppMultistepSDE:
    """Multistep SDE-DPM-Solver++, one evaluation and one noise a step.

    x' = (sigma' / sigma) e^-h x + (1 - e^-2h) D + ... + sigma' sqrt(1 - e^-2h) z, h = log(sigma / sigma'): the flow's weights of D and its
    history with 2 lambda for lambda, since the SDE's solution integrates D under 2 e^(-2 (lambda' - lambda)). Order rule as in
    `dpm_multistep.py`; a step to sigma' = 0 is x' = D. **Source**: arXiv 2211.01095, SDE-DPM-Solver++; k-diffusion at 4601bf08 for order 3.
    """

    order: int = 2
    lower_order_final: bool = True
    version: int = 1

    def __post_init__(self) -> None:
        check_order(self.order, 3)

    @property
    def claims(self) -> Claims:
        # Differences of past predictions carry noise: they misjudge the slope of Cov(x, D) by its jump at the present, k times the noise's
        # variance, and miss the same amount from the step's own noise. The two cancel to order 2 in the variance, not further.
        return Claims(order=min(self.order, 2), deviations=THIRD if self.order == 3 else ())

    def plan(self, grid: TimeGrid) -> Plan:
        s, ops = grid.sigmas, list[Op]()
        lam = -2 * log(s)
        for i in range(grid.steps):
            ops.append(Eval(prediction(i), state(i), s[i]))
            order = 1 if grid.at_zero(i + 1) else multistep_order(i, grid.steps, self.order, self.lower_order_final)
            weights = multistep_terms(order, newest(lam, i, order), PUBLISHED)
            terms = ((state(i), (s[i + 1] / s[i]) ** 2), *predictions(i, weights))
            ops.append(Combine(state(i + 1), renoised(terms, Slot(i + 1), ancestral_levels(s[i], s[i + 1])[1])))
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))
