"""Whose the parameters of a network with a branch are: how many were trained, and how many the branch brought with it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fewstep.nets.branches.adapted import Adapted
from fewstep.nets.partial import whole_of


@dataclass(frozen=True)
class Shares:
    """Numbers of parameters: of all, of those that were trained, of the backbone, and of the adapter that joined it."""

    all: int
    trained: int
    backbone: int
    adapter: int


def adapted_in(net: nn.Module) -> Adapted | None:
    """The network with a branch that a network is, or holds; None where there is none."""
    inside = (whole_of(module) for module in net.modules())
    return next((found for found in inside if isinstance(found, Adapted)), None)


def shares(net: nn.Module) -> Shares | None:
    """Whose parameters are whose, each counted once; None for a network without a branch.

    Trained are those that are the network's own `parameters()`: of one whose backbone is frozen (`Partial`) the adapter's alone.
    """
    found = adapted_in(net)
    if found is None:
        return None
    own, whole = {id(p): p.numel() for p in net.parameters()}, dict(found.named_parameters())
    every = own | {id(p): p.numel() for p in whole.values()}
    brought = {id(p): p.numel() for name, p in whole.items() if any(name == o or name.startswith(f"{o}.") for o in found.own)}
    total, adapter = sum(every.values()), sum(brought.values())
    return Shares(total, sum(own.values()), total - adapter, adapter)


def count_of(net: nn.Module) -> int:
    """The number of a network's parameters, those of a frozen backbone among them."""
    found = shares(net)
    return sum(p.numel() for p in net.parameters()) if found is None else found.all
