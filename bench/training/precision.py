"""Numbers of fewer bits in training: what networks compute in them, and the scale that keeps small gradients in float16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from fewstep.errors import UsageError
from fewstep.nets.reduced import DTYPES

SCALED = "fp16"  # whose smallest numbers are larger than many gradients
LEAST = 1.0  # a scale below it means that gradients overflow of themselves


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to a recipe's precision; nothing for float32."""
    if precision not in DTYPES:
        return nullcontext()
    # Copies of weights that autocast keeps go stale with the first of a batch's steps, and carry no gradient when made without one.
    return torch.autocast(device.type, dtype=DTYPES[precision], cache_enabled=False)


def scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """The scaler of one optimiser's gradients, which does nothing where the precision needs none."""
    return torch.amp.GradScaler(device.type, enabled=precision == SCALED)


def check_precision(precision: str, device: torch.device) -> None:
    """**Raises**: UsageError for a precision that this device cannot train in with this torch."""
    if precision not in DTYPES:
        return
    try:
        net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, 1)).to(device)
        with autocast(precision, device):
            scaler(precision, device).scale(net(torch.ones(1, 1, 3, 3, device=device)).sum()).backward()
    except RuntimeError as err:  # NotImplementedError, of operations without a kernel for the type, is one
        why, other = str(err).splitlines()[0], "bf16" if precision == SCALED else "no"
        raise UsageError(f"precision={precision} cannot be trained in on {device} here ({why}); use precision={other}") from None
