"""What a training costs beside seconds: passes through networks, and memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.store.measures import OWN, TEACHER
from fewstep.cond import NULL, Cond
from fewstep.denoiser import Around, Denoiser, Preconditioned, Sigma, with_leaves
from fewstep.nets.branches.counting import branch_of
from methods.start import starts
from methods.training import Phase


@dataclass(frozen=True)
class Spent:
    """What it took from the start of a training to the end of a phase: seconds, images drawn, and images passed forward through the
    teacher and through each net and EMA by name."""

    seconds: float
    samples: int
    passes: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class _Counted(Around):
    """A closed form whose evaluations count as passes."""

    base: Denoiser
    counter: PassCounter

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        self.counter.add(TEACHER, len(x))
        return self.base(x, sigma, cond)


class PassCounter:
    """Samples passed forward through networks, by name: the given teacher is `teacher`, a method's own net of that name `net teacher`.

    What tells a net a picture is counted apart, as `NAME branch`.
    """

    def __init__(self) -> None:
        self.passes: dict[str, int] = {}
        self.fixed: list[nn.Module] = []  # the teacher's networks
        self.handles: list[Any] = []

    def add(self, name: str, count: int) -> None:
        self.passes[name] = self.passes.get(name, 0) + count

    def watched(self, teacher: Denoiser) -> Denoiser:
        """The teacher, counted: its networks by `watch`, a closed form, under guidance or wrappers too, by what takes its place."""
        self.fixed += [start.net for start in starts(teacher)]  # whose features a discriminator reads

        def counted(own: Denoiser) -> Denoiser:
            if not isinstance(own, Preconditioned):
                return _Counted(own, self)
            self.fixed.append(own.net)
            return own

        return with_leaves(teacher, counted)

    def watch(self, nets: Mapping[str, nn.Module]) -> None:
        """Count these networks, and the teacher's, and no others any more."""
        self.release()
        own = [(OWN + name if name == TEACHER else name, net) for name, net in nets.items()]
        branches = [(f"{name} branch", branch) for name, net in own if (branch := branch_of(net)) is not None]
        of = [*((TEACHER, net) for net in self.fixed), *own, *branches]
        self.handles = [net.register_forward_pre_hook(self._hook(name)) for name, net in of]

    def release(self) -> None:
        """Count no network any more: what is left of a training must not see the next one's passes."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _hook(self, name: str):
        def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.add(name, len(inputs[0]))

        return count


class PeakMemory:
    """The most memory held since this was made: by tensors on a CUDA device, by the whole process on a CPU.

    Where the system cannot forget an earlier peak (it can on Linux), a process's is that since its start.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now

    def bytes(self) -> int:
        """Bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        with suppress(OSError, StopIteration):
            line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
            return int(line.split()[1]) * 1024
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def no_room(phase: Phase, accumulate: int, processes: int, device: torch.device | str) -> str:
    """What is said of a batch for whose microbatches there is no memory: the next larger `accumulate`, which makes them smaller."""
    micro = phase.batch_size // accumulate
    more = [n for n in range(accumulate + 1, phase.batch_size + 1) if phase.batch_size % n == 0 and n % processes == 0]
    instead = f"train with accumulate={more[0]} (in a suite suite.options.NAME.accumulate={more[0]})" if more else "take a smaller network"
    return f"{device} has no room for {micro} training images at once (phase {phase.name}, batches of {phase.batch_size}); {instead}"
