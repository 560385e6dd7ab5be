"""The sampler's update primitive: up to four linear combinations of up to eight tensors and fresh noise, in one pass over memory.

`update` checks and dispatches; `choose` says which implementation runs. `combine` is one combination as a new tensor, with gradients.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import ModuleType

import torch
from torch import Tensor

from kernels import cpu, fused, reference
from kernels.primitive import MAX_INPUTS, MAX_OUTPUTS, MAX_REPEATS, KernelError, Normals, accumulator, check, dense, table
from kernels.reference import combine

__all__ = [
    "BACKENDS",
    "MAX_INPUTS",
    "MAX_OUTPUTS",
    "MAX_REPEATS",
    "KernelError",
    "Normals",
    "accumulator",
    "choose",
    "combine",
    "dense",
    "table",
    "update",
]

BACKENDS = {"reference": reference.update, "cpu": cpu.update, "triton": fused.update}


def choose(backend: str, device: torch.device, dtypes: Collection[torch.dtype]) -> str:
    """The implementation that serves: the one asked for by name, or for `auto` the fastest one that can.

    **Raises**: KernelError for an unknown one, and for one that cannot run here, with what is missing.
    """
    if backend not in ("auto", *BACKENDS):
        raise KernelError(f"unknown backend '{backend}'; known: auto, {', '.join(BACKENDS)}")

    def missing(module: ModuleType) -> str | None:
        other = sorted(str(dtype) for dtype in {*dtypes} - {*module.DTYPES})
        return module.reason_unavailable(device) or (f"it has no {', '.join(other)}" if other else None)

    reasons = {"triton": missing(fused), "cpu": missing(cpu), "reference": None}
    if backend == "auto":
        return next(name for name, reason in reasons.items() if reason is None)
    if reasons[backend] is not None:
        raise KernelError(f"backend={backend} cannot run: {reasons[backend]}; use backend=auto")
    return backend


def update(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], coefficients: Tensor, normals: Normals | None = None, backend: str = "auto"
) -> None:
    """y_m[b, i] = sum_k C[m, k (, b)] x_k[b, i] (+ C_z[m (, b)] z[b, i]), written into the outputs (see `kernels.primitive`).

    **Shapes**: 1 to 4 outputs and up to 8 inputs [B, ...]; coefficients [M, K'] or [M, K', B], K' = K + 1 with normals.
    **Raises**: KernelError before anything is written.
    """
    check(outputs, inputs, coefficients, normals)
    tensors = (*outputs, *inputs)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (*tensors, coefficients)):
        raise KernelError("an update has no gradients; use kernels.combine, or call it under torch.no_grad()")
    name = choose(backend, outputs[0].device, {x.dtype for x in tensors})
    if name == "cpu" and not cpu.laid_out(tensors, normals is not None):
        if backend == "cpu":
            raise KernelError("backend=cpu cannot run: the tensors have several layouts; use backend=auto")
        name = "reference"
    BACKENDS[name](outputs, inputs, coefficients, normals)
