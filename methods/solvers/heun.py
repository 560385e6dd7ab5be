"""Heun's second-order method on the probability flow in sigma."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.grid import TimeGrid
from fewstep.plan import Combine, Eval, Op, Plan, prediction, state
from methods.registry import register
from methods.solver import Claims
from methods.solvers.euler import euler_terms


@register("solver", "heun", "arXiv 2206.00364 (algorithm 1)")
@dataclass(frozen=True)
class Heun:
    """Heun's method, two evaluations a step.

    x' = x + h (d + d1) / 2 with d = (x - D) / sigma and d1 the slope at the Euler point; Euler where sigma' = 0.

    Coefficients are of (x, D, D1), which keeps fp32 accurate at large sigma. **Source**: arXiv 2206.00364,
    algorithm 1 (deterministic).
    """

    version: int = 1

    @property
    def claims(self) -> Claims:
        return Claims(order=2)

    def plan(self, grid: TimeGrid) -> Plan:
        s, ops = grid.sigmas, list[Op]()
        for i in range(grid.steps):
            x, d, to = state(i), prediction(i), state(i + 1)
            euler = euler_terms(x, d, s[i], s[i + 1])
            ops.append(Eval(d, x, s[i]))
            if grid.at_zero(i + 1):
                ops.append(Combine(to, euler))
                continue
            # d1 = (x1 - D1) / s' with x1 = r x + (1 - r) D, so h d1 = (s' - s) / s' (r x + (1 - r) D - D1).
            r, h1 = s[i + 1] / s[i], (s[i + 1] - s[i]) / s[i + 1]
            ops.append(Combine(f"x1[{i}]", euler))
            ops.append(Eval(f"D1[{i}]", f"x1[{i}]", s[i + 1]))
            half = ((x, 1 + (r - 1) / 2 + h1 * r / 2), (d, ((1 - r) + h1 * (1 - r)) / 2), (f"D1[{i}]", -h1 / 2))
            ops.append(Combine(to, half))
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))
