"""Multistep consistency sampling: jump to the end, add fresh noise, jump again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewstep.grid import TimeGrid
from fewstep.noise import Slot
from fewstep.plugins import register
from fewstep.sampling.plan import Combine, Eval, Op, Plan, prediction, state
from methods.claims import Claims


@register("solver", "consistency", "arXiv 2303.01469 (algorithm 1)")
@dataclass(frozen=True)
class Consistency:
    """Multistep consistency sampling, one evaluation a step.

    x <- f(x, sigma_i); between jumps x <- f + sqrt(sigma_i^2 - sigma_end^2) n, with sigma_end the last level of the grid.

    Fresh noise before all but the first jump. Run on a denoiser that is no consistency function it is the naive baseline.
    **Source**: arXiv 2303.01469, algorithm 1.
    """

    version: int = 1

    @property
    def claims(self) -> Claims:
        return Claims(order=None, evaluates="consistency")

    def plan(self, grid: TimeGrid) -> Plan:
        s, ops = grid.sigmas, list[Op]()
        for i in range(grid.steps):
            ops.append(Eval(prediction(i), state(i), s[i]))
            last = i + 1 == grid.steps
            renoise = () if last else ((Slot(i + 1), np.sqrt(s[i + 1] ** 2 - s[-1] ** 2)),)
            ops.append(Combine(state(i + 1), ((prediction(i), np.ones_like(s[i])), *renoise)))
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))
