"""Small mistakes in a solver's plan, each of which its certificate has to notice.

One kind of op, in one position of the run, has one number changed by 1%: a coefficient, a noise level, an output of a learned predictor.
Or its sum keeps transporting constants exactly and loses its order: weight moves from one prediction to another, or from the state to the
prediction while the noise keeps the variance. A sum of the state and one prediction without noise has no such change: exact transport
fixes both weights.

Or one weight is wrong in few plans only (`rare`): those that end at 0, or those of at most 3 steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from bench.certificate.certify import variants
from bench.certificate.checks.parity import Variant
from bench.certificate.history import owners
from bench.certificate.levels import build
from bench.certificate.reach import weights
from fewstep.grid import TimeGrid
from fewstep.noise import Slot
from fewstep.sampling.plan import Apply, Coef, Combine, Eval, Op, Plan, Ref, reads, writes
from methods.claims import Claims
from methods.solver import Solver

SIZE = 0.01
STARTS = 4  # steps that count as warm-up, each a position of its own
PROBE = 8
RARE = {  # in which plans alone a mistake is made, and the steps and the end of one of them that has every place
    "plans that end at 0": (lambda grid: grid.sigmas[-1] == 0, 7, "zero"),
    "plans of at most 3 steps": (lambda grid: grid.steps <= 3, 3, "sigma_min"),
}
Change = Callable[[Plan, TimeGrid], Plan]
Terms = tuple[tuple[Ref, Coef], ...]


class Place(NamedTuple):
    """A kind of op: its type, what it writes (indices left out), how many terms it sums, and where in the run it stands."""

    kind: str
    role: str
    terms: int
    position: str

    @property
    def label(self) -> str:
        return f"{self.role}{f' of {self.terms} terms' if self.terms else ''} in the {self.position}"


@dataclass(frozen=True)
class Mutant:
    """A mistake: what it is, and the plan with it."""

    label: str
    change: Change


@dataclass(eq=False)
class Mutated:
    """A solver whose plans contain a mistake."""

    base: Solver
    change: Change
    version: int = 1

    @property
    def claims(self) -> Claims:
        return self.base.claims

    def plan(self, grid: TimeGrid) -> Plan:
        return self.change(self.base.plan(grid), grid)


def mutated_variants(solver: Solver, change: Change) -> Variant:
    """`variants` of a solver whose plans all contain the mistake."""
    of_base = variants(solver)

    def make(options: Mapping[str, Any], artefact: Mapping[str, Tensor]) -> Solver:
        return Mutated(of_base(options, artefact), change)

    return make


def _role(name: str) -> str:
    return re.sub(r"\[.*?\]", "", name) if "[" in name else name.rstrip("0123456789")


def places(plan: Plan) -> list[Place]:
    """The place of every op of a plan."""
    found, steps = [], len(plan.states) - 1
    for op, step in zip(plan.ops, owners(plan), strict=True):
        words = "last step" if step == steps - 1 else f"step {step + 1}" if step < STARTS else "later steps"
        terms = len(op.terms) if isinstance(op, Combine) else 0
        found.append(Place(type(op).__name__, _role(writes(op)[0]), terms, words))
    return found


def _at(place: Place, edit: Callable[[Op, float], Op]) -> Change:
    """The plan with `edit(op, sigma)` for every op of one place; sigma is the level that its step starts from."""

    def change(plan: Plan, grid: TimeGrid) -> Plan:
        rows = zip(plan.ops, places(plan), owners(plan), strict=True)
        return Plan(tuple(edit(op, float(grid.sigmas[step])) if at == place else op for op, at, step in rows), plan.states)

    return change


def _scaled(op: Op, term: int) -> Op:
    assert isinstance(op, Combine)
    terms: Terms = tuple((ref, c * (1 + SIZE) if k == term else c) for k, (ref, c) in enumerate(op.terms))  # type: ignore[operator]
    return Combine(op.out, terms)


def _moved(op: Op, first: int, second: int) -> Op:
    """1% of the larger of two weights goes from one term to the other."""
    assert isinstance(op, Combine)
    values: list[Any] = [c for _, c in op.terms]
    gone = SIZE * max(abs(values[first]), abs(values[second]))
    values[first], values[second] = values[first] + gone, values[second] - gone
    return Combine(op.out, tuple((ref, c) for (ref, _), c in zip(op.terms, values)))


def _less_state(op: Op, sigma: float, state: int, prediction: int, noise: int) -> Op:
    """1% of the state's weight goes to the prediction, and the noise makes up for the variance that is lost."""
    assert isinstance(op, Combine)
    values: list[Any] = [c for _, c in op.terms]
    kept = values[state] * (1 - SIZE)
    values[noise] = np.sqrt(values[noise] ** 2 + (values[state] ** 2 - kept**2) * sigma**2)
    values[prediction], values[state] = values[prediction] + values[state] - kept, kept
    return Combine(op.out, tuple((ref, c) for (ref, _), c in zip(op.terms, values)))


def _wrapped(op: Op, edit: Callable[[list[Tensor]], None]) -> Op:
    """A learned op with a change to its outputs."""
    assert isinstance(op, Apply)

    def fn(*given: Tensor) -> tuple[Tensor, ...]:
        outs = list(op.fn(*given))
        edit(outs)
        return tuple(outs)

    return Apply(op.outs, fn, op.ins)


def _grown(k: int) -> Callable[[list[Tensor]], None]:
    def edit(outs: list[Tensor]) -> None:
        outs[k] = outs[k] * (1 + SIZE)

    return edit


def _exchanged(first: int, second: int) -> Callable[[list[Tensor]], None]:
    def edit(outs: list[Tensor]) -> None:
        gone = SIZE * outs[first].abs().maximum(outs[second].abs())
        outs[first], outs[second] = outs[first] + gone, outs[second] - gone

    return edit


def _known(op: Combine) -> list[int]:
    """The terms whose weights are numbers other than 0."""
    return [k for k, (_, c) in enumerate(op.terms) if not isinstance(c, str) and np.any(c)]


def _weights(op: Combine, place: Place) -> Iterator[Mutant]:
    for k in _known(op):
        word = "noise" if isinstance(op.terms[k][0], Slot) else _role(str(op.terms[k][0]))
        yield Mutant(f"weight {k} ({word}) of {place.label}", _at(place, lambda o, _, k=k: _scaled(o, k)))


def _of_combine(op: Combine, place: Place, plan: Plan) -> Iterator[Mutant]:
    yield from _weights(op, place)
    predictions, known = [k for k, (ref, _) in enumerate(op.terms) if any(ref == e.out and e.to is None for e in plan.evals)], _known(op)
    for a, b in pairwise(predictions):
        if a in known and b in known:
            yield Mutant(f"weight moved from {b} to {a} in {place.label}", _at(place, lambda o, _, a=a, b=b: _moved(o, a, b)))
    draws = [k for k in known if isinstance(op.terms[k][0], Slot)]
    states = [k for k in known if k not in draws and k not in predictions]
    if len(draws) == len(states) == len(predictions) == 1 and op.terms[states[0]][0] in plan.states:
        s, p, n = states[0], predictions[0], draws[0]
        yield Mutant(f"weight moved from the state in {place.label}", _at(place, lambda o, sigma: _less_state(o, sigma, s, p, n)))


def _of_eval(op: Eval, place: Place) -> Iterator[Mutant]:
    if not isinstance(op.sigma, str):
        yield Mutant(f"noise level of {place.label}", _at(place, lambda o, _: replace(o, sigma=o.sigma * (1 + SIZE))))  # type: ignore[union-attr,operator]
    if op.to is not None and not isinstance(op.to, str) and np.any(op.to):
        yield Mutant(f"target of {place.label}", _at(place, lambda o, _: replace(o, to=o.to * (1 + SIZE))))  # type: ignore[union-attr,operator]


def _of_apply(op: Apply, place: Place, plan: Plan, values: Mapping[str, float]) -> Iterator[Mutant]:
    """Every output that names a level or a weight (1% of none is no mistake), and weight between the predictions of a sum."""
    sums = [o for o in plan.ops if isinstance(o, Combine)]
    levels = {level for e in plan.evals for level in (e.sigma, e.to) if isinstance(level, str)}
    for k, name in enumerate(op.outs):
        if name in levels or values.get(name):
            yield Mutant(f"output {k} ({_role(name)}) in the {place.position}", _at(place, lambda o, _, k=k: _wrapped(o, _grown(k))))
    outs = {e.out for e in plan.evals}
    for total in sums:
        named = [op.outs.index(c) for ref, c in total.terms if ref in outs and isinstance(c, str) and c in op.outs]
        for a, b in pairwise(named):
            label = f"weight moved from output {b} to {a} in the {place.position}"
            yield Mutant(label, _at(place, lambda o, _, a=a, b=b: _wrapped(o, _exchanged(a, b))))


def mutants(solver: Solver) -> Iterator[Mutant]:
    """Every mistake of the kinds above that a solver's plan of PROBE steps has room for."""
    grid = build("polynomial", PROBE)
    plan, seen = solver.plan(grid), set[Place]()
    values = weights(plan, grid)
    for op, place in zip(plan.ops, places(plan), strict=True):
        if place in seen:
            continue
        seen.add(place)
        if isinstance(op, Combine):
            yield from _of_combine(op, place, plan)
        elif isinstance(op, Eval):
            yield from _of_eval(op, place)
        else:
            yield from _of_apply(op, place, plan, values)


def _only(where: Callable[[TimeGrid], bool], change: Change) -> Change:
    return lambda plan, grid: change(plan, grid) if where(grid) else plan


def rare(solver: Solver) -> Iterator[Mutant]:
    """Every weight of 1% more in few plans alone, but those of states that only an evaluation reads: constants do not see them."""
    for words, (where, steps, end) in RARE.items():
        plan, seen = solver.plan(build("polynomial", steps, end)), set[Place]()
        summed = {name for op in plan.ops if isinstance(op, Combine) for name in reads(op)} | set(plan.states)
        for op, place in zip(plan.ops, places(plan), strict=True):
            if isinstance(op, Combine) and place not in seen and op.out in summed:
                seen.add(place)
                yield from (Mutant(f"{m.label} of {words}", _only(where, m.change)) for m in _weights(op, place))
