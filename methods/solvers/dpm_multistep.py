"""Multistep DPM-Solver on the noise prediction: the slope d = (x - D) / sigma as a polynomial in lambda = -log sigma."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.elementary import expm1, log
from fewstep.grid import TimeGrid
from fewstep.plan import Plan
from methods.registry import register
from methods.solver import Claims, check_order
from methods.solvers.adams import slope_plan
from methods.solvers.dpmpp import EXACT, PUBLISHED, multistep_order


def noise_multistep_weights(order: int, levels: Sequence[Any], second: float = EXACT) -> list[Any]:
    """Weights of d_0, d_-1, d_-2 in x' = x + sum of weight * d, levels = (sigma', sigma_0, sigma_-1, ...).

    With h, r0, r1, D1_0, D1_1, D1, D2 as in `dpmpp.multistep_terms` but of d, p1 = expm1(h), p2 = p1 / h - 1, p3 = p2 / h - 1/2, the update
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


@register("solver", "dpm_1s", "arXiv 2206.00927 (DPM-Solver-1, equal to DDIM)", order=1)
@register("solver", "dpm_2m", "arXiv 2206.00927 (noise prediction in the multistep form of 2211.01095)", order=2)
@register("solver", "dpm_3m", "arXiv 2206.00927 (noise prediction, released code, order 3 as published)", order=3, second=PUBLISHED)
@register("solver", "dpm_3m_exact", "arXiv 2206.00927 (noise prediction, order 3 with the Taylor weight of its second difference)", order=3)
@dataclass(frozen=True)
class DPMMultistep:
    """Multistep DPM-Solver of order 1, 2 or 3 on the noise prediction, one evaluation a step.

    The twin of `dpmpp_2m` and `dpmpp_3m` (`dpmpp.DPMppMultistep`) with d in place of D, and with the same order rule and `second`.
    **Source**: arXiv 2206.00927 in the multistep form of 2211.01095, appendix B; released code.
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
        s = grid.sigmas

        def weights(i: int) -> list[Any]:
            order = multistep_order(i, grid.steps, self.order, self.lower_order_final)
            return noise_multistep_weights(order, [s[j] for j in range(i + 1, i - order, -1)], self.second)

        return slope_plan(grid, weights)
