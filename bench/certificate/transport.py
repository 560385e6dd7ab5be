"""Constant denoisers are transported exactly, and what noise does to point data and to exact students."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bench.certificate.closed import POINT, Basis, gaussian, ideal, moments, points
from bench.certificate.finding import ROUNDING, Finding, departure
from bench.certificate.levels import GRIDS, RANGE, build
from fewstep.errors import Unreachable
from fewstep.grid import ENDS, TimeGrid
from fewstep.plan import Combine, Plan, run
from methods.solver import Solver

STEPS = (7, 4, 3, 2, 1)
SETTING = (6, "sigma_min")  # steps and end where a defect's size is declared
OPS = 32  # roundings of one op: a coefficient comes of about ten operations, a sum of at most ten terms


def plans(solver: Solver, grid: str) -> Iterator[tuple[Plan, TimeGrid, bool]]:
    """The plans of all step counts and ends on one grid, and whether it is the setting of the defects; unreachable ones are left out."""
    for steps, end in (SETTING, *((n, end) for n in STEPS for end in ENDS)):
        levels = build(grid, steps, end)
        try:
            yield solver.plan(levels), levels, (steps, end) == SETTING
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


def _constant(plan: Plan, levels: TimeGrid) -> tuple[float, float]:
    """Largest distance from x(sigma) = c + (sigma / sigma_max) (x_0 - c) over the nodes, x_0 = c + sigma_max, and its bound."""
    sigmas, top = levels.sigmas, float(levels.sigmas[0])
    slots = run(plan, points(), (POINT + top)[None], keep=slots_of(plan))
    gone = [float((slots[name] - POINT - float(s)).abs().max()) for name, s in zip(plan.states, sigmas, strict=True)]
    return float(np.max(gone)), rounding_bound(plan, slots)


def transport(solver: Solver) -> Iterator[Finding]:
    """A constant denoiser is transported exactly: 1 to 7 steps, all ends, every grid. For plans that draw no noise.

    A defect's size: the largest |x - exact| / sigma_max over the nodes for x_0 = c + sigma_max, 6 steps from 80 to 0.002.
    """
    if solver.claims.evaluates != "denoiser":
        return
    for grid in GRIDS:
        pairs, size = [], 0.0
        for plan, levels, sized in plans(solver, grid):
            if plan.noises:
                continue
            pairs.append(_constant(plan, levels))
            size = pairs[-1][0] / RANGE[1] if sized else size
        if pairs:
            yield departure(solver.claims, "transport", grid, size, pairs)


def _spread(plan: Plan, levels: TimeGrid, evaluates: str, end: float) -> tuple[list[tuple[float, float]], float]:
    """Departures of mean and variance at every node with their bounds, and the relative excess of the last variance.

    Point data for a denoiser; for an exact student also the Gaussian, whose moments it keeps.
    """
    pairs, size = [], 0.0
    for data in (points(),) if evaluates == "denoiser" else (gaussian(), points()):
        basis = Basis(plan.noises)
        model = ideal(data, evaluates, end)
        slots = run(plan, model, basis.start(data.shape), basis, keep=slots_of(plan))
        bound = rounding_bound(plan, slots)
        var0 = data.std**2
        for name, s in zip(plan.states, levels.sigmas, strict=True):
            exact = var0 + float(s) ** 2
            mean, variance = moments(slots[name], data.mean, var0 + float(levels.sigmas[0]) ** 2)
            off = torch.maximum((mean - data.mean).abs(), (variance - exact).abs() / (exact + bound).sqrt())
            pairs.append((float(off.max()), bound * (1 + len(plan.noises)) * float(levels.sigmas[0])))
            size = float(((variance - exact) / exact).max()) if s > 0 else size
    return pairs, size


def variance(solver: Solver) -> Iterator[Finding]:
    """Mean and variance at every node are those of the marginal: point data for a plan that draws noise, and exact students.

    A defect's size: the relative excess of the variance at the last node, 6 steps from 80 to 0.002.
    """
    claims = solver.claims
    for grid in GRIDS:
        pairs, size = [], 0.0
        for plan, levels, sized in plans(solver, grid):
            if claims.evaluates == "denoiser" and not plan.noises:
                continue
            found, excess = _spread(plan, levels, claims.evaluates, float(levels.sigmas[-1]))
            pairs += found
            size = excess if sized else size
        if pairs:
            yield departure(claims, "variance", grid, size, pairs)
