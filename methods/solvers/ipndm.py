"""iPNDM: Adams-Bashforth with the weights of an even grid on any grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fewstep.grid import TimeGrid
from fewstep.plugins import register
from fewstep.sampling.plan import Plan
from methods.claims import UNEVEN, Claims
from methods.solver import check_order
from methods.solvers.adams import slope_plan

SMOOTH = ("polynomial", "logsnr", "time_uniform")
FIXED_WEIGHTS = ("the weights are those of equal steps in sigma, on any grid",)
FIXED = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def ipndm_weights(order: int, h: Any) -> list[Any]:
    """Weights of d_0, d_-1, ... in x' = x + sum of weight * d over h = sigma' - sigma, whatever the earlier steps were."""
    return [h * weight for weight in FIXED[order - 1]]


@register("solver", "ipndm_1", "arXiv 2204.13902 (iPNDM, order 1, equal to DDIM)", order=1)
@register("solver", "ipndm_2", "arXiv 2204.13902 (iPNDM)", order=2)
@register("solver", "ipndm_3", "arXiv 2204.13902 (iPNDM)", order=3)
@register("solver", "ipndm_4", "arXiv 2204.13902 (iPNDM)", order=4)
@dataclass(frozen=True)
class IPNDM:
    """Improved pseudo numerical method, one evaluation a step: Adams-Bashforth with the weights of equal steps in sigma.

    x' = x + h sum of FIXED * d, of rising order. On a grid even in sigma it has its full order; elsewhere sum of weight (sigma_k -
    sigma_0) is not h^2 / 2, which leaves order 2 where neighbouring steps are nearly equal and order 1 where they are not.
    **Source**: arXiv 2204.13902 (after PNDM, 2202.09778); order rule of the released code of 2312.00094.
    """

    order: int = 4
    version: int = 1

    def __post_init__(self) -> None:
        check_order(self.order, 4)

    @property
    def claims(self) -> Claims:
        smooth = {family: 2 for family in SMOOTH if self.order > 2}
        return Claims(order=self.order, order_on={**smooth, UNEVEN: 1}, deviations=FIXED_WEIGHTS if self.order > 1 else ())

    def plan(self, grid: TimeGrid) -> Plan:
        s = grid.sigmas
        return slope_plan(grid, lambda i: ipndm_weights(min(self.order, i + 1), s[i + 1] - s[i]))
