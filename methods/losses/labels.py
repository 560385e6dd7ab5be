"""Dropping labels while a network is trained, which keeps the branch that guidance needs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fewstep.cond import Cond
from fewstep.errors import UsageError


def check_dropout(method: str, probability: float) -> None:
    """**Raises**: UsageError for a `label_dropout` that is no probability."""
    if not 0 <= probability <= 1:
        raise UsageError(f"{method}'s label_dropout is a probability, got {probability:g}; use e.g. 0.1")


def drop_labels(cond: Cond, probability: float, classes: int, uniform: Tensor) -> Cond:
    """The condition with each label replaced by the null label where uniform [B] < probability: keeps the branch guidance needs."""
    if cond.label is None:
        return cond
    return replace(cond, label=torch.where(uniform < probability, torch.full_like(cond.label, classes), cond.label))
