"""The stochastic N-step sampler of guided distillation: two intervals down, one back up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewstep.grid import TimeGrid
from fewstep.noise import Slot
from fewstep.plugins import register
from fewstep.sampling.plan import Combine, Eval, Op, Plan, prediction, state
from methods.claims import Claims
from methods.solvers.ddim import renoised
from methods.solvers.euler import euler_terms


@register("solver", "nstep_stochastic", "arXiv 2210.03142 (stochastic N-step sampling)")
@dataclass(frozen=True)
class NStepStochastic:
    """Deterministic jumps over two intervals of the grid, each followed by noise over one; one evaluation a step.

    x' = x + (sigma_2 - sigma) (x - D) / sigma + sqrt(sigma_1^2 - sigma_2^2) z, sigma_1 and sigma_2 the next two levels; the last step is a
    single Euler step. It is meant for a student distilled for jumps over two intervals. **Source**: arXiv 2210.03142, stochastic sampling
    (there z_s = (a_s / a_k) z_k + noise of variance (1 - e^(lambda_s - lambda_k)) s_s^2, which in x = z / a is sigma_s^2 - sigma_k^2).
    """

    version: int = 1

    @property
    def claims(self) -> Claims:
        return Claims(order=1)

    def plan(self, grid: TimeGrid) -> Plan:
        s, ops = grid.sigmas, list[Op]()
        for i in range(grid.steps):
            x, d, below = state(i), prediction(i), s[min(i + 2, grid.steps)]
            ops.append(Eval(d, x, s[i]))
            added = np.sqrt((s[i + 1] - below) * (s[i + 1] + below))
            ops.append(Combine(state(i + 1), renoised(euler_terms(x, d, s[i], below), Slot(i + 1), added)))
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))
