"""Loss atoms: distances of two images per sample, weights by noise level, and the choices that losses share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fewstep.cond import Cond
from fewstep.errors import UsageError, near_misses
from fewstep.nets.features import DigitClassifier
from fewstep.nets.perceptual import lpips_vgg
from fewstep.nets.readers.card import load_digit_classifier

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


def norm(a: Tensor, b: Tensor) -> Tensor:
    """|a - b| over all pixels of each sample, with gradient 0 where a = b. [B, ...] -> [B]. **Source**: arXiv 2406.14548 (c = 0)."""
    return torch.linalg.vector_norm((a - b).flatten(1), dim=1)


def huber(a: Tensor, b: Tensor) -> Tensor:
    """mean over pixels of sqrt((a - b)^2 + c^2) - c, c = 0.001. [B, ...] -> [B]. **Source**: arXiv 2310.04378, released code."""
    return (torch.sqrt((a - b).flatten(1).square() + 0.001**2) - 0.001).mean(1)


@functools.lru_cache(maxsize=4)
def _digit_classifier(device: torch.device) -> DigitClassifier:
    return load_digit_classifier(device)[0]


def digits_features(a: Tensor, b: Tensor) -> Tensor:
    """|phi(a) - phi(b)|^2 over the 64 features of the recorded digit classifier. [B, 1, 8, 8] -> [B].

    What LPIPS is to photographs; `fd_digits` measures in the same features, so it favours students trained with this distance.
    **Raises**: UsageError for images of another shape.
    """
    if a.shape[1:] != (1, 8, 8):
        raise UsageError(f"digits_features compares images of shape [1, 8, 8], got {list(a.shape[1:])}; use lpips or pseudo_huber")
    net = _digit_classifier(a.device)
    return (net(a.float()) - net(b.float())).square().sum(1).to(a.dtype)


def total(*distances: Distance) -> Distance:
    """The sum of distances, with equal weights."""
    return lambda a, b: torch.stack([d(a, b) for d in distances]).sum(0)


DISTANCES: dict[str, Distance] = {
    "l1": l1,
    "l2": l2,
    "norm": norm,
    "huber": huber,
    "pseudo_huber": pseudo_huber,
    "lpips": lpips_vgg,
    "digits_features": digits_features,
    "l1_lpips": total(l1, lpips_vgg),
    "l1_digits_features": total(l1, digits_features),
}

# Weights of a squared error on x0 at noise level sigma, where SNR = 1 / sigma^2 (arXiv 2202.00512, section 4). The error of eps is that of
# x0 over sigma, so `snr` is the squared error of eps, `truncated_snr` the larger of the two per sample, and `snr_plus_1` that of v.
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": torch.ones_like,
    "snr": lambda sigma: sigma**-2,
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


def check_dropout(method: str, probability: float) -> None:
    """**Raises**: UsageError for a `label_dropout` that is no probability."""
    if not 0 <= probability <= 1:
        raise UsageError(f"{method}'s label_dropout is a probability, got {probability:g}; use e.g. 0.1")


def drop_labels(cond: Cond, probability: float, classes: int, uniform: Tensor) -> Cond:
    """The condition with each label replaced by the null label where uniform [B] < probability: keeps the branch guidance needs."""
    if cond.label is None:
        return cond
    return replace(cond, label=torch.where(uniform < probability, torch.full_like(cond.label, classes), cond.label))
