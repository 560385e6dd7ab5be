"""The passes of branches, counted apart from those of the networks that they join."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from fewstep.denoiser import Denoiser, Preconditioned, layers
from fewstep.nets.branches.adapted import Adapted
from fewstep.nets.partial import whole_of


def branch_of(net: nn.Module) -> nn.Module | None:
    """The module that is told the picture, of a network or of one in it; None where there is none."""
    inside = (whole_of(module) for module in net.modules())
    return next((found.branch for found in inside if isinstance(found, Adapted) and found.branch is not None), None)


@contextmanager
def branch_passes(denoiser: Denoiser) -> Iterator[list[int]]:
    """Counts the pictures that the branches of a denoiser are told, in a list of one; an adapter that runs once an image counts it once."""
    seen, nets = [0], [layer.net for layer in layers(denoiser) if isinstance(layer, Preconditioned)]

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[0] += len(inputs[0])

    branches = [branch for branch in dict.fromkeys(map(branch_of, nets)) if branch is not None]
    handles = [branch.register_forward_pre_hook(count) for branch in branches]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
