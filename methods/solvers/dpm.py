"""Single-step DPM-Solver in sigma, where its noise-prediction form loses all exponentials."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewstep.grid import TimeGrid
from fewstep.plan import Combine, Eval, Op, Plan, prediction, state
from methods.registry import register
from methods.solver import Claims
from methods.solvers.euler import euler_terms


@register("solver", "dpm_2s", "arXiv 2206.00927 (DPM-Solver-2)")
@dataclass(frozen=True)
class DPM2S:
    """Single-step DPM-Solver of order 2, two evaluations a step.

    x' = x + h (d_mid / (2 r) + (1 - 1 / (2 r)) d), d_mid the slope at sigma_mid = sigma'^r sigma^(1-r); Euler where sigma' = 0.

    Two evaluations a step; r = 1/2 is the geometric midpoint. **Source**: arXiv 2206.00927 algorithm 4, in x = x0 + sigma n.
    """

    r: float = 0.5
    version: int = 1

    @property
    def claims(self) -> Claims:
        return Claims(order=2)

    def plan(self, grid: TimeGrid) -> Plan:
        s, ops = grid.sigmas, list[Op]()
        for i in range(grid.steps):
            x, d, to = state(i), prediction(i), state(i + 1)
            ops.append(Eval(d, x, s[i]))
            if np.all(s[i + 1] == 0):
                ops.append(Combine(to, euler_terms(x, d, s[i], s[i + 1])))
                continue
            mid = s[i + 1] ** self.r * s[i] ** (1 - self.r)
            ops.append(Combine(f"xm[{i}]", euler_terms(x, d, s[i], mid)))
            ops.append(Eval(f"Dm[{i}]", f"xm[{i}]", mid))
            # d = (x - D) / s; d_mid = (q x + (1 - q) D - D_mid) / mid with q = mid / s, so q / mid = 1 / s.
            q, a, b = mid / s[i], (s[i + 1] - s[i]) / (2 * self.r), (s[i + 1] - s[i]) * (1 - 1 / (2 * self.r))
            terms = ((x, 1 + (a + b) / s[i]), (d, a * (1 - q) / mid - b / s[i]), (f"Dm[{i}]", -a / mid))
            ops.append(Combine(to, terms))
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))
