"""A frozen convolution and the batch normalisation after it as one convolution."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def fold(owner: nn.Module, conv: str, bn: str) -> None:
    """Make the normalisation `bn` of a module part of its convolution `conv`, computed in float64: (W x - m) s + b = (s W) x + (b - m s),
    s = weight / sqrt(var + eps). The same function but for float32's rounding, with one pass over the activations less."""
    convolution, norm = owner.get_submodule(conv), owner.get_submodule(bn)
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    own = {name: value.double() for name, value in norm.state_dict().items()}
    scale = own["weight"] / (own["running_var"] + norm.eps).sqrt()
    convolution.weight.copy_(convolution.weight.double() * scale[:, None, None, None])
    shift = own["bias"] - own["running_mean"] * scale
    convolution.bias = nn.Parameter(shift.to(convolution.weight.dtype), requires_grad=False)
    owner.add_module(bn, nn.Identity())
