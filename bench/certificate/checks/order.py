"""The order of a solver by halving the step: locally from an exact history, and weakly where it draws noise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, takewhile

import numpy as np
import torch

from bench.certificate.checks.stochastic import marginal_error, mean_error, remembers
from bench.certificate.closed import Basis, Forced, Truth, gaussian, moments
from bench.certificate.finding import Finding, declared
from bench.certificate.history import FLOOR, step_error
from bench.certificate.levels import GRIDS, build, spaced
from bench.certificate.reach import reach, weights
from fewstep.grid import TimeGrid
from fewstep.noise import Slot
from fewstep.sampling.plan import Combine, Plan, interpret, writes
from methods.claims import UNEVEN
from methods.solver import Solver

SLACK = 0.2  # of a slope: the next power of h moves it by O(h), which the last three halvings leave well below
FITTED = 3  # halvings that are fitted, the last ones of at least four
# Steps of the refined grids, and where on each the measured step starts: near sigma 1, and a node of all of them.
COUNTS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
WEAK_COUNTS = (64, 128, 256, 512, 1024, 2048)
WEAK_RANGE = (0.05, 10.0)
MARGIN = 8
PLACES = {"polynomial": 5 / 8, "logsnr": 3 / 8, "time_uniform": 11 / 16, UNEVEN: 3 / 8}
SPACINGS = [0.32 / 2**k for k in range(10)]
TOPS = (2.0, 0.04)
SHORT = 9  # steps of the short grid: four to start, one in the middle, four to end


def _slopes(errors: Sequence[tuple[float, float]]) -> list[float]:
    """log2 of the ratios of consecutive errors, as far as they stand clear of their floors: the last FITTED of at least FITTED + 1."""
    clear = [error for error, _ in takewhile(lambda pair: pair[0] > pair[1], errors)]
    found = [float(np.log2(a / b)) for a, b in pairwise(clear)]
    return found[-FITTED:] if len(found) > FITTED else []


def _local(runs: Sequence[tuple[Plan, TimeGrid]], step: int, defective: bool) -> list[float]:
    """The slopes of one step's error over ever finer runs, on the problem where they are smaller.

    A defect is taken off on the Gaussian, whose slopes bend less; one that shows from the first is left in.
    """

    def slopes(data: Truth, taken_off: bool) -> list[float]:
        return _slopes(_until_floor(step_error(plan, grid, step, data, taken_off) for plan, grid in runs))

    clear = slopes(gaussian(), True) if defective else []
    return clear or _smaller(slopes(data, False) for data in (gaussian(), Forced()))


def _smaller(found: Iterable[list[float]]) -> list[float]:
    return min((slopes for slopes in found if slopes), key=lambda slopes: slopes[-1], default=[])


def _drawing(runs: Sequence[tuple[Plan, TimeGrid]], step: int) -> list[float]:
    """The same for a step that draws noise: the smaller slopes of its mean under a given D, and, without a memory, of its marginal."""
    errors = (mean_error,) if remembers(*runs[0], step) else (mean_error, marginal_error)
    found = (_slopes(_until_floor(error(plan, grid, step) for plan, grid in runs)) for error in errors)
    return _smaller(found)


def _until_floor(errors: Iterator[tuple[float, float]]) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for pair in errors:
        found.append(pair)
        if pair[0] <= pair[1]:
            break
    return found


def _judged(grid: str, claimed: int, orders: list[float]) -> Finding:
    """Whether the orders of the last halvings are the claimed one."""
    if not orders:
        return Finding("order", grid, float(claimed), "no order", False, "fewer than four halvings stand clear of rounding")
    ok = all(abs(order - claimed) <= SLACK for order in orders)
    return Finding("order", grid, float(claimed), float(np.mean(orders)), ok, f"halving: {', '.join(f'{o:.2f}' for o in orders)}")


def _refined(solver: Solver, grid: str) -> list[tuple[Plan, TimeGrid]]:
    """Plans for finer and finer grids around the measured step, which is step MARGIN of each."""
    cuts = []
    for count in COUNTS:
        at = round(PLACES[grid] * count)
        cuts.append(TimeGrid(build(grid, count).sigmas[at - MARGIN : at + MARGIN + 1]))
    return [(solver.plan(levels), levels) for levels in cuts]


def order(solver: Solver) -> Iterator[Finding]:
    """The claimed order p on every grid: from an exact history a step near sigma 1 errs by h^(p + 1), h halved at least four times.

    A plan that draws noise: from the exact marginal at sigma 10, mean and variance near sigma 1 err by h^p. Where a defect of the variance
    is declared, h^p is what they still change by: such a plan has a limit of its own. Where one of the transport is declared, the order is
    what the step has until the defect shows.
    """
    claims = solver.claims
    for grid in GRIDS:
        claimed = claims.order_at(grid)
        if claimed is None:
            if claims.evaluates == "denoiser":
                yield Finding("order", grid, "an order", "none", False, "only an exact student is exact for any step")
            continue
        if solver.plan(build(grid, SHORT)).noises:
            own_limit = declared(claims, "variance", grid) is not None
            yield _judged(grid, claimed, _slopes(_weak(solver, grid, own_limit)))
        else:
            slopes = _local(_refined(solver, grid), MARGIN, declared(claims, "transport", grid) is not None)
            yield _judged(grid, claimed, [slope - 1 for slope in slopes])


def _up_to(plan: Plan, node: int) -> Plan:
    """The plan up to the state at a node."""
    last = next(i for i, op in enumerate(plan.ops) if plan.states[node] in writes(op))
    return Plan(plan.ops[: last + 1], plan.states[: node + 1])


def _weak(solver: Solver, grid: str, own_limit: bool) -> list[tuple[float, float]]:
    """Errors of mean and variance at one level by step count (or their changes), from the exact marginal, and their floors."""
    data, found = gaussian(), []
    for count in WEAK_COUNTS if own_limit else WEAK_COUNTS[1:]:
        levels = build(grid, count, sigma_range=WEAK_RANGE)
        at = round(PLACES[grid] * count)
        plan = _up_to(solver.plan(levels), at)
        basis = Basis(plan.noises)
        rows = interpret(plan, data, basis.start(data.shape), basis)[plan.states[-1]]
        found.append(torch.cat(moments(rows, data.mean, data.std**2 + float(levels.sigmas[0]) ** 2)))
        exact = torch.cat([data.mean, data.std**2 + float(levels.sigmas[at]) ** 2])
    off = [b - a for a, b in pairwise(found)] if own_limit else [value - exact for value in found]
    return [(float(e.norm()), FLOOR * float(exact.norm())) for e in off]


def steps(solver: Solver) -> Iterator[Finding]:
    """Every step of a short run, started and ended as the solver does it, on gaps that are even or uneven in log sigma.

    Its local order, by the last halving, is at least the least of what its predictions reach and what is claimed (see `reach`). For a plan
    that draws noise it is that of the mean where D is a given function of sigma and, where the step reads no history, of mean and variance
    from the exact marginal.
    """
    claims = solver.claims
    for grid in ("logsnr", UNEVEN):
        claimed = claims.order_at(grid)
        if claimed is None:
            continue
        runs = _short(solver, grid)
        if not runs:
            continue
        known = weights(*runs[0]) if not runs[0][0].noises else {}
        for i in range(SHORT):
            expected = min(claimed, reach(runs[0][0], i, known))
            defective = declared(claims, "transport", grid) is not None
            slopes = _drawing(runs, i) if runs[0][0].noises else _local(runs, i, defective)
            found = slopes[-1] - 1 if slopes else "no order"
            ok = not isinstance(found, str) and found >= expected - SLACK
            yield Finding("steps", grid, float(expected), found, ok, f"step {i + 1} of {SHORT}, at least")


def _short(solver: Solver, grid: str) -> list[tuple[Plan, TimeGrid]]:
    """Short runs below sigma 2 or, of a plan that raises its noise level there, below 0.04; none when it raises it there too."""
    for top in TOPS:
        grids = [spaced(h, SHORT, grid == "logsnr", top) for h in SPACINGS]
        runs = [(solver.plan(levels), levels) for levels in grids]
        if not _raises(runs[0][0]):
            return runs
    return []


def _raises(plan: Plan) -> bool:
    """Whether an evaluation is made at a state that noise alone was added to: at a higher level than the step starts from."""
    raised = {op.out for op in plan.ops if isinstance(op, Combine) and all(isinstance(r, Slot) or r in plan.states for r, _ in op.terms)}
    return any(e.x in raised - set(plan.states) for e in plan.evals)
