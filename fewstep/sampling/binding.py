"""A program bound to tensors of one shape: what can be made before a run is made once, and a run only launches.

Without gradients the updates of a run write into a few buffers, reused in place within a run and, on CPUs, from run to run: new memory
costs more there than an update. With gradients, and wherever no kernel runs, every update makes new tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.denoiser import Level
from fewstep.errors import UsageError
from fewstep.noise import Slot
from fewstep.sampling.backends import Addressed
from fewstep.sampling.launches import Launch, TimedPass
from fewstep.sampling.program import Ask, Call, Forward, Instruction, Mix, Program, Register, Update, last_reads
from kernels import accumulator, table


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
        self.addressed = Addressed(program, self.launches, x.shape, x.dtype) if backend == "cpu" else None

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
