"""Heun's second-order method on the probability flow in sigma."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.grid import TimeGrid
from fewstep.plugins import register
from fewstep.sampling.plan import Combine, Eval, Op, Plan, prediction, state
from fewstep.schedule import Array
from methods.claims import Claims
from methods.solvers.euler import euler_terms, single_step_plan


def heun_ops(x: str, i: int, sigma: Array, sigma_to: Array) -> list[Op]:
    """The step from slot x at sigma, with D of step i there, to the state at node i + 1.

    d1 = (x1 - D1) / sigma' with x1 = r x + (1 - r) D, r = sigma' / sigma, so h d1 = (sigma' - sigma) / sigma' (r x + (1 - r) D - D1).
    """
    d, inner, r, h1 = prediction(i), f"x1[{i}]", sigma_to / sigma, (sigma_to - sigma) / sigma_to
    half = ((x, 1 + (r - 1) / 2 + h1 * r / 2), (d, ((1 - r) + h1 * (1 - r)) / 2), (f"D1[{i}]", -h1 / 2))
    return [Combine(inner, euler_terms(x, d, sigma, sigma_to)), Eval(f"D1[{i}]", inner, sigma_to), Combine(state(i + 1), half)]


@register("solver", "heun", "arXiv 2206.00364 (algorithm 1)")
@dataclass(frozen=True)
class Heun:
    """Heun's method, two evaluations a step.

    x' = x + h (d + d1) / 2 with d = (x - D) / sigma and d1 the slope at the Euler point; Euler where sigma' = 0.

    Coefficients are of (x, D, D1), which keeps fp32 accurate at large sigma. **Source**: arXiv 2206.00364, algorithm 1.
    """

    version: int = 1

    @property
    def claims(self) -> Claims:
        return Claims(order=2)

    def plan(self, grid: TimeGrid) -> Plan:
        return single_step_plan(grid, lambda i: heun_ops(state(i), i, grid.sigmas[i], grid.sigmas[i + 1]))
