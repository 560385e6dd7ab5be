"""Networks with a branch that is told a picture: whose parameters are whose, and how often each part is asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from fewstep.nets.reduced import full


@runtime_checkable
class Branched(Protocol):
    """A network made of the `base` that it started from and a `branch` that reads the picture, which is called as a module.

    A network whose base is frozen has the trained parameters alone among its own `parameters()`.
    """

    @property
    def base(self) -> nn.Module: ...
    @property
    def branch(self) -> nn.Module: ...


@dataclass(frozen=True)
class Shares:
    """Numbers of parameters: of all, of those that were trained, of the base, and of what was added to it."""

    all: int
    trained: int
    backbone: int
    adapter: int


def _by_id(parameters: Iterable[Tensor]) -> dict[int, int]:
    return {id(p): p.numel() for p in parameters}


def shares(net: nn.Module) -> Shares | None:
    """Whose parameters are whose, each counted once; None for a network without a branch."""
    net = full(net)
    if not isinstance(net, Branched):
        return None
    own, base = _by_id(net.parameters()), _by_id(net.base.parameters())
    every = {**own, **base, **_by_id(net.branch.parameters())}
    total, backbone = sum(every.values()), sum(base.values())
    return Shares(total, sum(own.values()), backbone, total - backbone)


def count_of(net: nn.Module) -> int:
    """The number of a network's parameters, those of a frozen base among them."""
    found = shares(net)
    return sum(p.numel() for p in net.parameters()) if found is None else found.all


@contextmanager
def branch_passes(net: nn.Module) -> Iterator[list[int]]:
    """Counts the samples of all calls of a network's branch, in a list of one, which is empty for a network without a branch.

    A branch that makes its maps once for an image and hands them to every step is called once for it.
    """
    net = full(net)
    if not isinstance(net, Branched):
        yield []
        return
    seen = [0]

    def count(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        seen[0] += len(first)

    handle = net.branch.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
