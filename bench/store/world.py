"""The processes that one command was started as (`torchrun`): they do the large jobs together, and the first does everything else.

Imports no torch until there are several.
"""

from __future__ import annotations

import copy
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from fewstep.errors import Unavailable, UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(days=30)  # while the first does by itself what others are not needed for
WAIT = timedelta(days=1)  # for the others where all of them do as much


class Lost(Unavailable):
    """The other processes have died, or did not come in time."""


class _Heard(BaseException):
    """What was raised in another process, on its way to the end of what they do together: nothing in between is to answer it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@dataclass(frozen=True)
class World:
    """This process is number `rank` of `size`, and exchanges tensors of `device`. All of them must call the same methods in the same order,
    until something is raised (see `as_one`)."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """What of these is this process's to do."""
        return items[self.rank :: self.size]

    def rows(self, count: int) -> tuple[int, int]:
        """The first of so many rows that is this process's to do, and the one after its last."""
        return self.rank * count // self.size, (self.rank + 1) * count // self.size

    @contextmanager
    def as_one(self) -> Iterator[None]:
        """What is raised in one process while the block runs is raised in all of them: in the others where they next exchange something, or
        at the end of the block."""
        if self.size == 1:
            yield
            return
        try:
            yield
            self._meet(PATIENCE)
        except _Heard as heard:
            raise heard.error from None
        except Lost:
            raise
        except Exception as err:
            self._meet(PATIENCE, err)
            raise

    def told(self, make: Callable[[], T]) -> T:
        """What the first process makes of it, in all. **Raises**: what is raised there, in all."""
        if self.size == 1:
            return make()
        import torch.distributed as dist

        box: list[Any] = [_tried(make) if self.first else None]
        self._meet(PATIENCE)
        with self._exchanging():
            dist.broadcast_object_list(box, src=0)
        return _given(box)[0]

    def together(self, make: Callable[[], T]) -> list[T]:
        """What each process makes of it, by rank. **Raises**: what is raised in one of them, in all."""
        if self.size == 1:
            return [make()]
        own = _tried(make)
        self._meet(WAIT)
        return _given(self._gathered(own))

    def add_up(self, tensors: Sequence[Tensor], numbers: Sequence[float] = ()) -> list[float]:
        """Replace tensors, all of one dtype, by their sums over the processes, in place; returns those of numbers, which go with them."""
        if self.size == 1:
            return list(numbers)
        import torch
        import torch.distributed as dist

        told = torch.tensor(list(numbers), device=self.device, dtype=tensors[0].dtype if tensors else torch.float64)
        flat = torch.cat([*(tensor.flatten() for tensor in tensors), told])
        self._meet(WAIT)
        with self._exchanging():
            dist.all_reduce(flat)
        *parts, sums = flat.split([*(tensor.numel() for tensor in tensors), len(told)])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))
        return sums.tolist()

    def _meet(self, patience: timedelta, failure: Exception | None = None) -> None:
        """What every exchange begins with: one number, how many processes have failed since the last. It comes first and alone, since one
        that has failed does not know what the others are about to exchange. **Raises**: _Heard where another has."""
        import torch
        import torch.distributed as dist

        failed = torch.tensor(float(failure is not None), device=self.device)
        with self._exchanging():
            work = dist.all_reduce(failed, async_op=True)
            assert work is not None
            # Of GPUs the group's own patience holds: torch would poll for another, which costs more than a step's exchange.
            _ = work.wait(patience) if self.device == "cpu" else work.wait()
        if not failed.item():
            return
        found = [err for err in self._gathered(None if failure is None else _portable(failure)) if err is not None]
        if failure is None:
            raise _Heard(found[0])

    def _gathered(self, own: Any) -> list[Any]:
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with self._exchanging():
            dist.all_gather_object(found, own)
        return found

    @contextmanager
    def _exchanging(self) -> Iterator[None]:
        """**Raises**: Lost for an exchange that failed."""
        try:
            yield
        except RuntimeError as err:  # as torch reports it, whatever the backend
            why = re.sub(r"^\[\S+\] ", "", f"{err}".splitlines()[0]).split(". ")[0]  # without the place in torch's sources and advice
            raise Lost(f"process {self.rank} of {self.size} has lost the others ({why}); run the same command to go on") from err


ALONE = World()


def _portable(err: Exception) -> Exception:
    """An error as it can be sent: itself, or what it says where it cannot be."""
    try:
        pickle.dumps(copy.copy(err))  # a copy is made as the other processes make theirs
    except Exception:  # whatever somebody else's error raises then
        return RuntimeError(f"{type(err).__name__}: {err}")
    return err


def _tried(make: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return make(), None
    except Exception as err:  # which all processes are to raise
        return None, _portable(err)


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
        yield World(state.process_index, state.num_processes, str(state.device))
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
