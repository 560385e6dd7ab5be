"""The order that the predictions of one step can give it."""

from __future__ import annotations

from collections.abc import Mapping

from bench.certificate.closed import START, gaussian
from fewstep.grid import TimeGrid
from fewstep.sampling.plan import Coef, Combine, Eval, Op, Plan, interpret, reads, writes


def weights(plan: Plan, grid: TimeGrid) -> dict[str, float]:
    """The values of the weights that a learned op names, on a run of the Gaussian."""
    named = {c for op in plan.ops if isinstance(op, Combine) for _, c in op.terms if isinstance(c, str)}
    if not named:
        return {}
    data = gaussian()
    x = data.flow(START, 1.0, float(grid.sigmas[0]))
    return {name: float(value.mean()) for name, value in interpret(plan, data, x, keep=sorted(named)).items() if name in named}


def _carried(op: Combine, evals: Mapping[str, Eval], known: Mapping[str, float]) -> str:
    """The state that a sum carries on: that whose weight and its prediction's add up to 1, not to 0 as where only its slope is read."""

    def value(c: Coef) -> float:
        return known[c] if isinstance(c, str) else float(c)

    by_name = {ref: value(c) for ref, c in op.terms if isinstance(ref, str)}
    own = {ref: c + sum(by_name[e.out] for e in evals.values() if e.x == ref and e.out in by_name) for ref, c in by_name.items()}
    states = [ref for ref in by_name if ref not in evals]
    return min(states, key=lambda ref: abs(own[ref] - 1)) if len(states) > 1 else states[0]


def _predictions(op: Combine, stop: set[str], before: int, written: Mapping[str, int], ops: tuple[Op, ...]) -> int:
    """How many evaluations a sum is made of, down to the states in `stop` and to what stands before op `before`.

    A state that is read for the slope at it is no further evaluation: that one's prediction is read too.
    """
    evaluated = {e.x for e in ops if isinstance(e, Eval)}
    needed, seen, found = [name for name in reads(op) if name not in evaluated], set[int](), 0
    while needed:
        name = needed.pop()
        i = written.get(name, -1)
        if i < 0 or i in seen or name in stop:
            continue
        seen.add(i)
        made = ops[i]
        if isinstance(made, Eval):
            found += 1
            needed += [made.x] if i > before else []
        elif isinstance(made, Combine):
            needed += [ref for ref, _ in made.terms if isinstance(ref, str) and ref not in evaluated]
    return found


def reach(plan: Plan, step: int, known: Mapping[str, float]) -> int:
    """The order that a step can have: that of its least sub-step, and k predictions reach order k.

    A step that carries its own state on is one sub-step, whatever evaluations lie inside; one that carries an intermediate state on is a
    chain. In a plan that draws noise an intermediate state is read for the noise in it, and the step is one. `known`: see `weights`.
    """
    written = {name: i for i, op in enumerate(plan.ops) for name in writes(op)}
    evals = {e.out: e for e in plan.evals}
    before = -1 if step == 0 else written[plan.states[step]]
    states, name, counts = set(plan.states[: step + 1]), plan.states[step + 1], list[int]()
    while name not in states:
        op = plan.ops[written[name]]
        if not isinstance(op, Combine):
            return 1
        name = plan.states[step] if plan.noises else _carried(op, evals, known)
        counts.append(_predictions(op, {*states, name}, before, written, plan.ops))
    return min(counts)
