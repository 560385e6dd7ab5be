"""Adams-Bashforth on the slopes d = (x - D) / sigma: the interpolating polynomial in sigma, integrated exactly on any grid.

Also what every multistep solver on slopes shares: the plan, and its update in coordinates (x, D).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.grid import TimeGrid
from fewstep.plugins import register
from fewstep.sampling.plan import Coef, Combine, Eval, Op, Plan, prediction, state
from methods.claims import Claims
from methods.solver import check_order


def lagrange(u: Any, nodes: Sequence[Any]) -> list[Any]:
    """The values at u of the polynomials L_j that are 1 at nodes[j] and 0 at the other nodes."""
    basis: list[Any] = []
    for j, own in enumerate(nodes):
        value: Any = 1.0
        for other in (*nodes[:j], *nodes[j + 1 :]):
            value = value * ((u - other) / (own - other))
        basis.append(value)
    return basis


def adams_weights(levels: Sequence[Any]) -> list[Any]:
    """Weights of d_0, d_-1, ... in x' = x + sum of weight * d: the integrals of L_j from sigma_0 to sigma', for up to four slopes.

    levels = (sigma', sigma_0, sigma_-1, ...): floats, arrays [B] or tensors [B]. Gauss's two points integrate the cubic exactly.
    """
    h, root = levels[0] - levels[1], 3**-0.5
    low, high = (lagrange(levels[1] + h * (1 + sign * root) / 2, levels[1:]) for sign in (-1, 1))
    return [h / 2 * (a + b) for a, b in zip(low, high)]


def slope_terms(history: Sequence[tuple[str, str, Any]], weights: Sequence[Any]) -> tuple[tuple[str, Coef], ...]:
    """x' = x_0 + sum of weight * (x_k - D_k) / sigma_k, for a history of (slot of x, slot of D, sigma), the newest first."""
    parts = [(x, d, w / sigma) for (x, d, sigma), w in zip(history, weights, strict=True)]
    (first, _, share), *_ = parts
    return ((first, 1 + share), *((x, c) for x, _, c in parts[1:]), *((d, -c) for _, d, c in parts))


def slope_plan(grid: TimeGrid, weights_at: Callable[[int], Sequence[Any]]) -> Plan:
    """One evaluation a step; step i weights the newest slopes by `weights_at(i)`, and is Euler's where sigma' = 0."""
    s, ops = grid.sigmas, list[Op]()
    for i in range(grid.steps):
        ops.append(Eval(prediction(i), state(i), s[i]))
        weights = [-s[i]] if grid.at_zero(i + 1) else weights_at(i)
        history = [(state(j), prediction(j), s[j]) for j in range(i, i - len(weights), -1)]
        ops.append(Combine(state(i + 1), slope_terms(history, weights)))
    return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))


@register("solver", "ab_v_1", "arXiv 2204.13902 (order 1, equal to DDIM)", order=1)
@register("solver", "ab_v_2", "arXiv 2204.13902 (polynomial in sigma)", order=2)
@register("solver", "ab_v_3", "arXiv 2204.13902 (polynomial in sigma)", order=3)
@register("solver", "ab_v_4", "arXiv 2204.13902 (polynomial in sigma)", order=4)
@dataclass(frozen=True)
class AdamsBashforth:
    """Variable-step Adams-Bashforth of order 1 to 4 in sigma, one evaluation a step.

    x' = x + the integral over sigma of the polynomial through the last `order` slopes; the order rises over the first steps.
    What `ipndm_v` approximates. **Source**: arXiv 2204.13902 (tAB-DEIS with sigma itself as the time of the polynomial).
    """

    order: int = 4
    version: int = 1

    def __post_init__(self) -> None:
        check_order(self.order, 4)

    @property
    def claims(self) -> Claims:
        return Claims(order=self.order)

    def plan(self, grid: TimeGrid) -> Plan:
        s = grid.sigmas
        return slope_plan(grid, lambda i: adams_weights([s[j] for j in range(i + 1, max(i - self.order, -1), -1)]))
