"""The processes that one command was started as (`torchrun`): they do the large jobs together, and the first does everything else.

Imports no torch until there are several.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from fewstep.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(days=30)  # while the first does by itself what others are not needed for


@dataclass(frozen=True)
class World:
    """This process is number `rank` of `size`. All of them must call the same methods in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """What of these is this process's to do."""
        return items[self.rank :: self.size]

    def told(self, make: Callable[[], T]) -> T:
        """What the first process makes of it, in all. **Raises**: what is raised there, in all."""
        if self.size == 1:
            return make()
        import torch.distributed as dist

        box: list[Any] = [_tried(make) if self.first else None]
        dist.broadcast_object_list(box, src=0)
        return _given(box)[0]

    def together(self, make: Callable[[], T]) -> list[T]:
        """What each process makes of it, by rank. **Raises**: what is raised in one of them, in all."""
        if self.size == 1:
            return [make()]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, _tried(make))
        return _given(found)

    def most(self, number: int) -> int:
        """The largest of the processes' numbers."""
        return max(self.together(lambda: number)) if self.size > 1 else number

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over the processes, in place."""
        if self.size == 1 or not tensors:
            return
        import torch
        import torch.distributed as dist

        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            own = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.flatten() for tensor in own])
            dist.all_reduce(flat)
            for tensor, part in zip(own, flat.split([tensor.numel() for tensor in own]), strict=True):
                tensor.copy_(part.view_as(tensor))


ALONE = World()


def _tried(make: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return make(), None
    except Exception as err:  # which all processes are to raise
        return None, err


def _given(found: Sequence[tuple[Any, Exception | None]]) -> list[Any]:
    for _, err in found:
        if err is not None:
            raise err
    return [value for value, _ in found]


def several() -> bool:
    """Whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device: str) -> Iterator[World]:
    """This process's place among those that it was started with, through accelerate: NCCL between GPUs, gloo between CPUs.

    **Raises**: UsageError for a device that names one GPU for all of them.
    """
    if not several():
        yield ALONE
        return
    if device.startswith("cuda:"):
        raise UsageError(f"several processes have a GPU each, and device={device} is one; use device=cuda")
    import torch.distributed as dist
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    try:
        yield World(state.process_index, state.num_processes)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def alone_heard(world: World) -> Iterator[None]:
    """Only the first process says what it does while the block runs."""
    if world.first:
        yield
        return
    heard = sys.stderr
    with open(os.devnull, "w") as sys.stderr:
        try:
            yield
        finally:
            sys.stderr = heard


def device_of(device: str) -> str:
    """The device of this process: of several on a machine with GPUs, each has its own."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and several() else device
