"""DPM-Solver++, single-step: the data prediction at an inner level."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.errors import UsageError
from fewstep.grid import TimeGrid
from fewstep.plan import Combine, Eval, Op, Plan, prediction, state
from methods.registry import register
from methods.solver import Claims
from methods.solvers.euler import euler_terms


@register("solver", "dpmpp_2s", "arXiv 2211.01095 (algorithm 1, DPM-Solver++(2S))")
@dataclass(frozen=True)
class DPMpp2S:
    """Single-step DPM-Solver++ of order 2, two evaluations a step.

    x' = (sigma' / sigma) x + (1 - sigma' / sigma) ((1 - 1 / (2 r)) D + D_mid / (2 r)), D_mid at the Euler point of sigma_mid = sigma'^r
    sigma^(1-r); Euler where sigma' = 0. **Source**: arXiv 2211.01095, algorithm 1, in x = x0 + sigma n.
    """

    r: float = 0.5
    version: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.r <= 1:
            raise UsageError(f"r must be in (0, 1], got {self.r}; 0.5 is the geometric midpoint")

    @property
    def claims(self) -> Claims:
        return Claims(order=2)

    def plan(self, grid: TimeGrid) -> Plan:
        s, ops = grid.sigmas, list[Op]()
        for i in range(grid.steps):
            x, d, to = state(i), prediction(i), state(i + 1)
            ops.append(Eval(d, x, s[i]))
            if grid.at_zero(i + 1):
                ops.append(Combine(to, euler_terms(x, d, s[i], s[i + 1])))
                continue
            mid, ratio, share = s[i + 1] ** self.r * s[i] ** (1 - self.r), s[i + 1] / s[i], 1 / (2 * self.r)
            ops.append(Combine(f"xm[{i}]", euler_terms(x, d, s[i], mid)))
            ops.append(Eval(f"Dm[{i}]", f"xm[{i}]", mid))
            ops.append(Combine(to, ((x, ratio), (d, (1 - ratio) * (1 - share)), (f"Dm[{i}]", (1 - ratio) * share))))
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))
