"""A lowered plan: instructions on registers, and where the registers lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.cond import Cond
from fewstep.denoiser import Level, network_dtype
from fewstep.noise import Slot

Register = int
Base = Register | Slot


@dataclass(frozen=True)
class Update:
    """registers[outputs[m]] = sum_k coefficients[m][k] inputs[k]: one launch of the update primitive."""

    outputs: tuple[Register, ...]
    inputs: tuple[Base, ...]
    coefficients: tuple[tuple[Level, ...], ...]


@dataclass(frozen=True)
class Forward:
    """One network pass on a buffer that holds its input once for each of `outputs`, the parts of the raw output.

    `cond` is an index of `Program.conds`.
    """

    net: nn.Module
    c_noise: Level
    cond: int
    inputs: tuple[Register]
    outputs: tuple[Register, ...]


@dataclass(frozen=True)
class Held:
    """A level or coefficient [B] that only the run knows: the content of a register."""

    register: Register


@dataclass(frozen=True)
class Ask:
    """An evaluation that cannot be unfolded: the denoiser is called with the state itself. Two outputs: D and features."""

    x: Register
    sigma: Level | Held
    to: Level | Held | None
    outputs: tuple[Register, ...]


@dataclass(frozen=True)
class Call:
    """outputs = fn(*inputs): a plan's `Apply`, or a map of D."""

    fn: Callable[..., tuple[Tensor, ...]]
    inputs: tuple[Register, ...]
    outputs: tuple[Register, ...]


@dataclass(frozen=True)
class Mix:
    """A `Combine` some of whose coefficients only the run knows."""

    output: Register
    inputs: tuple[Base, ...]
    coefficients: tuple[Level | Held, ...]


Instruction = Update | Forward | Ask | Call | Mix


@dataclass(frozen=True)
class Buffer:
    """Memory for a tensor of the state's shape and a dtype, `repeats` times over: registers are its first part, updates write all."""

    dtype: torch.dtype
    repeats: int = 1


@dataclass(frozen=True, eq=False)
class Program:
    """Instructions on registers. Register 0 is the initial state; `results` are the registers of the wanted slots.

    `types` are the registers' dtypes (None: a function's result, as it comes). `places` gives those that updates write a buffer; all
    others hold what a network or a function returned. `networks` are called in these dtypes.
    """

    instructions: tuple[Instruction, ...]
    conds: tuple[Callable[[Cond, Tensor], Cond], ...]
    results: Mapping[str, Register]
    types: tuple[torch.dtype | None, ...]
    buffers: tuple[Buffer, ...]
    places: Mapping[Register, int]
    networks: Mapping[nn.Module, torch.dtype | None]
    read: tuple[tuple[Tensor, Tensor, bool], ...] = ()  # tensors in its numbers, their values then, and whether they had gradients
    bounds: dict[Any, Any] = field(default_factory=dict)  # what binding made of it (see `fewstep.sampling.runner`)

    def fits(self) -> bool:
        """Whether the networks still have the dtypes, and tensors the values, that the program was made with."""
        same = all(t.requires_grad is traced and torch.equal(t, value) for t, value, traced in self.read)
        return same and all(network_dtype(net) is dtype for net, dtype in self.networks.items())


def reads(instruction: Instruction) -> Iterator[Register]:
    """The registers an instruction reads."""
    if isinstance(instruction, Ask):
        levels = (level.register for level in (instruction.sigma, instruction.to) if isinstance(level, Held))
        yield from (instruction.x, *levels)
        return
    yield from (base for base in instruction.inputs if isinstance(base, int))
    if isinstance(instruction, Mix):
        yield from (c.register for c in instruction.coefficients if isinstance(c, Held))


def last_reads(instructions: Sequence[Instruction], results: Iterable[Register]) -> dict[Register, int]:
    """register -> index of the last instruction that reads it; one past the end for a result."""
    last = {r: i for i, instruction in enumerate(instructions) for r in reads(instruction)}
    return last | {r: len(instructions) for r in results}


def allocate(
    instructions: Sequence[Instruction], results: Iterable[Register], written: Mapping[Register, Buffer]
) -> tuple[tuple[Buffer, ...], dict[Register, int]]:
    """Memory for the registers that updates write. An update may write where the last value it reads was: elements are read first."""
    last = last_reads(instructions, results)
    buffers: list[Buffer] = []
    tenants: list[int] = []  # until when each buffer is taken
    places: dict[Register, int] = {}
    for i, instruction in enumerate(instructions):
        if not isinstance(instruction, Update):
            continue
        for r in instruction.outputs:
            free = [k for k, b in enumerate(buffers) if b == written[r] and tenants[k] <= i]
            if not free:
                free = [len(buffers)]
                buffers.append(written[r])
                tenants.append(i)
            places[r] = free[0]
            tenants[free[0]] = max(last.get(r, i), i + 1)
    return tuple(buffers), places
