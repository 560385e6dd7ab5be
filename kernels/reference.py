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
        column = _column(c, x)
        out = torch.addcmul(out, x, column) if isinstance(column, Tensor) else torch.add(out, x, alpha=column)
    return out


def _column(c: Coefficient, like: Tensor) -> float | Tensor:
    if isinstance(c, Tensor):
        return c.to(like).view(-1, *[1] * (like.ndim - 1))
    if np.ndim(c) == 0:
        return float(c)
    return torch.tensor(c).to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))
