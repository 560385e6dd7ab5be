"""A program bound to tensors of one shape: what can be made before a run is made once, and a run only launches.

Without gradients the updates of a run write into a few buffers, reused in place within a run and, on CPUs, from run to run: new memory
costs more there than an update. With gradients, and wherever no kernel runs, every update makes new tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from fewstep.cond import Cond
from fewstep.denoiser import Denoiser, Level, with_features
from fewstep.errors import UsageError
from fewstep.noise import Noise, PhiloxNoise, Slot
from fewstep.sampling.plan import jump
from fewstep.sampling.program import Ask, Base, Call, Forward, Held, Instruction, Mix, Program, Register, Update, last_reads
from kernels import MAX_INPUTS, MAX_OUTPUTS, Normals, accumulator, combine, cpu, dense, fused, table

Launcher = Callable[["Launch"], None]


@dataclass(frozen=True, eq=False)
class Launch:
    """An update as a backend takes it. `rows` have a sum for each output, without its zeros; `table` is all of them on the device.

    `inputs` are tensors; `slot` is the noise that the launch draws itself, if there is one.
    """

    outputs: tuple[Register, ...]
    inputs: tuple[Base, ...]
    slot: Slot | None
    rows: tuple[tuple[Register, torch.dtype, tuple[Base, ...], tuple[Level, ...]], ...]
    table: Tensor
    index: int  # among the program's updates


@dataclass(frozen=True, eq=False)
class TimedPass:
    """A network pass with the noise level of every sample in its batch, and the dtype its output is wanted in."""

    op: Forward
    time: Tensor
    version: int  # of `time`, while nobody has written into it
    shape: torch.Size
    dtype: torch.dtype
    buffer: int | None  # where its input lies, if updates write into buffers
    alive: tuple[Register, ...]  # raw outputs of earlier passes that are read later on


def counted(noise: Noise | None) -> TypeGuard[PhiloxNoise]:
    """Whether noise comes from counters alone, so that kernels may draw it themselves."""
    return type(noise) is PhiloxNoise


def seeds_for(noise: PhiloxNoise, x: Tensor) -> Tensor:
    """The seeds as kernels read them. **Raises**: UsageError unless there is one for each sample."""
    if noise.seeds.shape != x.shape[:1]:
        raise UsageError(f"the noise has seeds {list(noise.seeds.shape)} for {len(x)} samples; give it one seed for each")
    return noise.seeds.to(x.device, torch.int64).contiguous()


class Bound:
    """A program for tensors like x on a backend. **Raises**: KernelError for a coefficient that is not finite."""

    def __init__(self, program: Program, x: Tensor, backend: str, inside: bool) -> None:
        """`inside`: kernels draw the noise themselves, from counters."""
        self.program, self.backend, self.inside = program, backend, inside and backend != "reference"
        self.shape, self.device, self.dtype = x.shape, x.device, x.dtype
        self.format = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        self.launches: list[Launch] = []
        self.raws: set[Register] = set()  # raw outputs of the passes prepared so far
        self.returned = {program.places[r] for r in program.results.values() if r in program.places}  # buffers that the caller gets
        self.draws = any(isinstance(b, Slot) for op in program.instructions if isinstance(op, Update | Mix) for b in op.inputs)
        self.spare: list[list[Tensor | None]] = []  # buffers of runs that have ended, without the returned ones
        self.graphs: dict[Any, Any] = {}  # of whole runs (see `fewstep.sampling.graph`)
        last = last_reads(program.instructions, program.results.values())
        updates = [op for op in program.instructions if isinstance(op, Update)]
        self.summed = {base for op in updates for base in op.inputs if isinstance(base, int)}
        for i, op in enumerate(program.instructions):  # what nothing reads goes at once
            for r in op.outputs if isinstance(op, Forward | Ask | Call) else ():
                last.setdefault(r, i)
        if backend == "cpu":  # the parts of a pass live and die as one tensor, in the first's register
            for op in program.instructions:
                if isinstance(op, Forward):
                    last[op.outputs[0]] = max(last.pop(r) for r in op.outputs)
        raw = [r for op in program.instructions if isinstance(op, Forward | Ask) for r in op.outputs]
        self.borrowed = {r for r in program.results.values() if r in raw}  # results in memory of a network's own
        kept = {} if backend == "reference" else program.places  # registers in buffers stay
        self.code = []
        for i, op in enumerate(program.instructions):
            dead = tuple(r for r, end in last.items() if end == i and r not in kept)
            self.code.append((type(op), self._prepared(op, i, last), dead))
        self.begin = {"reference": _reference, "cpu": _cpu, "triton": _triton}[backend]
        self.addressed = Addressed(self) if backend == "cpu" else None

    def _prepared(self, op: Instruction, i: int, last: Mapping[Register, int]) -> Any:
        """What a run takes for an instruction: the instruction itself, or what is made of it in advance."""
        if isinstance(op, Forward):
            if np.ndim(op.c_noise):
                self._one_for_each(op.c_noise, "noise levels")
            c_noise = np.tile(np.broadcast_to(op.c_noise, (self.shape[0],)), len(op.outputs))
            if not np.isfinite(c_noise).all():
                raise UsageError(f"a {type(op.net).__name__} would be told the noise level {c_noise.min():g}; evaluate at levels above 0")
            dtype = self.program.types[op.outputs[0]]
            assert dtype is not None
            alive = tuple(r for r, end in last.items() if end > i and r in self.raws)
            self.raws |= set(op.outputs)
            time = torch.from_numpy(c_noise.astype(np.float32)).to(self.device)
            shape = torch.Size((len(c_noise), *self.shape[1:]))
            buffer = None if self.backend == "reference" else self.program.places[op.inputs[0]]
            return TimedPass(op, time, time._version, shape, dtype, buffer, alive)
        if not isinstance(op, Update):
            return op
        rows = []
        for r, row in zip(op.outputs, op.coefficients):
            terms = [(base, c) for base, c in zip(op.inputs, row) if isinstance(base, Slot) or np.any(c)] or [(op.inputs[0], 0.0)]
            dtype = self.program.types[r]
            assert dtype is not None
            rows.append((r, dtype, tuple(b for b, _ in terms), tuple(c for _, c in terms)))
        for c in (c for row in op.coefficients for c in row if np.ndim(c)):
            self._one_for_each(c, "coefficients")
        size = [self.shape[0]] if any(np.ndim(c) for row in op.coefficients for c in row) else []
        values = np.array([[np.broadcast_to(c, size) for c in row] for row in op.coefficients], np.float64)
        *before, final = op.inputs
        slot = final if self.inside and isinstance(final, Slot) else None
        inputs = op.inputs if slot is None else tuple(before)
        made = table(values, self.device, accumulator(self.dtype))
        launch = Launch(op.outputs, inputs, slot, tuple(rows), made, len(self.launches))
        self.launches.append(launch)
        return launch

    def _one_for_each(self, values: Level, what: str) -> None:
        if len(np.atleast_1d(values)) != self.shape[0]:
            found = f"{len(np.atleast_1d(values))} {what} for {self.shape[0]} samples"
            raise UsageError(f"the plan or the guidance has {found}; give each its own")

    def execute(self, denoiser: Denoiser, x: Tensor, noise: Noise | None, cond: Cond) -> dict[str, Tensor]:
        """Run the program from the state x."""
        run = Run(self, denoiser, x, noise, cond)
        registers, do = run.registers, run.do
        for kind, argument, dead in self.code:
            do[kind](argument)
            for r in dead:
                registers[r] = None
        if self.backend == "cpu":
            self.spare.append([None if k in self.returned else b for k, b in enumerate(run.buffers)])
        return {name: registers[r].clone() if r in self.borrowed else registers[r] for name, r in self.program.results.items()}


class Run:
    """The registers of one run, and what each kind of instruction does to them."""

    def __init__(self, bound: Bound, denoiser: Denoiser, x: Tensor, noise: Noise | None, cond: Cond) -> None:
        self.bound, self.denoiser, self.noise, self.cond = bound, denoiser, noise, cond
        self.device = x.device
        self.conds = [make(cond, x) for make in bound.program.conds]
        self.registers: list[Any] = [None] * len(bound.program.types)
        self.registers[0] = x
        self.drawn: dict[Slot, Tensor] = {}
        self.seeds = None if not counted(noise) else seeds_for(noise, x)
        self.buffers: list[Tensor] = []
        self.do = {Update: bound.begin(self), Forward: self.forward, Ask: self.ask, Call: self.call, Mix: self.mix}

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


def _reference(run: Run) -> Launcher:
    """Every output a new tensor, with gradients."""

    def launch(of: Launch) -> None:
        made = [(r, combine([run.value(base) for base in bases], coefficients, dtype)) for r, dtype, bases, coefficients in of.rows]
        for r, value in made:
            run.registers[r] = value

    return launch


def _triton(run: Run) -> Launcher:
    """One Triton launch, coefficients and noise from device memory."""
    run.allocate()

    def launch(of: Launch) -> None:
        outputs = [run.buffers[run.bound.program.places[r]] for r in of.outputs]
        fused.update(outputs, [run.value(base) for base in of.inputs], of.table, None if of.slot is None else run.normals(of.slot))

    return launch


class Addressed:
    """What the CPU kernel takes of the launches: addresses (of buffers once a run has them), coefficients, segments.

    A network's output is one tensor here, whose parts are told by their offsets.
    """

    def __init__(self, bound: Bound) -> None:
        program, elements = bound.program, bound.shape.numel()
        self.buffer = np.zeros((len(bound.launches), MAX_INPUTS + MAX_OUTPUTS), np.int64)
        self.others: list[list[tuple[int, Base, int]]] = []  # what lies in no buffer: column, the tensor, the offset in it
        self.calls: list[tuple[Callable[..., None], np.ndarray, int, np.ndarray]] = []
        passes = [op for op in program.instructions if isinstance(op, Forward)]
        parts = {r: (op.outputs[0], part) for op in passes for part, r in enumerate(op.outputs)}
        for k, launch in enumerate(bound.launches):
            self.others.append([])
            dtypes = [(program.types[base] if isinstance(base, int) else None) or bound.dtype for base in launch.inputs]
            for column, (base, dtype) in enumerate(zip(launch.inputs, dtypes)):
                if isinstance(base, int) and base in program.places:
                    self.buffer[k, column] = program.places[base]
                else:
                    whole, part = parts.get(base, (base, 0)) if isinstance(base, int) else (base, 0)
                    self.others[k].append((column, whole, part * elements * dtype.itemsize))
            written = [program.places[r] for r in launch.outputs]
            self.buffer[k, MAX_INPUTS : MAX_INPUTS + len(written)] = written
            form = cpu.form_of(dtypes, [(program.buffers[b].dtype, program.buffers[b].repeats) for b in written])
            c, size, zeros = cpu.segments(launch.table, 0 if launch.slot is None else bound.shape[0], elements)
            kernel = cpu.kernel(form, launch.slot is not None)
            self.calls.append((kernel, c, size, zeros))


def _cpu(run: Run) -> Launcher:
    """One pass of the compiled kernel over memory, by addresses."""
    run.allocate()
    made, registers = run.bound.addressed, run.registers
    assert made is not None
    addresses = np.array([b.data_ptr() for b in run.buffers])[made.buffer]
    others, calls = made.others, made.calls

    def launch(of: Launch) -> None:
        k = of.index
        for column, base, offset in others[k]:
            addresses[k, column] = (registers[base] if type(base) is int else run.value(base)).data_ptr() + offset
        kernel, c, size, seeds = calls[k]
        if of.slot is None:
            kernel(addresses, k, c, size, seeds, 0)
        else:
            drawn, slot = run.normals(of.slot)
            kernel(addresses, k, c, size, drawn.numpy(), slot)

    return launch
