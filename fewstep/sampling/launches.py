"""What a bound program launches: updates and network passes, with everything that can be made before a run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoiser import Level
from fewstep.noise import Slot
from fewstep.sampling.program import Base, Forward, Register


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
