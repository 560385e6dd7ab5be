"""Lowering: a plan and a denoiser as network passes with one linear update of raw tensors between them.

Every slot is an expression: a linear combination of registers (the initial state, raw network outputs, what an update wrote) and noises.
Combines and the arithmetic around a network only change expressions; an update is emitted where the next pass needs its input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.cond import Cond
from fewstep.denoiser import Denoiser, Level, Pass, Unfolded, jump_of, network_dtype, unfold, unfold_jump
from fewstep.noise import Slot
from fewstep.sampling.plan import Coef, Combine, Eval, Plan
from fewstep.sampling.plan import reads as slots_read
from fewstep.sampling.program import Ask, Base, Buffer, Call, Forward, Held, Instruction, Mix, Program, Register, Update, allocate
from kernels import MAX_INPUTS, MAX_OUTPUTS, MAX_REPEATS, accumulator

Expression = dict[Base, Level]


def lower(plan: Plan, denoiser: Denoiser, dtype: torch.dtype, cond: Cond, keep: Iterable[str] = ()) -> Program:
    """The program of a plan on a denoiser for a state of `dtype`; of `cond` only matters which kinds of condition there are."""
    return _Lowering(plan, denoiser, dtype, cond, {*keep, plan.states[-1]}).program()


def _alone(base: Base) -> Expression:
    return {base: 1.0}


def _scaled(expression: Expression, factor: Level) -> Expression:
    return {base: c * factor for base, c in expression.items()}


def _sum(terms: Iterable[tuple[Expression, Level]]) -> Expression:
    total: Expression = {}
    for expression, factor in terms:
        for base, c in expression.items():
            total[base] = total[base] + c * factor if base in total else c * factor
    return {base: c for base, c in total.items() if isinstance(base, Slot) or np.any(c)}  # a noise is drawn whatever its weight


class _Lowering:
    """The state of one lowering."""

    def __init__(self, plan: Plan, denoiser: Denoiser, dtype: torch.dtype, cond: Cond, wanted: set[str]) -> None:
        self.plan, self.denoiser, self.dtype, self.cond, self.wanted = plan, denoiser, dtype, cond, wanted
        self.slots: dict[str, Expression] = {plan.states[0]: _alone(0)}
        self.types: list[torch.dtype | None] = [dtype]  # of each register; None: what a function returned, taken as it is
        self.written: dict[Register, Buffer] = {}  # what updates write, and the memory it wants
        self.parts: set[Register] = set()  # raw outputs that are a part of a larger tensor
        self.instructions: list[Instruction] = []
        self.conds: list[Callable[[Cond, Tensor], Cond]] = []
        self.read: list[Tensor] = []
        self.networks: dict[nn.Module, torch.dtype | None] = {}
        self.sums: dict[str, list[tuple[int, Level]]] = {}  # which sums read a slot, with which coefficient
        self.read_whole: dict[str, int] = {}  # the last op that reads it otherwise
        for i, (op, _) in enumerate(plan.program):
            if isinstance(op, Combine) and not any(isinstance(c, str) for _, c in op.terms):
                for ref, c in op.terms:
                    if isinstance(ref, str) and not isinstance(c, str):
                        self.sums.setdefault(ref, []).append((i, c))
            else:
                self.read_whole |= dict.fromkeys(slots_read(op), i)
        self.flows = any(e.to is not None for e in plan.evals) and jump_of(denoiser) is not None

    def program(self) -> Program:
        for i, (op, _) in enumerate(self.plan.program):
            if isinstance(op, Combine):
                self._combine(i, op)
            elif isinstance(op, Eval):
                self._eval(i, op)
            else:
                outputs = self._foreign(len(op.outs))
                self.instructions.append(Call(op.fn, self._exact(i, op.ins), outputs))
                self.slots |= {name: _alone(r) for name, r in zip(op.outs, outputs)}
            self.slots = {s: self.slots[s] for s in self._live(i)}
        names = sorted(self.wanted)
        results = dict(zip(names, self._exact(len(self.plan.ops), names)))
        buffers, places = allocate(self.instructions, results.values(), self.written)
        read = tuple((t, t.detach().clone(), t.requires_grad) for t in self.read)
        return Program(tuple(self.instructions), tuple(self.conds), results, tuple(self.types), buffers, places, self.networks, read)

    def _live(self, i: int) -> list[str]:
        """The known slots that something after op i reads."""
        return [s for s in self.slots if s in self.wanted or self.plan.last_use.get(s, -1) > i]

    def _foreign(self, count: int, dtype: torch.dtype | None = None) -> tuple[Register, ...]:
        """New registers for what networks and functions return."""
        first = len(self.types)
        self.types += [dtype] * count
        return tuple(range(first, first + count))

    def _new(self, dtype: torch.dtype, repeats: int = 1) -> Register:
        """A new register for what an update writes, so many times over."""
        (register,) = self._foreign(1, dtype)
        self.written[register] = Buffer(dtype, repeats)
        return register

    def _combine(self, i: int, op: Combine) -> None:
        if not any(isinstance(c, str) for _, c in op.terms):
            terms = [(self.slots[ref] if isinstance(ref, str) else _alone(ref), c) for ref, c in op.terms if not isinstance(c, str)]
            self.slots[op.out] = _sum(terms)
            return
        names = [ref for ref, _ in op.terms if isinstance(ref, str)]
        held = dict(zip(names, self._exact(i, names)))
        inputs = tuple(held[ref] if isinstance(ref, str) else ref for ref, _ in op.terms)
        (out,) = self._foreign(1, self.dtype)
        self.instructions.append(Mix(out, inputs, tuple(self._level(c) for _, c in op.terms)))
        self.slots[op.out] = _alone(out)

    def _level(self, of: Coef) -> Level | Held:
        """A level or coefficient; for a slot's name the register that holds it."""
        if not isinstance(of, str):
            return of
        (register,) = self.slots[of]
        assert isinstance(register, int)
        return Held(register)

    def _eval(self, i: int, op: Eval) -> None:
        unfolded = None
        if not (isinstance(op.sigma, str) or isinstance(op.to, str) or op.features):
            unfolded = self._unfolded(op.sigma, op.to if self.flows else None)
        if unfolded is None or any(len(p.weights) > MAX_REPEATS for p in unfolded.passes):
            self._ask(i, op)
            return
        self.read += [t for t in unfolded.read if not any(t is known for known in self.read)]
        d = self._passes(i, op.x, unfolded)
        if op.to is not None and not self.flows:
            ratio = np.divide(op.to, op.sigma)
            d = _sum([(self.slots[op.x], ratio), (d, 1 - ratio)])
        self.slots[op.out] = d

    def _unfolded(self, sigma: Level, to: Level | None) -> Unfolded | None:
        """A call, or a flow map's jump."""
        return unfold(self.denoiser, sigma, self.cond) if to is None else unfold_jump(self.denoiser, sigma, to, self.cond)

    def _ask(self, i: int, op: Eval) -> None:
        (x,) = self._exact(i, [op.x])
        names = [op.out] if op.features is None else [op.out, op.features]
        outputs = (*self._foreign(1, self.dtype), *self._foreign(len(names) - 1))
        self.instructions.append(Ask(x, self._level(op.sigma), None if op.to is None else self._level(op.to), outputs))
        self.slots |= {name: _alone(r) for name, r in zip(names, outputs)}

    def _passes(self, i: int, x: str, unfolded: Unfolded) -> Expression:
        """Emit the passes of D at slot x; D as an expression."""
        inputs: list[Register] = []
        stands: dict[str, tuple[Register, Level]] = {}
        for p in unfolded.passes:
            dtype = self.networks.setdefault(p.net, network_dtype(p.net)) or self.dtype
            inputs.append(self._new(dtype, len(p.weights)))
            if not stands and dtype is self.dtype and np.all(p.c_in):
                stands[x] = inputs[-1], 1 / p.c_in
        needs = [(z, _scaled(self.slots[x], p.c_in)) for z, p in zip(inputs, unfolded.passes)]
        self._close(i, needs, stands, [x])
        terms: list[tuple[Expression, Level]] = [(self.slots[x], unfolded.skip)]
        for p, z in zip(unfolded.passes, inputs):
            raw = self._foreign(len(p.weights), self.types[z])
            self.parts |= set(raw) if len(raw) > 1 else set()
            self.instructions.append(Forward(p.net, p.c_noise, self._cond(p), (z,), raw))
            terms += [(_alone(r), weight) for r, weight in zip(raw, p.weights)]
        d = _sum(terms)
        for fn in unfolded.maps:
            register, (mapped,) = self._new(self.dtype), self._foreign(1, self.dtype)
            self._emit([(register, d)])
            self.instructions.append(Call(partial(_as_tuple, fn), (register,), (mapped,)))
            d = _alone(mapped)
        return d

    def _cond(self, p: Pass) -> int:
        if p.cond not in self.conds:
            self.conds.append(p.cond)
        return self.conds.index(p.cond)

    def _exact(self, i: int, names: Sequence[str]) -> tuple[Register, ...]:
        """Registers that hold these slots themselves, written now where there are none."""
        found: dict[str, Register] = {}
        needs: list[tuple[Register, Expression]] = []
        for name in dict.fromkeys(names):
            base = self._holder(self.slots[name])
            if base is None:
                base = self._new(self.dtype)
                needs.append((base, self.slots[name]))
            found[name] = base
        if needs:
            self._close(i, needs, {name: (r, 1.0) for name, r in found.items()}, [])
        return tuple(found[name] for name in names)

    def _holder(self, expression: Expression) -> Register | None:
        """The register that holds this expression's value in the state's dtype, if one does."""
        if len(expression) != 1:
            return None
        ((base, c),) = expression.items()
        if not isinstance(base, int) or base in self.parts or np.ndim(c) or c != 1 or self.types[base] not in (self.dtype, None):
            return None
        return base

    def _close(
        self, i: int, needs: list[tuple[Register, Expression]], stands: Mapping[str, tuple[Register, Level]], also: Sequence[str]
    ) -> None:
        """Write what is needed now, and of the live slots those that would take more reads as expressions than as tensors.

        `stands` gives slots that a needed register holds up to a factor. A noise is drawn once: no expression keeps it.
        """
        live = list(dict.fromkeys([*self._live(i), *also]))
        self._merge(i, [s for s in live if s not in stands and s not in also and s not in self.wanted])
        bases = {base for s in live for base in self.slots[s]}
        reads = {s if len(self.slots[s]) > 1 else next(iter(self.slots[s]), s) for s in live if self.slots[s]}
        if len(bases) > len(reads) or any(isinstance(base, Slot) for base in bases):
            for s in live:
                expression = self.slots[s]
                if s in stands:
                    register, factor = stands[s]
                    self.slots[s] = {register: factor}
                elif len(expression) > 1 or any(isinstance(base, Slot) for base in expression):
                    register = self._new(self.dtype)
                    needs.append((register, expression))
                    self.slots[s] = _alone(register)
        self._emit(needs)

    def _merge(self, i: int, slots: Sequence[str]) -> None:
        """Slots that only enter the same sums from here on, in one proportion, become one: the first holds their sum, the others nothing.

        Of a slope (x - D) / sigma that is read again, only the slope is kept, and not the state and D.
        """
        groups: dict[tuple[int, ...], list[tuple[str, list[Level]]]] = {}
        for s in slots:
            ahead = [(at, c) for at, c in self.sums.get(s, []) if at > i]
            if ahead and self.plan.last_use[s] == ahead[-1][0] and self.read_whole.get(s, -1) <= i:
                groups.setdefault(tuple(at for at, _ in ahead), []).append((s, [c for _, c in ahead]))
        for group in groups.values():
            while len(group) > 1:
                (first, c), *others = group
                same = [(s, np.divide(d[0], c[0])) for s, d in others if np.all(c[0]) and _proportional(c, d)]
                self.slots[first] = _sum([(self.slots[first], 1.0), *((self.slots[s], ratio) for s, ratio in same)])
                merged = {s for s, _ in same}
                self.slots |= {s: {} for s in merged}
                group = [(s, d) for s, d in others if s not in merged]

    def _emit(self, needs: Sequence[tuple[Register, Expression]]) -> None:
        """The updates that write these registers, within the primitive's limits."""
        for at in range(0, len(needs), MAX_OUTPUTS):
            group = list(needs[at : at + MAX_OUTPUTS])
            bases = _bases(e for _, e in group)
            while len(bases) > MAX_INPUTS:  # partial sums of the first inputs stand for them
                first = bases[:MAX_INPUTS]
                partials = [self._new(accumulator(self.dtype)) for _ in group]
                self._append(partials, [{b: c for b, c in e.items() if b in first} for _, e in group])
                group = [(r, {p: 1.0} | {b: c for b, c in e.items() if b not in first}) for (r, e), p in zip(group, partials)]
                bases = _bases(e for _, e in group)
            self._append([r for r, _ in group], [e for _, e in group])

    def _append(self, outputs: Sequence[Register], expressions: Sequence[Expression]) -> None:
        bases = _bases(expressions)
        bases = bases or [0]  # a sum of nothing is zero times the start
        rows = tuple(tuple(e.get(base, 0.0) for base in bases) for e in expressions)
        self.instructions.append(Update(tuple(outputs), tuple(bases), rows))


def _proportional(c: Sequence[Level], d: Sequence[Level]) -> bool:
    """Whether d is a multiple of c, within the rounding of a few products."""
    return all(np.all(np.abs(d[k] * c[0] - c[k] * d[0]) <= 1e-14 * np.abs(c[k] * d[0])) for k in range(len(c)))


def _as_tuple(fn: Callable[[Tensor], Tensor], value: Tensor) -> tuple[Tensor]:
    return (fn(value),)


def _bases(expressions: Iterable[Expression]) -> list[Base]:
    """What the expressions read: registers, then noises in the order they are drawn."""
    found = {base for e in expressions for base in e}
    return [*sorted(b for b in found if isinstance(b, int)), *sorted(b for b in found if isinstance(b, Slot))]
