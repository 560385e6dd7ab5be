"""Ancestral sampling of DDPM, with either of its two fixed variances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewstep.errors import UsageError, near_misses
from fewstep.grid import TimeGrid
from fewstep.noise import Slot
from fewstep.plugins import register
from fewstep.sampling.plan import Combine, Eval, Op, Plan, prediction, state
from methods.claims import UNEVEN, Claims, Defect
from methods.solvers.ddim import ancestral_levels, renoised
from methods.solvers.euler import euler_terms

VARIANCES = ("small", "large")
# Relative excess of the final variance on point data, 6 steps from 80 to 0.002, with the large variance.
EXCESS = {"polynomial": 660.246, "logsnr": 33.1862, "time_uniform": 54366.5, UNEVEN: 101.351}


@register("solver", "ddpm", "arXiv 2006.11239 (algorithm 2, small variance)")
@register("solver", "ddpm_large", "arXiv 2006.11239 (algorithm 2, large variance)", variance="large")
@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling, one evaluation a step: the posterior mean at x0 = D, plus noise of one of two fixed variances.

    x' = D + (sigma'^2 / sigma^2) (x - D) + s z. `small`: s^2 = (sigma'^2 / sigma^2) (sigma^2 - sigma'^2), the posterior's own. `large`: the
    chain's forward b = 1 - abar / abar', abar = 1 / (1 + sigma^2); in x = z / sqrt(abar') it is s^2 = b (1 + sigma'^2) = (sigma^2 -
    sigma'^2) (1 + sigma'^2) / (1 + sigma^2). No noise where sigma' = 0. **Source**: arXiv 2006.11239 section 3.2 and algorithm 2.
    """

    variance: str = "small"
    version: int = 1

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise UsageError(f"unknown variance '{self.variance}'{near_misses(self.variance, VARIANCES)}")

    @property
    def claims(self) -> Claims:
        why = "the forward variance b exceeds the posterior's by sigma^2 (1 + sigma'^2) / (sigma'^2 (1 + sigma^2))"
        sizes = tuple(Defect("variance", grid, size, why) for grid, size in EXCESS.items())
        return Claims(order=1, defects=sizes if self.variance == "large" else ())

    def plan(self, grid: TimeGrid) -> Plan:
        s, ops = grid.sigmas, list[Op]()
        for i in range(grid.steps):
            x, d = state(i), prediction(i)
            down, up = ancestral_levels(s[i], s[i + 1])
            if self.variance == "large" and not grid.at_zero(i + 1):
                up = np.sqrt((s[i] - s[i + 1]) * (s[i] + s[i + 1]) * (1 + s[i + 1] ** 2) / (1 + s[i] ** 2))
            ops.append(Eval(d, x, s[i]))
            ops.append(Combine(state(i + 1), renoised(euler_terms(x, d, s[i], down), Slot(i + 1), up)))
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))
