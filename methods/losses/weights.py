"""Weights of squared errors by noise level, and losses that are a distance and a weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.plugins import get, register
from methods.losses.distances import distance

# SNR = 1 / sigma^2 (arXiv 2202.00512, section 4). The error of eps is that of x0 over sigma.


@register("weight", "uniform")
def uniform(sigma: Tensor) -> Tensor:
    """1: the squared error of x0."""
    return torch.ones_like(sigma)


@register("weight", "snr", "arXiv 2202.00512")
def snr(sigma: Tensor) -> Tensor:
    """1 / sigma^2: the squared error of eps."""
    return sigma**-2


@register("weight", "truncated_snr", "arXiv 2202.00512")
def truncated_snr(sigma: Tensor) -> Tensor:
    """max(1 / sigma^2, 1): the larger of both errors, per sample."""
    return torch.clamp(sigma**-2, min=1.0)


@register("weight", "snr_plus_1", "arXiv 2202.00512")
def snr_plus_1(sigma: Tensor) -> Tensor:
    """1 + 1 / sigma^2: the squared error of v."""
    return 1 + sigma**-2


def weight(name: str) -> Callable[[Tensor], Tensor]:
    """The weight of a name as a function of sigma [B] -> [B]. **Raises**: UsageError with near misses."""
    return get("weight", name).target


def weighted_distance(method: str, loss: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The loss distance+weight, e.g. l2+truncated_snr, as a function of (D, target, sigma [B]) -> [B]; weights are for squared errors.

    **Raises**: UsageError for unknown names, for one without a weight, and for a weight on another distance than l2.
    """
    name, plus, by = loss.partition("+")
    if not plus:
        raise UsageError(f"{method}'s loss is distance+weight, got '{loss}'; e.g. l2+truncated_snr")
    error, factor = distance(name), weight(by)
    if name != "l2" and by != "uniform":
        raise UsageError(f"the weight {by} is for squared errors, got loss '{loss}'; use l2+{by} or {name}+uniform")
    return lambda d, target, sigma: factor(sigma).to(d) * error(d, target)
