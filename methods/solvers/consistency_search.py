"""Multistep consistency sampling on levels searched for a student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewstep.energy import energy_distance
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import TimeGrid
from fewstep.noise import LATENT, PhiloxNoise, Rng
from fewstep.plugins import register
from fewstep.sampling.plan import Plan, with_afs
from fewstep.sampling.runner import end_of
from fewstep.schedule import Array
from methods.claims import Claims
from methods.solver import Fitting, fitted_levels
from methods.solvers.consistency import Consistency

SEEDS = 1 << 46  # the first seed of a search's samples, far from those that cells are sampled with


def searched(value: Callable[[float], float], low: float, high: float, points: int, rounds: int) -> tuple[float, float]:
    """The level between low and high with the least value, and that value.

    `points` levels evenly spaced in log sigma, then `rounds` of ternary search between the neighbours of the best of them; the best that
    was seen counts, whether or not the value has one minimum.
    """
    levels = np.linspace(np.log(low), np.log(high), points + 2)
    seen = {level: value(float(np.exp(level))) for level in levels[1:-1]}
    at = levels.tolist().index(min(seen, key=lambda level: seen[level]))
    left, right = levels[at - 1], levels[at + 1]
    for _ in range(rounds):
        thirds = left + (right - left) / 3, right - (right - left) / 3
        seen |= {level: value(float(np.exp(level))) for level in thirds}
        left, right = (left, thirds[1]) if seen[thirds[0]] <= seen[thirds[1]] else (thirds[0], right)
    best = min(seen, key=lambda level: seen[level])
    return float(np.exp(best)), seen[best]


@register("solver", "consistency_search", "arXiv 2303.01469 (algorithm 1, levels by greedy search)")
@dataclass(frozen=True)
class ConsistencySearch:
    """Multistep consistency sampling on searched levels: greedily, one more level at a time where the samples are nearest to the data.

    Each added level is `searched` between the ends with those before it fixed, by the `energy_distance` of `samples` samples from the
    same noise, drawn class by class, to as many images of the data. **Source**: arXiv 2303.01469, section 6 and released code (ternary
    search on the FID of 50k samples); ours starts each search from `points` levels, because the value has more than one minimum once
    there are levels between, and needs no features.
    """

    samples: int = 1024
    points: int = 10
    rounds: int = 4
    version: int = 2

    def __post_init__(self) -> None:
        if self.samples < 2 or self.points < 1 or self.rounds < 0:
            got = f"samples={self.samples}, points={self.points} and rounds={self.rounds}"
            raise UsageError(f"consistency_search needs samples >= 2, points >= 1 and rounds >= 0, got {got}; leave them at their defaults")

    @property
    def claims(self) -> Claims:
        return Consistency().claims

    def plan(self, grid: TimeGrid) -> Plan:
        raise UsageError("consistency_search plans with searched levels only: use bound(fit(...)), or bound(stub()) for the grid as it is")

    def check(self, steps: int, grid_of: Callable[[int], TimeGrid], afs: bool) -> None:
        if steps - afs < 1:
            raise Unreachable("AFS on a one-step grid leaves nothing to the network; use at least two steps or afs=false")

    def fit(self, fitting: Fitting) -> Mapping[str, Tensor]:
        """The levels [steps + 1], and the energy distances after each added one [steps - 1]. **Raises**: UsageError without data."""
        self.check(fitting.steps, fitting.grid, fitting.afs)
        if fitting.data is None:
            raise UsageError("consistency_search compares samples with data, and this task has none; fit it with Fitting(data=...)")
        teacher, data = fitting.teacher, fitting.data.draw(self.samples, Rng((fitting.seed,))).x0.numpy()
        seeds = torch.arange(self.samples, device=fitting.device) + SEEDS + fitting.seed * self.samples
        source, distances = PhiloxNoise(seeds), list[float]()
        levels = fitting.grid(1).sigmas
        cond = fitting.conditions(seeds)
        # Fewer than two of a class have no pair within it: taken for i.i.d. draws, all values are too low, by about the same.
        labels = cond.label.cpu().numpy() if cond.label is not None and self.samples >= 2 * teacher.classes else None
        x = source.normal(LATENT, teacher.shape) * float(levels[0])

        def distance(level: float) -> float:
            tried = np.sort([*levels, level])[::-1]
            if (np.diff(tried) == 0).any():
                return float("inf")
            plan = Consistency().plan(TimeGrid(tried))
            plan = with_afs(plan) if fitting.afs else plan
            with torch.no_grad():
                return energy_distance(end_of(plan, teacher, x, source, cond).cpu().numpy(), data, labels)

        low = max(float(levels[-1]), teacher.sigma_range[0])
        for _ in range(fitting.steps - 1):
            level, least = searched(distance, low, float(levels[0]), self.points, self.rounds)
            levels = np.sort([*levels, level])[::-1]
            distances.append(least)
        return {"levels": torch.tensor(levels.copy()), "distances": torch.tensor(distances)}

    def passes(self, steps: int, afs: bool = False) -> int:
        return self.samples * (self.points + 2 * self.rounds) * sum(n - afs for n in range(2, steps + 1))

    def stub(self) -> Mapping[str, Tensor]:
        return {}

    def bound(self, artefact: Mapping[str, Tensor]) -> OnSearchedLevels:
        return OnSearchedLevels(artefact["levels"].cpu().numpy() if artefact else None)


@dataclass(frozen=True, eq=False)
class OnSearchedLevels:
    """Consistency sampling on searched levels, asked for by a grid with the same ends and number of steps; without levels on that grid.

    **Raises**: UsageError for another grid than that of the levels.
    """

    levels: Array | None = None
    version: int = 1

    @property
    def claims(self) -> Claims:
        return Consistency().claims

    def plan(self, grid: TimeGrid) -> Plan:
        return Consistency().plan(grid if self.levels is None else fitted_levels("consistency_search", self.levels, grid))
