"""What a call from outside may hold: one line for each fault. No check changes a number; none waits for a GPU but `check_classes`."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fewstep.checks import check_level_values
from fewstep.cond import Cond
from fewstep.errors import UsageError

STATES = (torch.float32, torch.float64)
INDICES = (torch.int64, torch.int32)
Levels = float | Tensor


def check_state(x: Tensor, shape: Sequence[int]) -> None:
    """**Raises**: UsageError for a state that is no float32 or float64 tensor [B, *shape]."""
    if not isinstance(x, Tensor):
        raise UsageError(f"x is a {type(x).__name__}; give a tensor [B, *shape], e.g. torch.as_tensor(x)")
    if x.dtype not in STATES:
        raise UsageError(f"x is {x.dtype}, and a state is float32 or float64; use x.float() (a network is called in its own dtype)")
    if x.ndim == 0 or x.shape[1:] != torch.Size(shape):
        wanted = ", ".join(["B", *map(str, shape)])
        raise UsageError(f"x has shape {list(x.shape)}, and the model takes [{wanted}]; check its channels and size")


def check_levels(sigma: Levels, batch: int, what: str = "sigma", positive: bool = False, values: bool = True) -> None:
    """**Raises**: UsageError unless sigma is a float or a tensor [B] of finite levels >= 0 (`positive`: above 0).

    Values of tensors on other devices than the CPU are left to whoever brings them to the host, and without `values` all tensors'.
    """
    if not isinstance(sigma, Tensor):
        if type(sigma) is not float and not isinstance(sigma, numbers.Real) and not (isinstance(sigma, np.ndarray) and sigma.ndim == 0):
            raise UsageError(f"{what} is a {type(sigma).__name__}; give a float, or a tensor [B] with a level for each sample")
        check_level_values(float(sigma), what, positive)
        return
    if sigma.numel() not in (1, batch) or sigma.ndim > 1 or sigma.is_complex() or sigma.dtype is torch.bool:
        found = f"{sigma.dtype} {list(sigma.shape)} for {batch} samples"
        raise UsageError(f"{what} is {found}; give a float, or a tensor [{batch}] with a level for each sample")
    if values and sigma.device.type == "cpu":
        check_level_values(sigma.detach().numpy(), what, positive)


def check_label(label: Tensor, batch: int) -> None:
    """**Raises**: UsageError for labels that are no tensor [B] of integers."""
    if not isinstance(label, Tensor):
        raise UsageError(f"label is a {type(label).__name__}; give a tensor [B], e.g. torch.tensor([0, 1])")
    if label.dtype not in INDICES:
        raise UsageError(f"label is {label.dtype}, and class indices are int64; use label.long()")
    if label.shape != (batch,):
        raise UsageError(f"label has shape {list(label.shape)} for {batch} samples; give it one class index for each, [{batch}]")


def check_classes(label: Tensor, classes: int) -> None:
    """Values of labels; it waits for those on a GPU. **Raises**: UsageError for one outside of 0 to `classes`, which is the null label."""
    if not len(label):
        return
    low, high = (int(v) for v in label.aminmax())
    if low >= 0 and high <= classes:
        return
    wrong = low if low < 0 else high
    if not classes:
        raise UsageError(f"label {wrong} is given to a model that has no classes; leave the label out, or use 0")
    raise UsageError(f"label {wrong} is outside of the model's {classes} classes; use 0 to {classes - 1}, or {classes} for no class")


def check_cond(cond: Cond, batch: int, device: torch.device) -> None:
    """Kinds, shapes and devices. **Raises**: UsageError for what no model may be told for `batch` samples on `device`."""
    if not isinstance(cond, Cond):
        raise UsageError(f"cond is a {type(cond).__name__}; give a Cond, e.g. Cond(label=torch.tensor([0, 1]))")
    if cond.label is not None:
        check_label(cond.label, batch)
    for name, value, shape in (("text", cond.text, "B, L, E"), ("image", cond.image, "B, C, H, W"), ("mask", cond.mask, "B, 1, H, W")):
        if value is not None:
            _check_floats(f"cond.{name}", value, batch, shape)
    for name, value in cond.scalars.items():
        _check_floats(f"scalar '{name}'", value, batch, "B")
    for value in cond.tensors():
        if value.device != device:
            raise UsageError(f"the condition is on {value.device} and x on {device}; use cond.to(x.device)")


def _check_floats(what: str, value: Tensor, batch: int, shape: str) -> None:
    if not isinstance(value, Tensor):
        raise UsageError(f"{what} is a {type(value).__name__}; give a tensor [{shape}] with an entry for each sample")
    if value.ndim != shape.count(",") + 1 or len(value) != batch:
        raise UsageError(f"{what} has shape {list(value.shape)} for {batch} samples; give it [{shape}], an entry for each")


def check_call(x: Tensor, sigma: Levels, cond: Cond, shape: Sequence[int], classes: int, values: bool = True) -> None:
    """A denoiser's arguments; values of labels where they are on the host. **Raises**: UsageError for the first that it cannot take."""
    check_state(x, shape)
    check_levels(sigma, len(x), values=values)
    check_cond(cond, len(x), x.device)
    if cond.label is not None and cond.label.device.type == "cpu":
        check_classes(cond.label, classes)


def check_seeds(seeds: Tensor) -> None:
    """**Raises**: UsageError for seeds that are no tensor [B] of integers >= 0 (their values where they are on the host)."""
    if not isinstance(seeds, Tensor):
        raise UsageError(f"seeds are a {type(seeds).__name__}; give a tensor with one for each sample, e.g. torch.arange(16)")
    if seeds.dtype not in INDICES or seeds.ndim != 1:
        raise UsageError(f"seeds are {seeds.dtype} {list(seeds.shape)}; give int64 [B], one for each sample, e.g. torch.arange(16)")
    if len(seeds) and seeds.device.type == "cpu" and int(seeds.min()) < 0:
        raise UsageError(f"seed {int(seeds.min())} is below 0; seeds are integers >= 0, e.g. torch.arange(16)")
