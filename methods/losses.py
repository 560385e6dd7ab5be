"""Loss atoms: distances of two images per sample, weights by noise level, and the choices that losses share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.cond import Cond
from fewstep.errors import UsageError, near_misses

Distance = Callable[[Tensor, Tensor], Tensor]


def l1(a: Tensor, b: Tensor) -> Tensor:
    """mean |a - b| over the pixels of each sample. [B, ...] -> [B]."""
    return (a - b).abs().flatten(1).mean(1)


def l2(a: Tensor, b: Tensor) -> Tensor:
    """mean (a - b)^2 over the pixels of each sample. [B, ...] -> [B]."""
    return (a - b).square().flatten(1).mean(1)


def pseudo_huber(a: Tensor, b: Tensor) -> Tensor:
    """sqrt(|a - b|^2 + c^2) - c with c = 0.00054 sqrt(d), d pixels per sample. [B, ...] -> [B]. **Source**: arXiv 2310.14189."""
    difference = (a - b).flatten(1)
    c = 0.00054 * difference.shape[1] ** 0.5
    return torch.sqrt(difference.square().sum(1) + c**2) - c


DISTANCES: dict[str, Distance] = {"l1": l1, "l2": l2, "pseudo_huber": pseudo_huber}

# Weights of a squared error on x0 at noise level sigma, where SNR = 1 / sigma^2 (arXiv 2202.00512, section 4).
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": torch.ones_like,
    "truncated_snr": lambda sigma: torch.clamp(sigma**-2, min=1.0),
    "snr_plus_1": lambda sigma: 1 + sigma**-2,
}


def distance(name: str) -> Distance:
    """The distance of a name. **Raises**: UsageError with near misses."""
    if name not in DISTANCES:
        raise UsageError(f"unknown loss '{name}'{near_misses(name, list(DISTANCES))}")
    return DISTANCES[name]


def weight(name: str) -> Callable[[Tensor], Tensor]:
    """The weight of a name as a function of sigma [B] -> [B]. **Raises**: UsageError with near misses."""
    if name not in WEIGHTS:
        raise UsageError(f"unknown weight '{name}'{near_misses(name, list(WEIGHTS))}")
    return WEIGHTS[name]


def drop_labels(cond: Cond, probability: float, classes: int, uniform: Tensor) -> Cond:
    """The condition with each label replaced by the null label where uniform [B] < probability: keeps the branch guidance needs."""
    if cond.label is None:
        return cond
    return Cond(torch.where(uniform < probability, torch.full_like(cond.label, classes), cond.label))
