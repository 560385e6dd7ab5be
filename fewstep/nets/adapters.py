"""Networks that learn to read another scalar: guidance weight, step count, target noise level."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import nn

from fewstep.errors import UsageError
from fewstep.nets.unet import scalar_adapter


@runtime_checkable
class ScalarNetwork(Protocol):
    """A network with room for scalars: `embed_scalars` by name, each from `emb_channels` Fourier features."""

    embed_scalars: nn.ModuleDict
    emb_channels: int


def with_scalars(net: nn.Module, names: Sequence[str]) -> nn.Module:
    """A copy of the network that also reads these entries of `cond.scalars`; equal to it until its adapters are trained.

    **Raises**: UsageError for a network that has no room for scalars.
    """
    made = copy.deepcopy(net)
    if not isinstance(made, ScalarNetwork):
        raise UsageError(f"a {type(net).__name__} reads no scalars, and the method needs {', '.join(names)}; use a unet teacher")
    for name in names:
        if name not in made.embed_scalars:
            made.embed_scalars[name] = scalar_adapter(made.emb_channels).to(next(net.parameters()))
    return made
