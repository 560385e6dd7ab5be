"""A network computed in numbers of fewer bits, around which everything else stays float32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.cond import NULL, Cond, prepared_by
from fewstep.denoiser import Denoiser, FeatureNetwork, Preconditioned, with_leaves
from fewstep.errors import UsageError, near_misses

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Reduced(nn.Module):
    """F of a network under autocast to a shorter type: matrix products and convolutions in it, sums and norms as autocast has them.

    **Shapes**: as the network's; the output is float32, as the state around it. Weights keep their own type and are cast at each call.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = net, dtype
        self.feature_size = net.feature_size if isinstance(net, FeatureNetwork) else 0

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond = NULL, **asked: bool) -> Any:
        with torch.autocast(x.device.type, self.dtype):
            out = self.net(x, c_noise, cond, **asked)
        return tuple(part.float() for part in out) if isinstance(out, tuple) else out.float()

    def prepared(self, cond: Cond) -> Cond:
        """What the network makes of the picture, in the same type."""
        device = cond.tensors()[0].device.type if cond.tensors() else "cpu"
        with torch.autocast(device, self.dtype):
            return prepared_by(self.net, cond)


def full(net: nn.Module) -> nn.Module:
    """The network itself, in whatever type it is computed."""
    return net.net if isinstance(net, Reduced) else net


def check_dtype(name: str) -> None:
    """**Raises**: UsageError for a type that no network is computed in."""
    if name and name not in DTYPES:
        raise UsageError(f"dtype is {' or '.join(DTYPES)}, or empty for float32, got '{name}'{near_misses(name, list(DTYPES))}")


def reduced(denoiser: Denoiser, name: str) -> Denoiser:
    """The denoiser with its networks computed in the type of a name; itself for the empty one.

    **Raises**: UsageError for an unknown type, and for a closed form, which has no network.
    """
    check_dtype(name)

    def own(leaf: Denoiser) -> Denoiser:
        if not isinstance(leaf, Preconditioned):
            raise UsageError(f"dtype={name} is of networks, and a {type(leaf).__name__} has none; leave dtype out")
        return replace(leaf, net=Reduced(leaf.net, DTYPES[name]))

    return with_leaves(denoiser, own) if name else denoiser
