"""DPM-Solver++: multistep in lambda = -log sigma on the data prediction D."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewstep.grid import TimeGrid
from fewstep.plan import Combine, Eval, Op, Plan, prediction, state
from fewstep.schedule import Array
from methods.registry import register


def multistep_terms(order: int, lam: Array, i: int) -> list[Array]:
    """Weights of D_i, D_(i-1), D_(i-2) in x_(i+1) = (sigma' / sigma) x + sum of weight * D, for lam = -log sigma at the nodes.

    With h = lam' - lam, r0, r1 the previous lambda gaps over h, p1 = expm1(-h), p2 = p1 / h + 1, p3 = p2 / h - 1/2, and the divided
    differences D1 and D2, the update adds -p1 D (order 1), - p1 D1_0 / 2 (order 2), or + p2 D1 - p3 D2 (order 3, as published: half
    of the Taylor weight, so its order is 2). **Source**: arXiv 2211.01095 equations 9, 12, and appendix B; released code for order 3.
    """
    h = lam[i + 1] - lam[i]
    p1 = np.expm1(-h)
    if order == 1:
        return [-p1]
    r0 = (lam[i] - lam[i - 1]) / h
    if order == 2:
        return [-p1 * (1 + 0.5 / r0), 0.5 * p1 / r0]
    r1 = (lam[i - 1] - lam[i - 2]) / h
    p2 = p1 / h + 1
    p3 = p2 / h - 0.5
    # D1_0 = (D_i - D_(i-1)) / r0, D1_1 = (D_(i-1) - D_(i-2)) / r1; each row holds its weights of D_i, D_(i-1), D_(i-2).
    zero = np.zeros_like(r0)
    first = np.stack([1 / r0, -1 / r0, zero])
    second = np.stack([zero, 1 / r1, -1 / r1])
    d1 = first + r0 / (r0 + r1) * (first - second)
    d2 = (first - second) / (r0 + r1)
    weights = p2 * d1 - p3 * d2
    return [weights[0] - p1, weights[1], weights[2]]


@register("solver", "dpmpp_1s", "arXiv 2211.01095 (order 1, equal to DDIM)", order=1)
@register("solver", "dpmpp_2m", "arXiv 2211.01095 (algorithm 2)", order=2)
@register("solver", "dpmpp_3m", "arXiv 2211.01095 (released code, order 3 as published)", order=3)
@dataclass(frozen=True)
class DPMppMultistep:
    """Multistep DPM-Solver++ of order 1, 2 or 3, one evaluation a step.

    The order rises over the first steps and, with `lower_order_final`, falls to 1 on the last once it has risen fully; a step to
    sigma' = 0 is always of order 1. **Source**: arXiv 2211.01095; order rule of the released code.
    """

    order: int = 2
    lower_order_final: bool = True
    version: int = 1

    def _order_at(self, i: int, nodes: int) -> int:
        rising = min(self.order, i + 1)
        if rising < self.order or not self.lower_order_final:
            return rising
        return min(self.order, nodes - 1 - i)

    def plan(self, grid: TimeGrid) -> Plan:
        s, ops = grid.sigmas, list[Op]()
        with np.errstate(divide="ignore"):
            lam = -np.log(s)
        for i in range(grid.steps):
            ops.append(Eval(prediction(i), state(i), s[i]))
            order = 1 if np.all(s[i + 1] == 0) else self._order_at(i, grid.steps + 1)
            weights = multistep_terms(order, lam, i)
            history = tuple((prediction(i - k), w) for k, w in enumerate(weights))
            ops.append(Combine(state(i + 1), ((state(i), s[i + 1] / s[i]), *history)))
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))
