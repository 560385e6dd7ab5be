"""Networks whose forward pass is compiled: parameters, names in the state dict, hooks and calls stay as they are."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from fewstep.errors import UsageError

BACKEND = "inductor"


def compile_forward(net: nn.Module) -> None:
    """Compile what the network computes, for each shape of its own, so that a resumed training runs the same code."""
    vars(net)["forward"] = torch.compile(net.forward, dynamic=False, backend=BACKEND)


def release_forward(net: nn.Module) -> None:
    """Give the network its own forward pass back: a copy of a compiled one would compute with the weights of the original."""
    vars(net).pop("forward", None)


def _doubled(x: Tensor) -> Tensor:
    return 2 * x


@cache
def check_compiles(device: str) -> None:
    """**Raises**: UsageError where torch.compile has no compiler."""
    try:
        torch.compile(_doubled, backend=BACKEND)(torch.ones(8, device=device))
    except Exception as err:  # whatever a backend raises
        why = (str(err).splitlines() or [type(err).__name__])[0]
        raise UsageError(f"compile=true needs a compiler that torch can use ({why}); install one, or leave compile out") from None
