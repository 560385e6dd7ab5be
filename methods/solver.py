"""What a solver is, and how many network passes a request can reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fewstep.denoiser import Denoiser
from fewstep.errors import Unreachable
from fewstep.grid import TimeGrid
from fewstep.plan import Plan


class Solver(Protocol):
    """A frozen dataclass: a grid in, a plan out. `version` rises when its numbers change."""

    version: int
    order: int

    def plan(self, grid: TimeGrid) -> Plan: ...


MAX_STEPS = 1000


def steps_for_nfe(plan_of: Callable[[int], Plan], denoiser: Denoiser, nfe: int, label: str) -> int:
    """The number of steps whose plan costs exactly `nfe` network passes per image, by counting plans.

    `plan_of(steps)` may raise Unreachable where a step count is not allowed (AFS on one step). **Raises**: Unreachable, which states how
    the counts grow and names the nearest reachable ones.
    """
    counts: dict[int, int] = {}
    for steps in range(1, MAX_STEPS + 1):
        try:
            counts[steps] = plan_of(steps).nfe(denoiser)
        except Unreachable:
            if steps > 1:
                raise
            continue
        if counts[steps] == nfe:
            return steps
        if counts[steps] > nfe and len(counts) >= 3:
            break
    below = [c for c in counts.values() if c < nfe]
    above = [c for c in counts.values() if c > nfe]
    near = [*([max(below)] if below else []), *([min(above)] if above else [])]
    hint = " or ".join(str(c) for c in near)
    raise Unreachable(f"{label} uses {_growth(counts)} evaluations; {nfe} is not reachable; try {hint}")


def _growth(counts: dict[int, int]) -> str:
    """The counts as a formula in the number of steps N, `2N-1`, when they grow evenly; else the first few of them."""
    (n0, c0), (n1, c1), *_ = counts.items()
    slope = (c1 - c0) // (n1 - n0)
    offset = c0 - slope * n0
    if any(c != slope * n + offset for n, c in counts.items()):
        return ", ".join(map(str, list(counts.values())[:4])) + ", ..."
    return f"{'' if slope == 1 else slope}N{f'{offset:+d}' if offset else ''}"
