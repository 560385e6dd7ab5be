"""A solver's output: a straight-line program over named tensors, and what it means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.calls import check_cond, check_state
from fewstep.cond import NULL, Cond
from fewstep.denoiser import Denoiser, Level, jump_of, with_features
from fewstep.errors import Unreachable, UsageError
from fewstep.noise import EDMNoise, Noise, PhiloxNoise, Slot
from kernels import combine

Ref = str | Slot
Coef = Level | str  # or the slot [B] that an `Apply` writes it to


@dataclass(frozen=True)
class Eval:
    """out = D(x, sigma): one denoiser call. `sigma` is a float, [B] when a plan is one training step, or a slot's name.

    With `to` (a level, as sigma) out is the state at `to` instead: a flow map's jump, or a denoiser's Euler step there. `features` names
    the slot that gets the network's own features of the call (see `fewstep.denoiser.Featured`).
    """

    out: str
    x: str
    sigma: Coef
    to: Coef | None = None
    features: str | None = None


@dataclass(frozen=True)
class Combine:
    """out = sum of coef * slot over states, predictions and noises (a `Slot` names a noise).

    A coefficient is a float, an array [B], or the name of a slot [B].
    """

    out: str
    terms: tuple[tuple[Ref, Coef], ...]


@dataclass(frozen=True)
class Apply:
    """outs = fn(*ins): what is not linear (masks, learned predictors, whose outputs may name levels and coefficients)."""

    outs: tuple[str, ...]
    fn: Callable[..., tuple[Tensor, ...]]
    ins: tuple[str, ...]


Op = Eval | Combine | Apply


def reads(op: Op) -> list[str]:
    """The slots an op reads."""
    if isinstance(op, Eval):
        return [op.x, *(level for level in (op.sigma, op.to) if isinstance(level, str))]
    if isinstance(op, Combine):
        return [name for term in op.terms for name in term if isinstance(name, str)]
    return list(op.ins)


def writes(op: Op) -> tuple[str, ...]:
    """The slots an op writes."""
    if isinstance(op, Apply):
        return op.outs
    return (op.out, op.features) if isinstance(op, Eval) and op.features is not None else (op.out,)


def state(node: int) -> str:
    """The slot of the state at a grid node."""
    return f"x[{node}]"


def prediction(node: int) -> str:
    """The slot of D at a grid node."""
    return f"D[{node}]"


def _check_numbers(op: Op) -> None:
    """**Raises**: UsageError for a level or coefficient that is not finite, and for a level below 0."""
    if isinstance(op, Combine):
        if not op.terms:
            raise UsageError(f"plan sums '{op.out}' of nothing; give terms ((slot, coefficient), ...)")
        for ref, c in op.terms:
            if not isinstance(c, (float, str)) and (not isinstance(c, (np.ndarray, np.number, int)) or np.ndim(c) > 1):
                raise UsageError(f"plan sums '{op.out}' with {_kind(c)} times '{ref}'; it is a float, an array [B] or a slot's name")
            if not (math.isfinite(c) if isinstance(c, float) else isinstance(c, str) or np.isfinite(c).all()):
                raise UsageError(f"plan sums '{op.out}' with {_odd(c):g} times '{ref}'; coefficients are finite: check the grid's levels")
    elif isinstance(op, Eval):
        for level in (op.sigma, op.to):
            if level is None or isinstance(level, str):
                continue
            if not isinstance(level, float | np.ndarray | np.number | int) or np.ndim(level) > 1:
                raise UsageError(f"plan evaluates '{op.out}' at {_kind(level)}; a level is a float, an array [B] or a slot's name")
            if not (0 <= level < math.inf if isinstance(level, float) else (np.isfinite(level) & (np.asarray(level) >= 0)).all()):
                raise UsageError(f"plan evaluates '{op.out}' at level {_odd(level):g}; levels are finite and >= 0: check the grid's levels")


def _kind(of: object) -> str:
    return f"an array {list(of.shape)}" if isinstance(of, np.ndarray) else f"a {type(of).__name__}"


def _odd(of: Coef) -> float:
    """The number that is wrong, of one or of several."""
    values = np.ravel(np.asarray(of, dtype=np.float64))
    return next((v for v in values.tolist() if not math.isfinite(v)), values.min())


@dataclass(frozen=True)
class Plan:
    """Ops in order. `states` are the slots of the trajectory, the first given by the caller, the last the result.

    **Raises**: UsageError when a slot is read before it is written, or written twice; for a level or coefficient that is not finite, and
    for a level below 0.
    """

    ops: tuple[Op, ...]
    states: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.states, str) or not self.states:
            raise UsageError(f"a plan has a tuple of states, from the first to the result, got {self.states!r}; e.g. ('x[0]', 'x[1]')")
        known = {self.states[0]}
        for op in self.ops:
            if not isinstance(op, Eval | Combine | Apply):
                raise UsageError(f"a plan holds Eval, Combine and Apply, got a {type(op).__name__}; e.g. Eval('D[0]', 'x[0]', 80.0)")
            _check_numbers(op)
            for name in reads(op):
                if name not in known:
                    raise UsageError(f"plan reads '{name}' before it is written; known then: {sorted(known)}")
            for name in writes(op):
                if name in known:
                    raise UsageError(f"plan writes '{name}' twice; give each value its own slot")
                known.add(name)
        missing = [s for s in self.states if s not in known]
        if missing:
            raise UsageError(f"plan never writes its states {missing}")

    @cached_property
    def evals(self) -> tuple[Eval, ...]:
        return tuple(op for op in self.ops if isinstance(op, Eval))

    @cached_property
    def noises(self) -> tuple[Slot, ...]:
        """The noise slots the plan draws, in order."""
        return tuple(s for op in self.ops if isinstance(op, Combine) for s, _ in op.terms if isinstance(s, Slot))

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """The level of each evaluation; one that only the run knows counts as the one before it."""
        known, found = math.inf, list[float]()
        for e in self.evals:
            known = known if isinstance(e.sigma, str) else float(np.max(e.sigma))
            found.append(known)
        return tuple(found)

    def nfe(self, denoiser: Denoiser) -> int:
        """Network passes per image: the sum of cost(sigma) over the plan's `levels`."""
        if isinstance(denoiser, nn.Module):
            raise UsageError(f"a {type(denoiser).__name__} says nothing of its passes; give a denoiser, e.g. Preconditioned(net, ...)")
        return sum(denoiser.cost(level) for level in self.levels)

    @cached_property
    def slots(self) -> frozenset[str]:
        """Every slot's name, the initial state's among them."""
        return frozenset({self.states[0]}.union(*(writes(op) for op in self.ops)))

    @cached_property
    def last_use(self) -> dict[str, int]:
        """slot -> index of the last op that writes or reads it."""
        return {name: i for i, op in enumerate(self.ops) for name in (*writes(op), *reads(op))}

    @cached_property
    def programs(self) -> list[Any]:
        """What lowering made of the plan, the latest first (see `fewstep.sampling.runner`)."""
        return []

    @cached_property
    def vetted(self) -> list[Any]:
        """The labels whose values were looked at last (see `fewstep.sampling.runner`)."""
        return []

    @cached_property
    def program(self) -> tuple[tuple[Op, tuple[str, ...]], ...]:
        """The ops, with plain floats for their coefficients, each with the slots that nothing needs after it."""
        dead: list[list[str]] = [[] for _ in self.ops]
        for name, i in self.last_use.items():
            dead[i].append(name)
        return tuple((_plain(op), tuple(names)) for op, names in zip(self.ops, dead))


def _plain(op: Op) -> Op:
    """The op with 0-dimensional numpy levels and coefficients as floats: converted once, not in every run."""

    def plain(of: Coef) -> Coef:
        return of if isinstance(of, str) or np.ndim(of) else float(of)

    if isinstance(op, Eval):
        return replace(op, sigma=plain(op.sigma), to=None if op.to is None else plain(op.to))
    return replace(op, terms=tuple((ref, plain(c)) for ref, c in op.terms)) if isinstance(op, Combine) else op


def content(plan: Plan) -> list[Any] | None:
    """What a plan computes from its initial state, as lists and text that compare: its ops with slots numbered as they are written, numbers
    to 10 digits, terms sorted and without those of coefficient 0, and the result's slot. Noise stays as written, whatever its weight: a
    draw moves a generator on. None where it applies a function.

    Solvers that are the same on a grid have the same: a multistep one of order 4 in two steps is that of order 2, in one step Euler.
    """
    if any(isinstance(op, Apply) for op in plan.ops):
        return None
    numbers = {name: str(n) for n, name in enumerate((plan.states[0], *(name for op in plan.ops for name in writes(op))))}

    def said(of: Coef | None) -> Any:
        if of is None or isinstance(of, str):
            return of and f"slot {numbers[of]}"
        return [f"{of:.10g}"] if isinstance(of, float) else [f"{v:.10g}" for v in np.ravel(of).tolist()]

    def counts(of: Coef) -> bool:
        return bool(of) if isinstance(of, float | str) else bool(np.any(of))

    def ref(of: Ref) -> str:
        return numbers[of] if type(of) is str else f"noise {of}"

    ops = list[Any]()
    for op in plan.ops:
        if isinstance(op, Combine):
            states = sorted([ref(term), said(c)] for term, c in op.terms if isinstance(term, str) and counts(c))
            ops.append([*states, *([ref(term), said(c)] for term, c in op.terms if isinstance(term, Slot))])
        elif isinstance(op, Eval):
            ops.append(["eval", numbers[op.x], said(op.sigma), said(op.to), op.features is not None])
    return [ops, numbers[plan.states[-1]]]


def check_run(plan: Plan, denoiser: Denoiser, x: Tensor, noise: Noise | None, cond: Cond) -> None:
    """What a run is given, but for the values of labels. **Raises**: UsageError for the first that cannot be."""
    if not isinstance(plan, Plan):
        raise UsageError(f"the first argument is a {type(plan).__name__}; give a Plan, e.g. get('solver', 'heun').make().plan(grid)")
    if isinstance(denoiser, nn.Module):  # rather than whether it is a Denoiser, which takes as long as a step to tell
        raise UsageError(f"the second argument is a {type(denoiser).__name__}; give a denoiser, e.g. Preconditioned(net, ...)")
    check_state(x, denoiser.shape)
    if isinstance(noise, PhiloxNoise | EDMNoise) and plan.noises and noise.seeds.shape != x.shape[:1]:
        raise UsageError(f"the noise has seeds {list(noise.seeds.shape)} for {len(x)} samples; give it one seed for each")
    if isinstance(noise, Tensor):
        raise UsageError("noise is a tensor; give the source that draws it, e.g. noise=PhiloxNoise(torch.arange(len(x)))")
    check_cond(cond, len(x), x.device)


def wanted_slots(plan: Plan, noise: Noise | None, keep: Sequence[str]) -> set[str]:
    """The slots a run returns. **Raises**: UsageError when the plan draws noise and none is given, or `keep` names no slot."""
    if plan.noises and noise is None:
        raise UsageError("this plan draws noise; pass noise=PhiloxNoise(seeds)")
    if isinstance(keep, str):
        raise UsageError(f"keep is a sequence of slots, got the text '{keep}'; use keep=['{keep}']")
    wanted = {*keep, plan.states[-1]}
    if not wanted <= plan.slots:
        raise UsageError(f"keep names unknown slots {sorted(wanted - plan.slots)}; known: {sorted(plan.slots)}")
    return wanted


def interpret(
    plan: Plan,
    denoiser: Denoiser,
    x: Tensor,
    noise: Noise | None = None,
    cond: Cond = NULL,
    keep: Sequence[str] = (),
) -> dict[str, Tensor]:
    """What a plan computes, op by op with the denoiser as it is: the definition that `fewstep.sampling.runner.run` is held to.

    **Shapes**: x [B, *shape], float32 or float64; returns the slots in `keep` and always the result, `plan.states[-1]`.
    **Raises**: UsageError for arguments that cannot be, when the plan draws noise and none is given, or `keep` names no slot.
    """
    check_run(plan, denoiser, x, noise, cond)
    wanted = wanted_slots(plan, noise, keep)
    slots: dict[Ref, Tensor] = {plan.states[0]: x}

    def value(ref: Ref) -> Tensor:
        if type(ref) is str:
            return slots[ref]
        assert noise is not None
        assert isinstance(ref, Slot)
        return noise.normal(ref, x.shape[1:]).to(x)

    def level(of: Coef) -> float | Tensor:
        if isinstance(of, str):
            return slots[of]
        return of if isinstance(of, float) else torch.tensor(of)

    for op, dead in plan.program:
        if isinstance(op, Combine):
            slots[op.out] = combine([value(ref) for ref, _ in op.terms], [slots[c] if isinstance(c, str) else c for _, c in op.terms])
        elif isinstance(op, Eval):
            at, sigma = slots[op.x], level(op.sigma)
            if op.to is not None:
                slots[op.out] = jump(denoiser, at, sigma, level(op.to), cond)
            elif op.features is not None:
                slots[op.out], slots[op.features] = with_features(denoiser, at, sigma, cond)
            else:
                slots[op.out] = denoiser(at, sigma, cond)
        else:
            slots.update(zip(op.outs, op.fn(*(slots[name] for name in op.ins)), strict=True))
        for name in dead:
            if name not in wanted:
                del slots[name]
    return {name: slots[name] for name in wanted}


def jump(denoiser: Denoiser, x: Tensor, sigma: float | Tensor, to: float | Tensor, cond: Cond) -> Tensor:
    """The state at `to`: a flow map's own jump, or the Euler (DDIM) step of a denoiser that is none, guided or not."""
    own = jump_of(denoiser)
    if own is not None:
        return own(x, sigma, to, cond)
    ratio = np.asarray(to) / np.asarray(sigma)
    return combine([x, denoiser(x, sigma, cond)], [ratio, 1 - ratio])


def afs_coefficient(sigma: Level) -> Level:
    """k(sigma) with D ~ k x when the direction is x / sqrt(1 + sigma^2): 1 - sigma / sqrt(1 + sigma^2), without cancellation."""
    root = np.sqrt(1 + np.square(sigma))
    return 1 / (root * (root + sigma))


def with_afs(plan: Plan) -> Plan:
    """The analytical first step: the first evaluation becomes D = x - sigma x / sqrt(1 + sigma^2), which costs no network pass.

    **Raises**: Unreachable on a one-step plan, whose only information would be that formula, and where the first evaluation is not at
    the initial state (churn). **Source**: arXiv 2210.05475, as used in 2312.00094.
    """
    if len(plan.states) < 3:
        raise Unreachable("AFS on a one-step grid leaves nothing to the network; use at least two steps or afs=false")
    first = plan.evals[0]
    if first.x != plan.states[0] or isinstance(first.sigma, str):
        raise Unreachable("AFS needs a solver whose first evaluation is at the initial state; use afs=false")
    coefficient = afs_coefficient(first.sigma)
    if first.to is not None:  # a jump along the analytical direction
        assert not isinstance(first.to, str)
        ratio = first.to / first.sigma
        coefficient = ratio + (1 - ratio) * coefficient
    free: list[Op] = [Combine(first.out, ((first.x, coefficient),))]
    if first.features is not None:  # no call, no features: a predictor reads an empty [B, 0] as zeros
        free.append(Apply((first.features,), lambda x: (x.new_zeros(len(x), 0),), (first.x,)))
    at = plan.ops.index(first)
    return Plan((*plan.ops[:at], *free, *plan.ops[at + 1 :]), plan.states)
