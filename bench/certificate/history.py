"""One step of a plan from exact states and exact predictions at everything before it."""

from __future__ import annotations

from torch import Tensor

from bench.certificate.closed import POINT, START, Truth, points
from bench.certificate.finding import ROUNDING
from fewstep.grid import TimeGrid
from fewstep.sampling.plan import Apply, Eval, Op, Plan, interpret, reads, writes

FLOOR = 20 * ROUNDING  # of the state; a step rounds a few times, which leaves an error this large true to a tenth
CLEAR = 1.2  # times the effect of a declared defect: what is taken off may leave as much of it behind


def owners(plan: Plan) -> list[int]:
    """For every op the step it belongs to: the number of states that are written before it."""
    at, found = 0, []
    for op in plan.ops:
        found.append(min(at, len(plan.states) - 2))
        at += sum(name in plan.states for name in writes(op))
    return found


def _exact_state(out: str, start: str, sigma: float, to: float, data: Truth) -> Apply:
    return Apply((out,), lambda x: (data.flow(x, sigma, to),), (start,))


def _exact_eval(op: Eval, start: str, top: float, data: Truth) -> Apply:
    """The same evaluation on the exact trajectory. A level that only the run knows is read from its slot."""
    named = [level for level in (op.sigma, op.to) if isinstance(level, str)]

    def value(x: Tensor, *levels: Tensor) -> tuple[Tensor, ...]:
        known = dict(zip(named, levels, strict=True))
        sigma, to = (known[v] if isinstance(v, str) else v for v in (op.sigma, op.to))
        at = sigma if isinstance(sigma, Tensor) else float(sigma)  # type: ignore[arg-type]
        exact = data.flow(x, top, at)
        if to is not None:
            return (data.flow(x, top, to if isinstance(to, Tensor) else float(to)),)
        empty = () if op.features is None else (x.new_zeros(len(x), 0),)
        return (data(exact, at), *empty)

    return Apply(writes(op), value, (start, *named))


def exact_step(plan: Plan, grid: TimeGrid, step: int, data: Truth) -> Plan:
    """The ops that step `step` needs, with every earlier state and every earlier evaluation replaced by the exact one.

    What belongs to a step is what stands before its state and after the state it starts from: a prediction that is made at a predicted
    state and used from the next step on is an earlier one, and exact; the one that corrects the step's own state is its own.
    """
    start, target, top = plan.states[0], plan.states[step + 1], float(grid.sigmas[0])
    # A state that D is asked at is exact too, wherever it is: a slope is read off it and its own D.
    asked = {e.x: float(e.sigma) for e in plan.evals if not isinstance(e.sigma, str)}
    levels = {**asked, **{name: float(sigma) for name, sigma in zip(plan.states, grid.sigmas)}}
    written = {name: i for i, op in enumerate(plan.ops) for name in writes(op)}
    before = -1 if step == 0 else written[plan.states[step]]
    chosen: dict[int, Op] = {}
    needed = [target]
    while needed:
        name = needed.pop()
        i = written.get(name, -1)
        if name == start or i in chosen:
            continue
        op = plan.ops[i]
        if i <= before and name in levels:
            op = _exact_state(name, start, top, levels[name], data)
        elif isinstance(op, Eval):
            op = _exact_eval(op, start, top, data) if i <= before else op
        chosen[i] = op
        needed += reads(op)
    return Plan(tuple(chosen[i] for i in sorted(chosen)), (start, target))


def _departure(plan: Plan, grid: TimeGrid, step: int, data: Truth, x: Tensor) -> tuple[Tensor, Tensor]:
    """What one step from the exact history makes of x at the first level, less the exact state, and that state."""
    part = exact_step(plan, grid, step, data)
    exact = data.flow(x, float(grid.sigmas[0]), float(grid.sigmas[step + 1]))
    return interpret(part, data, x)[part.states[-1]] - exact, exact


def step_error(plan: Plan, grid: TimeGrid, step: int, data: Truth, defective: bool) -> tuple[float, float]:
    """The error of one step from its exact history, and the size below which it says nothing of the order.

    `defective`: what the step adds to a state of constant slope, d times the slope, is taken off first; what is no larger says nothing.
    """
    top, sigma = float(grid.sigmas[0]), float(grid.sigmas[step])
    x = data.flow(START, 1.0, top)
    error, exact = _departure(plan, grid, step, data, x)
    floor = FLOOR * float(exact.norm())
    if defective:
        added, _ = _departure(plan, grid, step, points(), (POINT + top)[None])
        here = data.flow(x, top, sigma)
        taken = added.mean() * (here - data(here, sigma)) / sigma
        error, floor = error - taken, max(floor, CLEAR * float(taken.norm()))
    return float(error.norm()), floor
