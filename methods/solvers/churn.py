"""The stochastic sampler of EDM: raise the noise level a little, then take one of Heun's steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewstep.errors import UsageError
from fewstep.grid import TimeGrid, make_grid
from fewstep.noise import Slot
from fewstep.plugins import register
from fewstep.sampling.plan import Combine, Eval, Op, Plan, prediction, state
from fewstep.schedule import Array
from methods.claims import CERTIFIED, UNEVEN, Claims, Defect
from methods.solvers.euler import euler_terms
from methods.solvers.heun import heun_ops

MOST = np.sqrt(2) - 1  # a churn at most doubles the variance
# The levels that a defect's size is declared for: 6 steps from 80 to 0.002.
PROBES = {family: make_grid(family, 6, (0.002, 80.0)).sigmas for family in CERTIFIED}
PROBES[UNEVEN] = 80 * (0.002 / 80) ** (np.array([0, 1, 2.4, 3.1, 4, 5, 6.4]) / 6.4)


@register("solver", "edm_churn", "arXiv 2206.00364 (algorithm 2)")
@dataclass(frozen=True)
class Churn:
    """Stochastic Heun, two evaluations a step (one in the step to 0).

    x^ = x + s_noise sqrt(t^2 - sigma^2) z at t = (1 + gamma) sigma, then Heun's step from t to sigma'. gamma is min(s_churn / N,
    sqrt(2) - 1) where s_min <= sigma <= s_max, else 0, and then no noise is drawn. N is the number of steps: on a grid that ends at 0 that
    is the number of noise levels before 0, as published. The defaults are those for ImageNet-64. AFS needs a first level without churn.
    **Source**: arXiv 2206.00364, algorithm 2 and table 5.
    """

    s_churn: float = 40.0
    s_min: float = 0.05
    s_max: float = 50.0
    s_noise: float = 1.003
    version: int = 1

    def __post_init__(self) -> None:
        if self.s_churn < 0 or self.s_noise <= 0:
            raise UsageError(f"need s_churn >= 0 and s_noise > 0, got {self.s_churn} and {self.s_noise}; s_churn=0 is Heun")

    @property
    def claims(self) -> Claims:
        sizes = {grid: self._excess(levels) for grid, levels in PROBES.items()}
        if not any(sizes.values()):
            return Claims(order=2)
        why = "s_noise != 1 adds s_noise^2 times the variance that raising the level needs; no step size makes up for it"
        found = tuple(Defect("variance", grid, size, why) for grid, size in sizes.items() if size)
        limit = "unless s_noise is 1 it converges to another distribution than the data's"
        slow = "the way there has a part of order 1 in proportion to s_noise^2 - 1, which shows where churn is weak or s_noise far from 1"
        return Claims(order=2, defects=found, deviations=(limit, slow))

    def _excess(self, levels: Array) -> float:
        """Relative excess of the last variance on point data: churn by g = t / sigma makes e / g^2 + (s_noise^2 - 1)(1 - 1 / g^2) of e."""
        excess = 0.0
        for sigma in levels[:-1]:
            kept = float((sigma / self._churned(sigma, len(levels) - 1)) ** 2)
            excess = kept * excess + (1 - kept) * (self.s_noise**2 - 1)
        return excess

    def _churned(self, sigma: Array, steps: int) -> Array:
        """The raised level (1 + gamma) sigma."""
        inside = (self.s_min <= sigma) & (sigma <= self.s_max)
        return np.where(inside, 1 + min(self.s_churn / steps, MOST), 1.0) * sigma

    def plan(self, grid: TimeGrid) -> Plan:
        s, ops = grid.sigmas, list[Op]()
        for i in range(grid.steps):
            x, d, to, t = state(i), prediction(i), state(i + 1), self._churned(s[i], grid.steps)
            if np.any(t > s[i]):
                added = self.s_noise * np.sqrt((t - s[i]) * (t + s[i]))
                ops.append(Combine(f"xh[{i}]", ((x, np.ones_like(t)), (Slot(i + 1), added))))
                x = f"xh[{i}]"
            ops.append(Eval(d, x, t))
            ops += [Combine(to, euler_terms(x, d, t, s[i + 1]))] if grid.at_zero(i + 1) else heun_ops(x, i, t, s[i + 1])
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))
