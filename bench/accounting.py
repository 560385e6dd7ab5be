"""What a training costs beside seconds: passes through networks, and memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.cond import NULL, Cond
from fewstep.denoiser import Around, Denoiser, Preconditioned, Sigma
from fewstep.guidance import Guided
from fewstep.wrappers import Mapped, WithScalars
from methods.distiller import WarmStarted

TEACHER = "teacher"


class _Counted(Around):
    """A closed form whose evaluations count as passes."""

    def __init__(self, base: Denoiser, counter: PassCounter) -> None:
        self.base, self.counter = base, counter

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        self.counter.add(TEACHER, len(x))
        return self.base(x, sigma, cond)


class PassCounter:
    """Samples passed forward through networks, by name. The teacher is counted together with nets that a method names `teacher`."""

    def __init__(self) -> None:
        self.passes: dict[str, int] = {}
        self.fixed: list[nn.Module] = []  # the teacher's networks
        self.handles: list[Any] = []

    def add(self, name: str, count: int) -> None:
        self.passes[name] = self.passes.get(name, 0) + count

    def watched(self, teacher: Denoiser) -> Denoiser:
        """The teacher, counted: its networks by `watch`, a closed form, under guidance or wrappers too, by what takes its place."""
        if isinstance(teacher, Preconditioned):
            self.fixed.append(teacher.net)
            return teacher
        if isinstance(teacher, Guided):
            return replace(teacher, base=self.watched(teacher.base), ref=teacher.ref and self.watched(teacher.ref))
        if isinstance(teacher, WarmStarted | Mapped | WithScalars):
            return replace(teacher, base=self.watched(teacher.base))
        return _Counted(teacher, self)

    def watch(self, nets: Mapping[str, nn.Module]) -> None:
        """Count these networks, and the teacher's, and no others any more."""
        self.release()
        of = [*((TEACHER, net) for net in self.fixed), *nets.items()]
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
    """The most memory held since this was made: by tensors on a CUDA device, by the whole process on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def bytes(self) -> int:
        """Bytes; of a process since it started."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
