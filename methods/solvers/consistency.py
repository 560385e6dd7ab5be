"""Multistep consistency sampling: jump to the end, add fresh noise, jump again."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fewstep.errors import Unreachable, UsageError
from fewstep.grid import TimeGrid
from fewstep.noise import Slot
from fewstep.plan import Combine, Eval, Op, Plan, prediction, state
from methods.registry import register
from methods.solver import Claims


@register("solver", "consistency", "arXiv 2303.01469 (algorithm 1)")
@dataclass(frozen=True)
class Consistency:
    """Multistep consistency sampling, one evaluation a step.

    x <- f(x, sigma_i); between jumps x <- f + sqrt(sigma_i^2 - sigma_end^2) n, with sigma_end the last level of the grid.

    Fresh noise before all but the first jump. Run on a denoiser that is no consistency function it is the naive baseline.
    `levels` take the places of the grid's inner ones, high to low, and fix the number of steps. Published for two steps: 0.5853 (CD on
    CIFAR-10), 1.3824 and 1.9128 (CD and CT on ImageNet 64), 4.3656 and 3.9912 (CD and CT on LSUN bedrooms), 0.821 (ECT on CIFAR-10).
    **Source**: arXiv 2303.01469, algorithm 1 and released code; 2406.14548.
    """

    levels: tuple[float, ...] = ()
    version: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(float(level) for level in self.levels))
        if any(a <= b for a, b in pairwise((*self.levels, 0.0))):
            raise UsageError(f"levels of consistency sampling fall and are above 0, got {list(self.levels)}; use e.g. [5.0, 0.821]")

    @property
    def claims(self) -> Claims:
        return Claims(order=None, evaluates="consistency")

    def _levels(self, grid: TimeGrid) -> TimeGrid:
        """The grid with the given levels inside; as it is where none are given."""
        if not self.levels:
            return grid
        first, last, listed = float(grid.sigmas[0]), float(grid.sigmas[-1]), ", ".join(f"{level:g}" for level in self.levels)
        if grid.steps != len(self.levels) + 1:
            raise Unreachable(f"consistency sampling with the level(s) {listed} inside takes {len(self.levels) + 1} steps, no other number")
        if not last < self.levels[-1] <= self.levels[0] < first:
            raise UsageError(f"the levels {listed} are not all inside of the grid's {first:g} to {last:g}; use levels between these")
        return TimeGrid([first, *self.levels, last])

    def plan(self, grid: TimeGrid) -> Plan:
        grid = self._levels(grid)
        s, ops = grid.sigmas, list[Op]()
        for i in range(grid.steps):
            ops.append(Eval(prediction(i), state(i), s[i]))
            last = i + 1 == grid.steps
            renoise = () if last else ((Slot(i + 1), np.sqrt(s[i + 1] ** 2 - s[-1] ** 2)),)
            ops.append(Combine(state(i + 1), ((prediction(i), np.ones_like(s[i])), *renoise)))
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))
