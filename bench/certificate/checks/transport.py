"""Constant denoisers are transported exactly, and what noise does to point data and to exact students."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from bench.certificate.closed import POINT, Basis, gaussian, ideal, moments, points
from bench.certificate.finding import ROUNDING, SETTING, Departure, Finding, Pins, Run, departure
from bench.certificate.levels import GRIDS, RANGE, build
from fewstep.errors import Unreachable
from fewstep.grid import ENDS, TimeGrid
from fewstep.sampling.plan import Combine, Plan, interpret
from methods.solver import Solver

STEPS = (7, 4, 3, 2, 1)
OPS = 32  # roundings of one op: a coefficient comes of about ten operations, a sum of at most ten terms


def plans(solver: Solver, grid: str) -> Iterator[tuple[Plan, TimeGrid, str]]:
    """The plans of all step counts and ends on one grid; unreachable ones are left out."""
    for steps, end in (SETTING, *((n, end) for n in STEPS for end in ENDS)):
        levels = build(grid, steps, end)
        try:
            yield solver.plan(levels), levels, end
        except Unreachable:
            continue


def slots_of(plan: Plan) -> list[str]:
    """Every slot that a state of the plan may be summed of."""
    sums = [op for op in plan.ops if isinstance(op, Combine)]
    read = [ref for op in sums for ref, _ in op.terms if isinstance(ref, str)]
    named = [c for op in sums for _, c in op.terms if isinstance(c, str)]
    return list(dict.fromkeys([*plan.states, *read, *named]))


def rounding_bound(plan: Plan, slots: dict[str, Tensor]) -> float:
    """Bound of the rounding errors of a run on transported constants, where no later op makes an earlier error larger.

    Every op rounds a sum whose terms add up, in absolute value, to at most S: OPS roundings of S for every op.
    """
    largest, count = 1.0, 1
    for op in plan.ops:
        if isinstance(op, Combine):
            count += 1
            largest = max(largest, sum(_size(slots, ref) * _size(slots, c) for ref, c in op.terms))
    return OPS * count * ROUNDING * largest


def _size(slots: dict[str, Tensor], value: object) -> float:
    if isinstance(value, str):
        return float(slots[value].abs().max())
    return 6.0 if isinstance(value, tuple) else float(np.max(np.abs(value)))  # type: ignore[arg-type]  # a noise, or a number


def _constant(plan: Plan, levels: TimeGrid, end: str) -> Run:
    """Distances from x(sigma) = c + (sigma / sigma_max) (x_0 - c) at the nodes, x_0 = c + sigma_max; the size is the largest.

    And from x(sigma) = c, x_0 = c: where a solver makes states far too large, nothing of the weights of D shows otherwise.
    """
    starts = torch.tensor([[float(levels.sigmas[0])], [0.0]], dtype=torch.float64)
    slots = interpret(plan, points(), POINT + starts, keep=slots_of(plan))
    bound, found = rounding_bound(plan, slots), list[list[float]]()
    for name, s in zip(plan.states, levels.sigmas, strict=True):
        found.append((slots[name] - POINT - starts * float(s) / starts[0]).abs().amax(1).tolist())
    size = float(np.max([far for far, _ in found])) / RANGE[1]
    return Run(levels.steps, end, tuple(Departure(gone, bound, RANGE[1]) for gone in chain(*found)), size)


def transported(solver: Solver, grid: str) -> list[Run]:
    """What the plans that draw no noise make of a constant denoiser, which none but a solver of denoisers is given."""
    if solver.claims.evaluates != "denoiser":
        return []
    return [_constant(plan, levels, end) for plan, levels, end in plans(solver, grid) if not plan.noises]


def transport(solver: Solver, pins: Pins | None = None) -> Iterator[Finding]:
    """A constant denoiser is transported exactly: 1 to 7 steps, all ends, every grid. For plans that draw no noise.

    A defect's size: the largest |x - exact| / sigma_max over the nodes for x_0 = c + sigma_max, 6 steps from 80 to 0.002.
    """
    for grid in GRIDS:
        if runs := transported(solver, grid):
            yield from departure(solver.claims, "transport", grid, runs, pins or {})


def _spread(plan: Plan, levels: TimeGrid, evaluates: str, end: str) -> Run:
    """Departures of mean and of variance (as one of the standard deviation) at every node; the size is the excess of the last variance.

    Point data for a denoiser; for an exact student also the Gaussian, whose moments it keeps.
    """
    found, size, top = list[Departure](), 0.0, float(levels.sigmas[0])
    for data in (points(),) if evaluates == "denoiser" else (gaussian(), points()):
        basis = Basis(plan.noises)
        slots = interpret(plan, ideal(data, evaluates, float(levels.sigmas[-1])), basis.start(data.shape), basis, keep=slots_of(plan))
        bound = rounding_bound(plan, slots)
        var0, most = data.std**2, bound * (1 + len(plan.noises)) * top
        for name, s in zip(plan.states, levels.sigmas, strict=True):
            exact = var0 + float(s) ** 2
            mean, variance = moments(slots[name], data.mean, var0 + top**2)
            for off in ((mean - data.mean).abs(), (variance - exact).abs() / (exact + bound).sqrt()):
                found.append(Departure(float(off.max()), most, float(exact.max().sqrt())))
            size = float(((variance - exact) / exact).max()) if s > 0 else size
    return Run(levels.steps, end, tuple(found), size)


def spread(solver: Solver, grid: str) -> list[Run]:
    """Mean and variance of what noise does to point data, and of what exact students do."""
    evaluates = solver.claims.evaluates
    made = plans(solver, grid)
    return [_spread(plan, levels, evaluates, end) for plan, levels, end in made if plan.noises or evaluates != "denoiser"]


def variance(solver: Solver, pins: Pins | None = None) -> Iterator[Finding]:
    """Mean and variance at every node are those of the marginal: point data for a plan that draws noise, and exact students.

    A defect's size: the relative excess of the variance at the last node, 6 steps from 80 to 0.002.
    """
    for grid in GRIDS:
        if runs := spread(solver, grid):
            yield from departure(solver.claims, "variance", grid, runs, pins or {})
