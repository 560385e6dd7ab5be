"""The definition of the update primitive in torch: the path for CPUs and for gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Coefficient = float | NDArray[np.float64] | Tensor


def combine(inputs: Sequence[Tensor], coefficients: Sequence[Coefficient]) -> Tensor:
    """y[b, i] = sum_k c_k(, b) x_k[b, i], accumulated in the inputs' dtype.

    **Shapes**: inputs k >= 1 tensors [B, ...] of one shape; each coefficient a float, float64 [B] on the host, or a tensor [B] (of a
    learned solver; gradients flow through it).
    """
    (first, *others), (c0, *rest) = inputs, coefficients
    out = first * _column(c0, first)
    for x, c in zip(others, rest, strict=True):
        out = torch.add(out, x, alpha=c) if type(c) is float else torch.addcmul(out, x, _tensor(c, x))
    return out


def _column(c: Coefficient, like: Tensor) -> float | Tensor:
    return c if type(c) is float else _tensor(c, like)


def _tensor(c: Coefficient, like: Tensor) -> Tensor:
    """The coefficient [] or [B] in the dtype, on the device and of the rank of `like` [B, ...]."""
    values = c if isinstance(c, Tensor) else torch.tensor(c)
    return values.to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))
