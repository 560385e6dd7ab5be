"""Ancestral sampling that goes back up and comes down again, for inpainting by replacement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewstep.checks import check_count
from fewstep.grid import TimeGrid
from fewstep.noise import Slot
from fewstep.plugins import register
from fewstep.sampling.plan import Combine, Eval, Op, Plan, state
from methods.claims import Claims
from methods.solvers.ddim import ancestral_levels, renoised
from methods.solvers.euler import euler_terms


@register("solver", "repaint", "arXiv 2201.09865 (algorithm 1)")
@dataclass(frozen=True)
class RePaint:
    """DDPM's steps (small variance), where each stretch of `jump` steps is taken `resample` times: noise leads back to where it began.

    From sigma_a down to sigma_b: x' = D + (sigma'^2 / sigma^2) (x - D) + s z as `ddpm`; back up: x + sqrt(sigma_a^2 - sigma_b^2) z. The
    last step is taken once. Around a denoiser whose known part is replaced (`fewstep.replacement`) the hidden part comes to fit the known;
    resample 1 is `ddpm`. One evaluation a step and time; published are jumps of 10, 10 times, on 250 steps. **Source**: arXiv 2201.09865,
    algorithm 1 and its jumps; stretches are counted from the first level here, the last may be shorter.
    """

    jump: int = 1
    resample: int = 2
    version: int = 1

    def __post_init__(self) -> None:
        check_count("jump, the steps that are taken again,", self.jump, 1, "e.g. jump=1")
        check_count("resample, how often they are taken,", self.resample, 1, "e.g. resample=2; 1 is ddpm")

    @property
    def claims(self) -> Claims:
        return Claims(order=1)

    def _order(self, steps: int) -> list[tuple[int, int, int]]:
        """Which step is taken, after how many times before, and (else -1) to which node noise leads back after it."""
        found = list[tuple[int, int, int]]()
        for first in range(0, steps - 1, self.jump):
            last = min(first + self.jump, steps - 1)
            for time in range(self.resample):
                back = first if time + 1 < self.resample else -1
                found += [(i, time, back if i + 1 == last else -1) for i in range(first, last)]
        return [*found, (steps - 1, self.resample - 1, -1)]

    def plan(self, grid: TimeGrid) -> Plan:
        s, ops, x, drawn = grid.sigmas, list[Op](), state(0), 0
        for i, time, back in self._order(grid.steps):
            again = "" if time + 1 == self.resample else f"~{time}"  # what is not the last of its kind has a name of its own
            to, d = f"{state(i + 1)}{again}", f"D[{i}]{again}"
            down, up = ancestral_levels(s[i], s[i + 1])
            drawn += 1
            ops.append(Eval(d, x, s[i]))
            ops.append(Combine(to, renoised(euler_terms(x, d, s[i], down), Slot(drawn), up)))
            x = to
            if back >= 0:
                x, added = f"up[{back}]{again}", np.sqrt((s[back] - s[i + 1]) * (s[back] + s[i + 1]))
                drawn += 1
                ops.append(Combine(x, ((to, np.ones_like(added)), (Slot(drawn), added))))
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))
