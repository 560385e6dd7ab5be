"""GITS: the time grid of a solver chosen by dynamic programming on how much a teacher's trajectory bends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewstep.cond import Cond
from fewstep.errors import Unreachable, UsageError, near_misses
from fewstep.grid import TimeGrid
from fewstep.noise import Rng
from fewstep.plugins import get, register
from fewstep.sampling.plan import Plan, prediction, with_afs
from fewstep.sampling.runner import end_of, run
from fewstep.schedule import Array
from methods.claims import Claims
from methods.solver import PROBE, Fitting, Solver, evaluations, fitted_levels, ode_solver

METRICS = ("dev", "l1", "l2")
SEARCHED = (0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3)


def deviation(points: Tensor, x: Tensor) -> Tensor:
    """Distance of points [..., B, dim] from the line through the ends of trajectories x [N, B, dim], mean over the samples."""
    line, rest = x[-1] - x[0], x[-1] - points
    line = line / line.norm(dim=-1, keepdim=True)
    return (rest - (rest * line).sum(-1, keepdim=True) * line).norm(dim=-1).mean(-1)


def cost_matrix(states: Tensor, predictions: Tensor, levels: Array, metric: str = "dev") -> Array:
    """cost[i, j]: how far an Euler jump along the teacher's slope at node i lands from its trajectory at node j > i, mean over samples.

    `l1`, `l2`: that norm of (jump - x_j). `dev`: the jump's distance from the line through the trajectory's ends, less that of x_j,
    which may be negative. Entries with j <= i are 0. **Shapes**: states [N, B, ...], predictions [N - 1, B, ...], levels [N], result
    [N, N]. **Source**: arXiv 2405.11326 and its released code.
    """
    x, d = states.double().flatten(2), predictions.double().flatten(2)
    own, cost = deviation(x, x), torch.zeros(len(levels), len(levels), dtype=torch.float64)
    for i in range(len(levels) - 1):
        ratio = torch.tensor(levels[i + 1 :] / levels[i]).to(x.device).view(-1, 1, 1)
        jumps = ratio * x[i] + (1 - ratio) * d[i]
        far = deviation(jumps, x) - own[i + 1 :] if metric == "dev" else (jumps - x[i + 1 :]).norm(p=int(metric[1]), dim=-1).mean(-1)
        cost[i, i + 1 :] = far.cpu()
    return cost.numpy()


def cheapest_path(cost: Array, steps: int, coeff: float) -> list[int]:
    """`steps` + 1 nodes from the first to the last that minimise cost[0, j] + coeff (cost[j, k] + coeff (...)); ties go to early nodes.

    V[i, 1] = cost[i, N-1], V[i, k] = min over i < j < N-1 of cost[i, j] + coeff V[j, k-1]. **Raises**: Unreachable for more steps than
    the nodes allow. **Source**: arXiv 2405.11326.
    """
    last = len(cost) - 1
    refuse_more(steps, last)
    after = np.triu(np.ones((last, last), dtype=bool), 1)  # which node may follow which, the last aside
    best, follows = cost[:last, last], []
    for _ in range(steps - 1):
        whole = np.where(after, cost[:last, :last] + coeff * best, np.inf)
        follows.append(whole.argmin(axis=1))  # the first of equals
        best = whole.min(axis=1)
    path = [0]
    for follow in reversed(follows):
        path.append(int(follow[path[-1]]))
    return [*path, last]


def refuse_more(steps: int, last: int) -> None:
    """**Raises**: Unreachable for more steps than the teacher's grid has."""
    if steps > last:
        raise Unreachable(f"gits cannot choose {steps} steps from a teacher grid of {last}; raise teacher_steps or take fewer steps")


@register("solver", "gits", "arXiv 2405.11326 (GITS on iPNDM)")
@register("solver", "gits_search", "arXiv 2405.11326 (GITS on iPNDM, coefficient by search)", search=True)
@register("solver", "gits_euler", "arXiv 2405.11326 (GITS on DDIM)", base="euler")
@register("solver", "gits_heun", "arXiv 2405.11326 (GITS on Heun)", base="heun")
@register("solver", "gits_dpmpp_2m", "arXiv 2405.11326 (GITS on DPM-Solver++)", base="dpmpp_2m")
@dataclass(frozen=True)
class GITS:
    """GITS: `base` on levels of a teacher's grid of `teacher_steps`, chosen where the trajectory is straight enough.

    The cheapest path through `cost_matrix` (`metric`) of `teacher` runs from `warmup` samples, in batches of `batch_size`; coeff > 1
    favours accuracy late. With AFS one of the steps is free: its node is inserted below the first, where the run on the last batch ends
    nearest to the teacher's. `search` chooses coeff by the same rule on all warm-up batches (ours: the best one differs by data set,
    and 1.15 may lose to the plain grid). **Source**: arXiv 2405.11326 and its released code.
    """

    base: str = "ipndm_4"
    teacher: str = "ipndm_4"
    teacher_steps: int = 60
    warmup: int = 256
    batch_size: int = 64
    coeff: float = 1.15
    metric: str = "dev"
    search: bool = False
    version: int = 2

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise UsageError(f"unknown metric '{self.metric}'{near_misses(self.metric, METRICS)}")
        if min(self.teacher_steps, self.warmup, self.batch_size) < 1 or self.coeff <= 0:
            raise UsageError("gits needs teacher_steps, warmup and batch_size >= 1 and coeff > 0; leave them at their defaults")
        ode_solver(self.base, "gits")
        plan = ode_solver(self.teacher, "gits").plan(PROBE)
        if not plan.slots.issuperset(prediction(i) for i in range(PROBE.steps)):
            raise UsageError(f"gits needs a teacher that asks for D at every node, got '{self.teacher}'; use e.g. ipndm_4")

    def _base(self) -> Solver:
        return get("solver", self.base).make()

    @property
    def claims(self) -> Claims:
        return self._base().claims

    def plan(self, grid: TimeGrid) -> Plan:
        raise UsageError("gits plans with chosen levels only: use bound(fit(...)), or bound(stub()) for the grid as it is")

    def check(self, steps: int, grid_of: Callable[[int], TimeGrid], afs: bool) -> None:
        if steps - afs < 1:
            raise Unreachable("AFS on a one-step grid leaves nothing to the network; use at least two steps or afs=false")
        refuse_more(steps - afs, self.teacher_steps)
        if afs and steps > self.teacher_steps:
            raise Unreachable(f"no teacher node is left for a free first step of {steps}; use afs=false or raise teacher_steps")

    def fit(self, fitting: Fitting) -> Mapping[str, Tensor]:
        """The levels [steps + 1], their indices in the teacher's grid, and the cost matrix. **Raises**: as `check`."""
        self.check(fitting.steps, fitting.grid, fitting.afs)
        grid, own = fitting.grid(self.teacher_steps), fitting.steps - fitting.afs
        settings = (self.teacher, self.warmup, self.batch_size, self.metric, *grid.sigmas.tolist())
        runs = fitting.once(("gits", *settings), lambda: self._teacher_runs(fitting, grid))
        cost = runs["cost"].cpu().numpy()
        parts = zip(*(runs[name].split(self.batch_size) for name in ("first", "last", "seeds")))
        ends = [(x, end, fitting.conditions(seeds)) for x, end, seeds in parts]
        allowed = cost.copy()
        if fitting.afs:
            allowed[0, 1] = np.inf  # a node is left between the first two, for the free step
        paths = [cheapest_path(allowed, own, coeff) for coeff in (SEARCHED if self.search else (self.coeff,))]
        index = self._best(fitting, grid, paths, ends if self.search else ends[-1:])
        return {"levels": torch.tensor(grid.sigmas[index]), "index": torch.tensor(index), "cost": torch.from_numpy(cost)}

    def _teacher_runs(self, fitting: Fitting, grid: TimeGrid) -> dict[str, Tensor]:
        """The cost matrix of the warm-up samples, both ends of the teacher's trajectory, and the seeds of their conditions."""
        costs, ends = list[Array](), list[tuple[Tensor, Tensor, Tensor]]()
        counts = [min(self.batch_size, self.warmup - done) for done in range(0, self.warmup, self.batch_size)]
        for k, count in enumerate(counts):
            states, predictions, seeds = self._teacher_run(fitting, grid, count, Rng((fitting.seed, k), fitting.device))
            costs.append(cost_matrix(states, predictions, grid.sigmas, self.metric))
            ends.append((states[0].clone(), states[-1].clone(), seeds))  # without the states between
        found = {name: torch.cat(parts) for name, parts in zip(("first", "last", "seeds"), zip(*ends))}
        return {"cost": torch.from_numpy(np.average(costs, axis=0, weights=counts)), **found}

    def _teacher_run(self, fitting: Fitting, grid: TimeGrid, count: int, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        x = grid.sigmas[0] * rng.normal((count, *fitting.teacher.shape)).double()
        seeds = rng.integers(1 << 40, (count,))
        cond = fitting.conditions(seeds)
        plan = get("solver", self.teacher).make().plan(grid)
        predictions = [prediction(i) for i in range(grid.steps)]
        with torch.no_grad():
            slots = run(plan, fitting.teacher, x, cond=cond, keep=(*plan.states, *predictions))
        return torch.stack([slots[s] for s in plan.states]), torch.stack([slots[p] for p in predictions]), seeds

    def _best(self, fitting: Fitting, grid: TimeGrid, paths: list[list[int]], runs: list[tuple[Tensor, Tensor, Cond]]) -> list[int]:
        """The path, with a free node below its first under AFS, on which the solver ends nearest to the teacher: mean L2 over the runs."""
        if fitting.afs:
            paths = [[0, k, *path[1:]] for path in paths for k in range(1, path[1])]
        paths = [list(path) for path in dict.fromkeys(map(tuple, paths))]  # neighbouring coefficients often choose the same

        def distance(path: list[int]) -> float:
            plan = self._base().plan(TimeGrid(grid.sigmas[path]))
            plan = with_afs(plan) if fitting.afs else plan
            with torch.no_grad():
                off = [end_of(plan, fitting.teacher, x, cond=cond) - end for x, end, cond in runs]
            return float(torch.cat(off).flatten(1).norm(dim=1).mean())

        return min(paths, key=distance) if len(paths) > 1 else paths[0]

    def passes(self, steps: int, afs: bool = False) -> int:
        """The teacher's runs, and at most those of the paths that are tried: with AFS as many free nodes as the grid may have."""
        teacher = self.warmup * evaluations(get("solver", self.teacher).make(), self.teacher_steps)
        tried = (len(SEARCHED) if self.search else 1) * (self.teacher_steps - steps + 1 if afs else 1)
        samples = self.warmup if self.search else (self.warmup - 1) % self.batch_size + 1  # those of the last batch
        return teacher + (tried * samples * evaluations(self._base(), steps, afs) if tried > 1 else 0)

    def stub(self) -> Mapping[str, Tensor]:
        return {}

    def bound(self, artefact: Mapping[str, Tensor]) -> BoundGITS:
        return BoundGITS(self._base(), self.teacher_steps, artefact["levels"].cpu().numpy() if artefact else None)


@dataclass(frozen=True, eq=False)
class BoundGITS:
    """The base solver on chosen levels, asked for by a grid with the same ends and number of steps; without levels on the grid given.

    **Raises**: Unreachable for more than `most` steps, UsageError for another grid than that of the levels.
    """

    base: Solver
    most: int
    levels: Array | None = None
    version: int = 1

    @property
    def claims(self) -> Claims:
        return self.base.claims

    def plan(self, grid: TimeGrid) -> Plan:
        refuse_more(grid.steps, self.most)
        return self.base.plan(grid if self.levels is None else fitted_levels("gits", self.levels, grid))
