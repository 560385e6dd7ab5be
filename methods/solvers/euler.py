"""Euler on the probability flow in sigma, which is DDIM with eta 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fewstep.grid import TimeGrid
from fewstep.plugins import register
from fewstep.sampling.plan import Combine, Eval, Op, Plan, prediction, state
from fewstep.schedule import Array
from methods.claims import Claims


def euler_terms(x: str, d: str, sigma: Array, sigma_to: Array) -> tuple[tuple[str, Array], ...]:
    """x' = (sigma' / sigma) x + (1 - sigma' / sigma) D: the first-order step, exact where D is constant."""
    ratio = sigma_to / sigma
    return ((x, ratio), (d, 1 - ratio))


def euler_ops(grid: TimeGrid, i: int) -> list[Op]:
    """Euler's step from node i, where D is known."""
    return [Combine(state(i + 1), euler_terms(state(i), prediction(i), grid.sigmas[i], grid.sigmas[i + 1]))]


def single_step_plan(grid: TimeGrid, ops_of: Callable[[int], Sequence[Op]]) -> Plan:
    """D at every node, then the ops of `ops_of(i)`, the last of which writes the state at node i + 1; Euler's step where sigma' = 0."""
    ops: list[Op] = []
    for i in range(grid.steps):
        ops.append(Eval(prediction(i), state(i), grid.sigmas[i]))
        ops.extend(euler_ops(grid, i) if grid.at_zero(i + 1) else ops_of(i))
    return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))


@register("solver", "euler", "arXiv 2010.02502 (DDIM, eta 0); 2206.00364")
@dataclass(frozen=True)
class Euler:
    """Euler steps, which are DDIM with eta 0.

    x' = x + (sigma' - sigma) (x - D) / sigma, written in (x, D). **Source**: arXiv 2010.02502 equation 12; 2206.00364 equation 4.
    """

    version: int = 1

    @property
    def claims(self) -> Claims:
        return Claims(order=1)

    def plan(self, grid: TimeGrid) -> Plan:
        ops: list[Op] = []
        for i in range(grid.steps):
            ops += [Eval(prediction(i), state(i), grid.sigmas[i]), *euler_ops(grid, i)]
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))
