"""What the update primitive is, whoever computes it, and what may be given to it.

y_m[b, i] = sum_k C[m, k (, b)] x_k[b, i] (+ C_z[m (, b)] z[b, i]), for at most 4 outputs and 8 inputs, accumulated in float32 (in float64
where a tensor is float64), each output rounded once to its dtype. An output may be an input: elements are read before they are written.
An output of several times the batch is written that many times over, as the doubled batch of guidance is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_INPUTS, MAX_OUTPUTS, MAX_REPEATS = 8, 4, 3
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class KernelError(ValueError):
    """Tensors, coefficients or a backend that an update cannot have; the message names both facts in conflict."""


class Normals(NamedTuple):
    """Fresh unit normals z[b, i] of an update: a function of the sample's seed, the slot and the logical index inside the sample.

    seeds [B] int64 >= 0 on the tensors' device; slot = step << 8 | role, below 2^32.
    """

    seeds: Tensor
    slot: int


def batch_of(outputs: Sequence[Tensor], inputs: Sequence[Tensor], normals: Normals | None) -> int:
    """The batch of an update: its inputs', or the seeds', or without either the first output's."""
    if inputs:
        return len(inputs[0])
    return len(outputs[0]) if normals is None else len(normals.seeds)


def accumulator(*dtypes: torch.dtype) -> torch.dtype:
    """What an update of these dtypes is accumulated in: float32, or float64 where one of them is."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def table(values: NDArray[np.float64], device: torch.device | str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Coefficients [M, K'] or [M, K', B], float64 on the host, as an update reads them on the device.

    **Raises**: KernelError for one that is not finite, also after rounding.
    """
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float64 if dtype == torch.float64 else np.float32)
    if not np.isfinite(rounded).all():
        m, k, *_ = np.argwhere(~np.isfinite(rounded))[0]
        value = values[m, k]
        raise KernelError(f"the coefficient of input {k} in output {m} is {value}; every one must be finite in {dtype}: check the grid")
    return torch.from_numpy(np.ascontiguousarray(rounded)).to(device)


def dense(x: Tensor) -> bool:
    """Whether x is contiguous or channels-last."""
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


def _check_overlap(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
    """**Raises**: KernelError for outputs that share memory, and for an input that shares an output's memory without being it."""
    spans = [(y.data_ptr(), y.data_ptr() + y.numel() * y.itemsize) for y in outputs]
    for j, (y, (begin, end)) in enumerate(zip(outputs, spans)):
        if any(begin < other_end and other < end for other, other_end in spans[:j]):
            raise KernelError(f"output {j} shares memory with an earlier output; give each its own")
        for k, x in enumerate(inputs):
            start = x.data_ptr()
            itself = start == begin and x.dtype == y.dtype and x.stride() == y.stride()
            if not itself and start < end and begin < start + x.numel() * x.itemsize:
                raise KernelError(f"input {k} shares a part of output {j}'s memory; an output is an input in place, or lies elsewhere")


def check(outputs: Sequence[Tensor], inputs: Sequence[Tensor], coefficients: Tensor, normals: Normals | None) -> None:
    """**Raises**: KernelError for what no backend may be asked: counts, shapes, devices, dtypes, layouts, or a table that does not fit."""
    if not 1 <= len(outputs) <= MAX_OUTPUTS or len(inputs) > MAX_INPUTS:
        limits = f"1 to {MAX_OUTPUTS} outputs and up to {MAX_INPUTS} inputs"
        raise KernelError(f"an update has {limits}, got {len(outputs)} and {len(inputs)}; split it")
    shape, device = torch.Size((batch_of(outputs, inputs, normals), *outputs[0].shape[1:])), outputs[0].device
    for kind, tensors in (("output", outputs), ("input", inputs)):
        for i, x in enumerate(tensors):
            times = len(x) // max(shape[0], 1) if kind == "output" and x.ndim else 1
            if x.shape != (shape[0] * times, *shape[1:]) or (times == 0 and shape[0]):
                often = ", or outputs several times the batch" if kind == "output" else ""
                raise KernelError(f"{kind} {i} has shape {list(x.shape)} in an update of {list(shape)}; all must have one shape{often}")
            if times > MAX_REPEATS:
                raise KernelError(f"output {i} holds the batch {times} times; at most {MAX_REPEATS} are written at once")
            if x.device != device:
                raise KernelError(f"{kind} {i} is on {x.device} and output 0 on {device}; move them to one device")
            if x.dtype not in DTYPES:
                raise KernelError(f"{kind} {i} is {x.dtype}; convert it to one of {', '.join(str(d) for d in DTYPES)}")
            if not dense(x):
                raise KernelError(f"{kind} {i} has strides {list(x.stride())}; make it contiguous or channels-last")
    _check_overlap(outputs, inputs)
    columns = len(inputs) + (normals is not None)
    wanted = [[len(outputs), columns], [len(outputs), columns, shape[0]]]
    if list(coefficients.shape) not in wanted:
        raise KernelError(f"the coefficient table has shape {list(coefficients.shape)}; expected {wanted[0]} or, per sample, {wanted[1]}")
    if coefficients.device != device:
        raise KernelError(f"the coefficient table is on {coefficients.device} and output 0 on {device}; move it there")
    kind = accumulator(*(x.dtype for x in (*outputs, *inputs)))
    if coefficients.dtype != kind or not coefficients.is_contiguous():
        layout = "contiguous" if coefficients.is_contiguous() else "strided"
        raise KernelError(f"the coefficient table is {layout} {coefficients.dtype}; expected contiguous {kind}")
    if normals is not None and (normals.seeds.shape != shape[:1] or normals.seeds.device != device or normals.seeds.dtype != torch.int64):
        found = f"{normals.seeds.dtype} {list(normals.seeds.shape)} on {normals.seeds.device}"
        raise KernelError(f"seeds are {found}; expected torch.int64 {list(shape[:1])} on {device}")
