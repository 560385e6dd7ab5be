"""iPNDM with variable steps, as published: slips and all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.grid import TimeGrid
from fewstep.plugins import register
from fewstep.sampling.plan import Plan
from methods.claims import UNEVEN, Claims, Defect
from methods.solver import check_order
from methods.solvers.adams import slope_plan

SLIPS = (
    "order 3 and 4: the second difference's weight misplaces a parenthesis, and is right for equal steps only",
    "order 4: a term of the third difference's weight has the wrong sign, for equal steps too",
    "order 4: the oldest slope's weight has one step ratio for another, so that the weights add up to 1 for constant ratios only",
)
WHY = "the four weights add up to 1 only where step ratios are constant"
# 6 steps from 80 to 0.002, x_0 = c + 80: the largest distance from c + sigma over 80.
TRANSPORT = {"polynomial": 3.56779e-6, "time_uniform": 1.06798e-5, UNEVEN: 4.37528e-8}


def ipndm_v_weights(levels: Sequence[Any]) -> list[Any]:
    """The published weights of d_0, d_-1, ... for levels = (sigma', sigma_0, sigma_-1, ...), two to five of them.

    Three slips are kept that `adams.adams_weights` has not: T1 = (1 - e step2) / 2 for (1 - e) step2 / 2; T2's second term is added, not
    subtracted; the last of four weights has h1 / h2 for h2 / h3. **Source**: the released code of arXiv 2312.00094.
    """
    h, *back = (levels[k] - levels[k + 1] for k in range(len(levels) - 1))
    if not back:
        return [h]
    h1, b = back[0], h / back[0]
    c = [1 + b / 2, -b / 2]
    if len(back) >= 2:
        h2, e = back[1], h / (3 * (h + h1))
        step2 = h * (h + h1) / (h1 * (h1 + h2))
        t1 = (1 - e * step2) / 2
        c = [c[0] + t1, c[1] - (1 + h1 / h2) * t1, t1 * h1 / h2]
        if len(back) == 3:
            h3 = back[2]
            step3 = step2 * (h + h1 + h2) / (h1 + h2 + h3)
            t2 = ((1 - e) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))) * step3
            q = h1 * (h1 + h2) / (h2 * (h2 + h3))
            c = [c[0] + t2, c[1] - (1 + h1 / h2 + q) * t2, c[2] + (h1 / h2 + q * (1 + h2 / h3)) * t2, -t2 * q * h1 / h2]
    return [h * weight for weight in c]


@register("solver", "ipndm_v_2", "arXiv 2312.00094 (released code)", order=2)
@register("solver", "ipndm_v_3", "arXiv 2312.00094 (released code, as published)", order=3)
@register("solver", "ipndm_v_4", "arXiv 2312.00094 (released code, as published)", order=4)
@dataclass(frozen=True)
class IPNDMV:
    """Variable-step iPNDM as published, one evaluation a step; `ab_v` is the method without its slips (`ipndm_v_weights`).

    Order 2 is exact variable-step Adams-Bashforth. A slip of relative size O(h) in the weight of the k-th difference costs one order of
    k + 1 where steps change smoothly; where they do not, order 3 keeps order 2 and order 4 is not consistent.
    **Source**: released code of arXiv 2312.00094.
    """

    order: int = 4
    version: int = 1

    def __post_init__(self) -> None:
        check_order(self.order, 4, lowest=2)

    @property
    def claims(self) -> Claims:
        if self.order == 2:
            return Claims(order=2)
        if self.order == 3:
            return Claims(order=3, order_on={UNEVEN: 2}, deviations=SLIPS[:1])
        defects = tuple(Defect("transport", grid, size, WHY) for grid, size in TRANSPORT.items())
        return Claims(order=3, order_on={"polynomial": 2, "time_uniform": 2, UNEVEN: 0}, defects=defects, deviations=SLIPS)

    def plan(self, grid: TimeGrid) -> Plan:
        s = grid.sigmas
        return slope_plan(grid, lambda i: ipndm_v_weights([s[j] for j in range(i + 1, max(i - self.order, -1), -1)]))
