"""The definition of the update primitive in torch: the path for gradients, for float64, and wherever no kernel runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.philox import normals as philox_normals
from kernels.primitive import Normals, accumulator, batch_of

Coefficient = float | NDArray[np.float64] | Tensor


def combine(inputs: Sequence[Tensor], coefficients: Sequence[Coefficient], dtype: torch.dtype | None = None) -> Tensor:
    """y[b, i] = sum_k c_k(, b) x_k[b, i] as a new tensor of `dtype` (default: the first input's), in one pass for each input.

    **Shapes**: inputs k >= 1 tensors [B, ...] of one shape; each coefficient a float, float64 [B] on the host, or a tensor [] or [B]
    (gradients flow through it, and through the inputs).
    """
    (first, *others), (c0, *rest) = inputs, coefficients
    kind = accumulator(*(x.dtype for x in inputs))
    out = first.to(kind) * _column(c0, first, kind)
    for x, c in zip(others, rest, strict=True):
        out = torch.add(out, x, alpha=c) if type(c) is float else torch.addcmul(out, x.to(kind), _tensor(c, x, kind))
    return out.to(first.dtype if dtype is None else dtype)


def _column(c: Coefficient, like: Tensor, dtype: torch.dtype) -> float | Tensor:
    return c if type(c) is float else _tensor(c, like, dtype)


def _tensor(c: Coefficient, like: Tensor, dtype: torch.dtype) -> Tensor:
    """The coefficient [] or [B] in the dtype, on the device and of the rank of `like` [B, ...]."""
    values = c if isinstance(c, Tensor) else torch.tensor(c)
    return values.to(like.device, dtype).view(-1, *[1] * (like.ndim - 1))


def update(outputs: Sequence[Tensor], inputs: Sequence[Tensor], coefficients: Tensor, normals: Normals | None = None) -> None:
    """The primitive (see `kernels.primitive`) with nothing fused. All outputs are computed before one is written."""
    batch, shape = batch_of(outputs, inputs, normals), outputs[0].shape[1:]
    terms = list(inputs)
    if normals is not None:
        terms.append(philox_normals(*normals, shape.numel()).view(batch, *shape))
    if not terms:
        values = [torch.zeros_like(y[:batch]) for y in outputs]
    else:
        values = [combine(terms, row.unbind(), y.dtype) for y, row in zip(outputs, coefficients, strict=True)]
    for y, value in zip(outputs, values, strict=True):
        for start in range(0, len(y), max(batch, 1)):
            y[start : start + batch].copy_(value)
