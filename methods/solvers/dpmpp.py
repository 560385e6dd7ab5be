"""DPM-Solver++: multistep in lambda = -log sigma on the data prediction D."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.elementary import expm1, log
from fewstep.grid import TimeGrid
from fewstep.plan import Combine, Eval, Op, Plan, prediction, state
from methods.registry import register
from methods.solver import Claims, check_order

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


@register("solver", "dpmpp_1s", "arXiv 2211.01095 (order 1, equal to DDIM)", order=1)
@register("solver", "dpmpp_2m", "arXiv 2211.01095 (algorithm 2)", order=2)
@register("solver", "dpmpp_3m", "arXiv 2211.01095 (released code, order 3 as published)", order=3, second=PUBLISHED)
@register("solver", "dpmpp_3m_exact", "arXiv 2211.01095 (order 3 with the Taylor weight of its second difference)", order=3)
@dataclass(frozen=True)
class DPMppMultistep:
    """Multistep DPM-Solver++ of order 1, 2 or 3, one evaluation a step.

    The order rises over the first steps and, with `lower_order_final`, falls to 1 on the last once it has risen fully; a step to
    sigma' = 0 is always of order 1. `second` is 2 for the exact third-order update and 1 for the published one (`multistep_terms`).
    **Source**: arXiv 2211.01095; order rule of the released code.
    """

    order: int = 2
    second: float = EXACT
    lower_order_final: bool = True
    version: int = 1

    def __post_init__(self) -> None:
        check_order(self.order, 3)

    @property
    def claims(self) -> Claims:
        if self.order == 3 and self.second != EXACT:
            return Claims(order=2, deviations=("published as order 3: its second difference has half of the Taylor weight",))
        return Claims(order=self.order)

    def plan(self, grid: TimeGrid) -> Plan:
        s, ops = grid.sigmas, list[Op]()
        lam = -log(s)
        for i in range(grid.steps):
            ops.append(Eval(prediction(i), state(i), s[i]))
            order = 1 if grid.at_zero(i + 1) else multistep_order(i, grid.steps, self.order, self.lower_order_final)
            weights = multistep_terms(order, [lam[j] for j in range(i + 1, i - order, -1)], self.second)
            history = tuple((prediction(i - k), w) for k, w in enumerate(weights))
            ops.append(Combine(state(i + 1), ((state(i), s[i + 1] / s[i]), *history)))
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))
