"""One run of a bound program: its registers, and what each kind of instruction does to them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from fewstep.cond import Cond
from fewstep.denoiser import Denoiser, Level, with_features
from fewstep.errors import UsageError
from fewstep.noise import Noise, PhiloxNoise, Slot
from fewstep.sampling.backends import BACKENDS
from fewstep.sampling.binding import Bound
from fewstep.sampling.launches import TimedPass
from fewstep.sampling.plan import jump
from fewstep.sampling.program import Ask, Base, Call, Forward, Held, Mix, Update
from kernels import Normals, combine, dense


def counted(noise: Noise | None) -> TypeGuard[PhiloxNoise]:
    """Whether noise comes from counters alone, so that kernels may draw it themselves."""
    return type(noise) is PhiloxNoise


def seeds_for(noise: PhiloxNoise, x: Tensor) -> Tensor:
    """The seeds as kernels read them. **Raises**: UsageError unless there is one for each sample."""
    if noise.seeds.shape != x.shape[:1]:
        raise UsageError(f"the noise has seeds {list(noise.seeds.shape)} for {len(x)} samples; give it one seed for each")
    return noise.seeds.to(x.device, torch.int64).contiguous()


class Run:
    """The registers of one run, and what each kind of instruction does to them."""

    def __init__(self, bound: Bound, denoiser: Denoiser, x: Tensor, noise: Noise | None, cond: Cond) -> None:
        self.bound, self.program, self.addressed = bound, bound.program, bound.addressed
        self.denoiser, self.noise, self.cond = denoiser, noise, cond
        self.device = x.device
        self.conds = [make(cond, x) for make in bound.program.conds]
        self.registers: list[Any] = [None] * len(bound.program.types)
        self.registers[0] = x
        self.drawn: dict[Slot, Tensor] = {}
        self.seeds = None if not counted(noise) else seeds_for(noise, x)
        self.buffers: list[Tensor] = []
        self.do = {Update: BACKENDS[bound.backend](self), Forward: self.forward, Ask: self.ask, Call: self.call, Mix: self.mix}

    def allocate(self) -> None:
        """The buffers that updates write, and the registers in them."""
        bound = self.bound
        batch, *rest = bound.shape
        like = {"device": bound.device, "memory_format": bound.format}
        old = bound.spare.pop() if bound.spare else [None] * len(bound.program.buffers)
        with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():  # versions tell who wrote into memory
            new = zip(old, bound.program.buffers)
            self.buffers = [torch.empty(of.repeats * batch, *rest, dtype=of.dtype, **like) if b is None else b for b, of in new]
        first = [b if of.repeats == 1 else b[:batch] for b, of in zip(self.buffers, bound.program.buffers)]
        for r, buffer in bound.program.places.items():
            self.registers[r] = first[buffer]

    def value(self, base: Base) -> Tensor:
        """A register's tensor, or a noise: drawn when the first update of a gap reads it."""
        if isinstance(base, int):
            return self.registers[base]
        if base not in self.drawn:
            assert self.noise is not None
            self.drawn[base] = self._fitting(self.noise.normal(base, self.bound.shape[1:]).to(self.device), "the noise")
        return self.drawn[base]

    def normals(self, slot: Slot) -> Normals:
        """The noise of a slot, for a launch that draws it itself."""
        assert self.seeds is not None
        return Normals(self.seeds, PhiloxNoise.key(slot))

    def forward(self, p: TimedPass) -> None:
        op, registers = p.op, self.registers
        (r,), outputs = op.inputs, op.outputs
        if p.buffer is not None:
            z, tells = self.buffers[p.buffer], True
        else:
            z = registers[r] if len(outputs) == 1 else torch.cat([registers[r]] * len(outputs))
            tells = not z.is_inference()  # memory of inference mode does not tell who wrote into it
        before = z._version if tells else 0
        raw = op.net(z, p.time, self.conds[op.cond])
        if raw.shape != p.shape or raw.dtype is not p.dtype or raw.device != self.device or not raw.is_contiguous():
            raw = self._readable(raw, p.shape, p.dtype)
        if (tells and z._version != before) or p.time._version != p.version:
            raise UsageError(f"a {type(op.net).__name__} wrote into its input; let it copy what it changes")
        memory = raw.data_ptr()
        if memory == z.data_ptr() and self.buffers:  # updates write there
            raw = raw.clone()
        for r in p.alive:
            if registers[r].data_ptr() == memory != 0:  # which is where tensors without elements lie
                raise UsageError(f"a {type(op.net).__name__} returned memory that it had returned before; let it return a new tensor")
        if len(outputs) == 1 or self.bound.addressed:
            registers[outputs[0]] = raw
        else:
            for r, part in zip(outputs, raw.tensor_split(len(outputs))):
                registers[r] = part
        if self.drawn:
            self.drawn.clear()

    def _readable(self, raw: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """What a network returned, in the dtype and the layout that updates read."""
        if raw.shape != shape or raw.device != self.device:
            wanted = f"{list(shape)} on {self.device}"
            raise UsageError(f"the network returned {list(raw.shape)} on {raw.device} for an input {wanted}; both must agree")
        raw = raw.to(dtype)
        if self.buffers and (self.bound.backend == "cpu" or not dense(raw)):
            raw = raw.contiguous(memory_format=self.bound.format)
        return raw

    def _level(self, of: Level | Held) -> float | Tensor:
        if isinstance(of, Held):
            return self.registers[of.register]
        return float(of) if np.ndim(of) == 0 else torch.tensor(of)

    def ask(self, op: Ask) -> None:
        x, sigma = self.registers[op.x], self._level(op.sigma)
        out, *features = op.outputs
        if op.to is not None:
            d = jump(self.denoiser, x, sigma, self._level(op.to), self.cond)
        elif features:
            d, self.registers[features[0]] = with_features(self.denoiser, x, sigma, self.cond)
        else:
            d = self.denoiser(x, sigma, self.cond)
        d = self._readable(d, x.shape, self.bound.dtype)
        self.registers[out] = d.clone() if self.buffers and d.data_ptr() == x.data_ptr() else d
        self.drawn.clear()

    def call(self, op: Call) -> None:
        inputs = [self.registers[r] for r in op.inputs]
        memory = {x.untyped_storage().data_ptr() for x in inputs} if self.buffers else set()
        for r, value in zip(op.outputs, op.fn(*inputs), strict=True):
            made = value.clone() if value.untyped_storage().data_ptr() in memory else value
            self.registers[r] = self._fitting(made, "a function of the plan") if r in self.bound.summed else made

    def _fitting(self, value: Tensor, what: str) -> Tensor:
        """What did not come from a network, as updates read it."""
        bound = self.bound
        if value.shape != bound.shape or value.device != bound.device:
            wanted = f"{list(bound.shape)} on {bound.device}"
            raise UsageError(f"{what} gave {list(value.shape)} on {value.device}, which is summed with {wanted}; both must agree")
        value = value.to(bound.dtype)
        return value.contiguous(memory_format=bound.format) if self.buffers else value

    def mix(self, op: Mix) -> None:
        coefficients = [self.registers[c.register] if isinstance(c, Held) else c for c in op.coefficients]
        made = combine([self.value(base) for base in op.inputs], coefficients, self.bound.dtype)
        self.registers[op.output] = self._fitting(made, "a sum of the plan") if op.output in self.bound.summed else made


def execute(bound: Bound, denoiser: Denoiser, x: Tensor, noise: Noise | None, cond: Cond) -> dict[str, Tensor]:
    """Run the program from the state x."""
    run = Run(bound, denoiser, x, noise, cond)
    registers, do = run.registers, run.do
    for kind, argument, dead in bound.code:
        do[kind](argument)
        for r in dead:
            registers[r] = None
    if bound.backend == "cpu":
        bound.spare.append([None if k in bound.returned else b for k, b in enumerate(run.buffers)])
    found = {name: registers[r].clone() if r in bound.borrowed else registers[r] for name, r in bound.program.results.items()}
    do.clear()  # they hold the run, which holds them: its tensors would wait for the collector, which sees few objects and comes late
    return found
