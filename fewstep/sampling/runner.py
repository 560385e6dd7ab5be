"""The sampling loop: a plan is lowered once for a denoiser, bound once to a shape, and then only launched.

Between two network passes there is one launch of the update primitive. Without gradients the updates write into buffers that are
allocated once for a run and reused in place; with gradients every update makes new tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import kernels
from fewstep.calls import check_classes
from fewstep.cond import NULL, Cond
from fewstep.denoiser import Denoiser, check_device
from fewstep.errors import UsageError
from fewstep.noise import Noise
from fewstep.sampling.binding import Bound
from fewstep.sampling.graph import replay
from fewstep.sampling.lower import lower
from fewstep.sampling.plan import Plan, check_run, wanted_slots
from fewstep.sampling.prepare import prepared
from fewstep.sampling.program import Program
from fewstep.sampling.registers import counted, execute

CACHED = 4  # programs of a plan, and shapes of a program, that are kept


def run(
    plan: Plan,
    denoiser: Denoiser,
    x: Tensor,
    noise: Noise | None = None,
    cond: Cond = NULL,
    keep: Sequence[str] = (),
    backend: str = "auto",
    graph: bool = False,
) -> dict[str, Tensor]:
    """Execute a plan from the initial state x = sigma_max * n: what `fewstep.sampling.plan.interpret` computes, within rounding.

    `backend` is `auto`, `reference` (torch; always used where gradients are recorded), `cpu` or `triton`. With `graph` the whole
    trajectory is captured as a CUDA graph at the first call for a shape and replayed after that (a warning says where it cannot be).
    **Shapes**: x [B, *shape], float32 or float64; returns the slots in `keep` and always the result, `plan.states[-1]`.
    **Raises**: UsageError for a state, condition or labels that the model cannot take, when the plan draws noise and none is given, `keep`
    names no slot, or the backend cannot run here.
    """
    check_run(plan, denoiser, x, noise, cond)
    _vet(plan, cond, denoiser.classes)
    cond = prepared(denoiser, cond)
    wanted = wanted_slots(plan, noise, keep)
    program = _lowered(plan, denoiser, x.dtype, cond, frozenset(wanted))
    bound = _bound(program, x, backend, counted(noise))
    return replay(bound, denoiser, x, noise, cond) if graph else execute(bound, denoiser, x, noise, cond)


def end_of(plan: Plan, denoiser: Denoiser, x: Tensor, noise: Noise | None = None, cond: Cond = NULL) -> Tensor:
    """Where a plan ends: `run`'s result alone."""
    return run(plan, denoiser, x, noise, cond)[plan.states[-1]]


def _vet(plan: Plan, cond: Cond, classes: int) -> None:
    """Values of labels, looked at once for a tensor that nobody has written into since: on a GPU that waits for them."""
    label = cond.label
    if label is None or (label.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    state = None if label.is_inference() else (label, label._version, classes)  # memory of inference mode does not tell who wrote into it
    if state is not None and plan.vetted and plan.vetted[0][0] is label and plan.vetted[0][1:] == state[1:]:
        return
    check_classes(label, classes)
    plan.vetted[:] = [] if state is None else [state]


def _lowered(plan: Plan, denoiser: Denoiser, dtype: torch.dtype, cond: Cond, wanted: frozenset[str]) -> Program:
    """The plan's program for this denoiser: one of those it keeps, or made now."""
    key = (dtype, cond.names(), wanted)
    for of, kept, program in plan.programs:
        if of is denoiser and kept == key and program.fits():
            return program
    program = lower(plan, denoiser, dtype, cond, wanted)
    plan.programs[CACHED - 1 :] = []
    plan.programs.insert(0, (denoiser, key, program))
    return program


def _bound(program: Program, x: Tensor, backend: str, inside: bool) -> Bound:
    """The program with its tables for tensors like x: one of those it keeps, or made now."""
    key = (backend, inside, x.shape, x.device, x.stride(), torch.is_grad_enabled())
    if key not in program.bounds:
        for net in program.networks:
            check_device(net, x)
        try:
            name = _choose(program, x, backend)
            with torch.inference_mode(False):  # its tensors serve runs of every mode
                made = Bound(program, x, name, inside)
        except kernels.KernelError as err:
            raise UsageError(str(err)) from err
        if len(program.bounds) >= CACHED:
            program.bounds.pop(next(iter(program.bounds)))
        program.bounds[key] = made
    return program.bounds[key]


def _choose(program: Program, x: Tensor, backend: str) -> str:
    """The backend that serves x. **Raises**: KernelError for one that is asked for and cannot."""
    name = kernels.choose(backend, x.device, [x.dtype, *(dtype for dtype in program.types if dtype is not None)])
    reason = None
    if torch.is_grad_enabled():
        reason = "gradients are recorded; call run under torch.no_grad()"
    elif not kernels.dense(x) or (name == "cpu" and not x.is_contiguous()):
        reason = f"x has strides {list(x.stride())}; call run with x.contiguous()"
    if name == "reference" or reason is None:
        return name
    if backend != "auto":
        raise kernels.KernelError(f"backend={backend} cannot run: {reason}, or use backend=auto")
    return "reference"
