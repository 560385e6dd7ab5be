"""Multistep DPM-Solver on the noise prediction and DPM-Solver++ on the data prediction, in lambda = -log sigma."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.elementary import expm1, log
from fewstep.grid import TimeGrid
from fewstep.plugins import register
from fewstep.sampling.plan import Combine, Eval, Op, Plan, prediction, state
from fewstep.schedule import Array
from methods.claims import Claims
from methods.solver import check_order, check_predicts
from methods.solvers.adams import slope_plan

PUBLISHED, EXACT = 1.0, 2.0  # the weight of the third-order update's second difference, in units of the published one


def multistep_terms(order: int, lams: Sequence[Any], second: float = EXACT) -> list[Any]:
    """Weights of D_0, D_-1, D_-2 in x' = (sigma' / sigma) x + sum of weight * D, lams = (lambda', lambda_0, lambda_-1, ...).

    With h = lambda' - lambda_0, r0 and r1 the previous gaps over h, p1 = expm1(-h), p2 = p1 / h + 1, p3 = p2 / h - 1/2, D1_0 = (D_0 -
    D_-1) / r0, D1_1 = (D_-1 - D_-2) / r1, D1 = D1_0 + r0 / (r0 + r1) (D1_0 - D1_1) and D2 = (D1_0 - D1_1) / (r0 + r1), the update adds
    -p1 D_0 (order 1), then - p1 D1_0 / 2 (order 2), or + p2 D1 - second p3 D2 (order 3). The Taylor weight of D2 = h^2 D'' / 2 is
    -2 p3, so second = 2 is exact and second = 1, as published, is of order 2. lams may be floats, arrays [B] or tensors [B].
    **Source**: arXiv 2211.01095 equations 9, 12 and appendix B; released code for order 3.
    """
    h = lams[0] - lams[1]
    p1 = expm1(-h)
    if order == 1:
        return [-p1]
    r0 = (lams[1] - lams[2]) / h
    if order == 2:
        return [-p1 * (1 + 0.5 / r0), 0.5 * p1 / r0]
    r1 = (lams[2] - lams[3]) / h
    p2 = p1 / h + 1
    p3 = p2 / h - 0.5
    slope, bend = p2 * (1 + r0 / (r0 + r1)) - second * p3 / (r0 + r1), p2 * r0 / (r0 + r1) - second * p3 / (r0 + r1)
    # The update is slope' D1_0 - bend' D1_1 with the weights that D1 and D2 give them.
    return [-p1 + slope / r0, -slope / r0 - bend / r1, bend / r1]


def multistep_order(i: int, steps: int, order: int, lower_order_final: bool) -> int:
    """The order of step i: it rises 1, 2, ..., and with `lower_order_final` falls to 1 on the last step once it has risen fully."""
    rising = min(order, i + 1)
    return rising if rising < order or not lower_order_final else min(order, steps - i)


def newest(values: Array, i: int, order: int) -> list[Any]:
    """The value at node i + 1, where step i goes, and those at the `order` nodes that it reads, the newest first."""
    return [values[j] for j in range(i + 1, i - order, -1)]


def predictions(i: int, weights: Sequence[Any]) -> tuple[tuple[str, Any], ...]:
    """The terms of D_i, D_(i-1), ... with these weights."""
    return tuple((prediction(i - k), w) for k, w in enumerate(weights))


def noise_multistep_weights(order: int, levels: Sequence[Any], second: float = EXACT) -> list[Any]:
    """Weights of d_0, d_-1, d_-2 in x' = x + sum of weight * d, levels = (sigma', sigma_0, sigma_-1, ...).

    With h, r0, r1, D1_0, D1_1, D1, D2 as in `multistep_terms` but of d, p1 = expm1(h), p2 = p1 / h - 1, p3 = p2 / h - 1/2, the update
    adds -sigma' p1 d_0 (order 1), then - sigma' p1 D1_0 / 2 (order 2), or - sigma' (p2 D1 + second p3 D2) (order 3). second = 2 is exact
    and second = 1, as published, is of order 2. levels: floats, arrays [B] or tensors [B]. **Source**: arXiv 2206.00927; released code.
    """
    to, now = levels[0], levels[1]
    if order == 1:
        return [to - now]
    lams = [-log(level) for level in levels]
    h = lams[0] - lams[1]
    p1, r0 = expm1(h), (lams[1] - lams[2]) / h
    if order == 2:
        return [-to * p1 * (1 + 0.5 / r0), to * 0.5 * p1 / r0]
    r1 = (lams[2] - lams[3]) / h
    p2 = p1 / h - 1
    p3 = second * (p2 / h - 0.5)
    slope, bend = p2 * (1 + r0 / (r0 + r1)) + p3 / (r0 + r1), (p2 * r0 + p3) / (r0 + r1)
    # The update is -sigma' (p1 d_0 + slope D1_0 - bend D1_1).
    return [-to * (p1 + slope / r0), to * (slope / r0 + bend / r1), -to * bend / r1]


@register("solver", "dpmpp_1s", "arXiv 2211.01095 (order 1, equal to DDIM)", order=1)
@register("solver", "dpmpp_2m", "arXiv 2211.01095 (algorithm 2)", order=2)
@register("solver", "dpmpp_3m", "arXiv 2211.01095 (released code, order 3 as published)", order=3, second=PUBLISHED)
@register("solver", "dpmpp_3m_exact", "arXiv 2211.01095 (order 3 with the Taylor weight of its second difference)", order=3)
@register("solver", "dpm_1s", "arXiv 2206.00927 (DPM-Solver-1, equal to DDIM)", predicts="eps", order=1)
@register("solver", "dpm_2m", "arXiv 2206.00927 (noise prediction in the multistep form of 2211.01095)", predicts="eps", order=2)
@register("solver", "dpm_3m", "arXiv 2206.00927 (noise prediction, order 3 as published)", predicts="eps", order=3, second=PUBLISHED)
@register("solver", "dpm_3m_exact", "arXiv 2206.00927 (noise prediction, order 3 with the Taylor weight)", predicts="eps", order=3)
@dataclass(frozen=True)
class DPMMultistep:
    """Multistep DPM-Solver++ (x0) and DPM-Solver (eps) of order 1, 2 or 3, one evaluation a step.

    The order rises over the first steps and, with `lower_order_final`, falls to 1 on the last once it has risen fully; a step to
    sigma' = 0 is always of order 1. `second` is 2 for the exact third-order update and 1 for the published one.
    **Source**: arXiv 2211.01095 (`multistep_terms`), 2206.00927 (`noise_multistep_weights`); order rule of the released code.
    """

    order: int = 2
    predicts: str = "x0"
    second: float = EXACT
    lower_order_final: bool = True
    version: int = 1

    def __post_init__(self) -> None:
        check_order(self.order, 3)
        check_predicts(self.predicts)

    @property
    def claims(self) -> Claims:
        if self.order == 3 and self.second != EXACT:
            return Claims(order=2, deviations=("published as order 3: its second difference has half of the Taylor weight",))
        return Claims(order=self.order)

    def plan(self, grid: TimeGrid) -> Plan:
        s, lam = grid.sigmas, -log(grid.sigmas)

        def order_at(i: int) -> int:
            return 1 if grid.at_zero(i + 1) else multistep_order(i, grid.steps, self.order, self.lower_order_final)

        if self.predicts == "eps":
            return slope_plan(grid, lambda i: noise_multistep_weights(order_at(i), newest(s, i, order_at(i)), self.second))
        ops: list[Op] = []
        for i in range(grid.steps):
            weights = multistep_terms(order_at(i), newest(lam, i, order_at(i)), self.second)
            ops.append(Eval(prediction(i), state(i), s[i]))
            ops.append(Combine(state(i + 1), ((state(i), s[i + 1] / s[i]), *predictions(i, weights))))
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))
