"""Weights of squared errors by noise level, and losses that are a distance and a weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.errors import UsageError, near_misses
from methods.losses.distances import distance

# Weights of a squared error on x0 at noise level sigma, where SNR = 1 / sigma^2 (arXiv 2202.00512, section 4). The error of eps is that of
# x0 over sigma, so `snr` is the squared error of eps, `truncated_snr` the larger of the two per sample, and `snr_plus_1` that of v.
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": torch.ones_like,
    "snr": lambda sigma: sigma**-2,
    "truncated_snr": lambda sigma: torch.clamp(sigma**-2, min=1.0),
    "snr_plus_1": lambda sigma: 1 + sigma**-2,
}


def weight(name: str) -> Callable[[Tensor], Tensor]:
    """The weight of a name as a function of sigma [B] -> [B]. **Raises**: UsageError with near misses."""
    if name not in WEIGHTS:
        raise UsageError(f"unknown weight '{name}'{near_misses(name, list(WEIGHTS))}")
    return WEIGHTS[name]


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
