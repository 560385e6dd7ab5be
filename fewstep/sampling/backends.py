"""The three ways to launch an update: torch with gradients (`reference`), a compiled kernel on CPUs, and Triton."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fewstep.noise import Slot
from fewstep.sampling.launches import Launch
from fewstep.sampling.program import Base, Forward, Program
from kernels import MAX_INPUTS, MAX_OUTPUTS, Normals, combine, cpu, fused

Launcher = Callable[["Launch"], None]


class Registers(Protocol):
    """What a backend takes of a run: its registers, its buffers once they are allocated, and the values that updates read."""

    program: Program
    addressed: Addressed | None
    registers: list[Any]
    buffers: list[Tensor]

    def allocate(self) -> None: ...
    def value(self, base: Base) -> Tensor: ...
    def normals(self, slot: Slot) -> Normals: ...


class Addressed:
    """What the CPU kernel takes of the launches: addresses (of buffers once a run has them), coefficients, segments.

    A network's output is one tensor here, whose parts are told by their offsets.
    """

    def __init__(self, program: Program, launches: Sequence[Launch], shape: torch.Size, own_dtype: torch.dtype) -> None:
        elements = shape.numel()
        self.buffer = np.zeros((len(launches), MAX_INPUTS + MAX_OUTPUTS), np.int64)
        self.others: list[list[tuple[int, Base, int]]] = []  # what lies in no buffer: column, the tensor, the offset in it
        self.calls: list[tuple[Callable[..., None], np.ndarray, int, np.ndarray]] = []
        passes = [op for op in program.instructions if isinstance(op, Forward)]
        parts = {r: (op.outputs[0], part) for op in passes for part, r in enumerate(op.outputs)}
        for k, launch in enumerate(launches):
            self.others.append([])
            dtypes = [(program.types[base] if isinstance(base, int) else None) or own_dtype for base in launch.inputs]
            for column, (base, dtype) in enumerate(zip(launch.inputs, dtypes)):
                if isinstance(base, int) and base in program.places:
                    self.buffer[k, column] = program.places[base]
                else:
                    whole, part = parts.get(base, (base, 0)) if isinstance(base, int) else (base, 0)
                    self.others[k].append((column, whole, part * elements * dtype.itemsize))
            written = [program.places[r] for r in launch.outputs]
            self.buffer[k, MAX_INPUTS : MAX_INPUTS + len(written)] = written
            form = cpu.form_of(dtypes, [(program.buffers[b].dtype, program.buffers[b].repeats) for b in written])
            c, size, zeros = cpu.segments(launch.table, 0 if launch.slot is None else shape[0], elements)
            kernel = cpu.kernel(form, launch.slot is not None)
            self.calls.append((kernel, c, size, zeros))


def _reference(run: Registers) -> Launcher:
    """Every output a new tensor, with gradients."""

    def launch(of: Launch) -> None:
        made = [(r, combine([run.value(base) for base in bases], coefficients, dtype)) for r, dtype, bases, coefficients in of.rows]
        for r, value in made:
            run.registers[r] = value

    return launch


def _triton(run: Registers) -> Launcher:
    """One Triton launch, coefficients and noise from device memory."""
    run.allocate()

    def launch(of: Launch) -> None:
        outputs = [run.buffers[run.program.places[r]] for r in of.outputs]
        fused.update(outputs, [run.value(base) for base in of.inputs], of.table, None if of.slot is None else run.normals(of.slot))

    return launch


def _cpu(run: Registers) -> Launcher:
    """One pass of the compiled kernel over memory, by addresses."""
    run.allocate()
    made, registers = run.addressed, run.registers
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


BACKENDS: dict[str, Callable[[Registers], Launcher]] = {"reference": _reference, "cpu": _cpu, "triton": _triton}
