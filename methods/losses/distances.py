"""Distances of two images per sample."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.nets.features import DigitClassifier
from fewstep.nets.loading import load_digit_classifier
from fewstep.nets.perceptual import efficientnet_distance, lpips_vgg
from fewstep.nets.st_lpips import st_lpips
from fewstep.plugins import get, register

Distance = Callable[[Tensor, Tensor], Tensor]


@register("distance", "l1")
def l1(a: Tensor, b: Tensor) -> Tensor:
    """mean |a - b| over the pixels of each sample. [B, ...] -> [B]."""
    return (a - b).abs().flatten(1).mean(1)


@register("distance", "l2")
def l2(a: Tensor, b: Tensor) -> Tensor:
    """mean (a - b)^2 over the pixels of each sample. [B, ...] -> [B]."""
    return (a - b).square().flatten(1).mean(1)


@register("distance", "pseudo_huber", "arXiv 2310.14189")
def pseudo_huber(a: Tensor, b: Tensor) -> Tensor:
    """sqrt(|a - b|^2 + c^2) - c with c = 0.00054 sqrt(d), d pixels per sample. [B, ...] -> [B]. **Source**: arXiv 2310.14189."""
    difference = (a - b).flatten(1)
    c = 0.00054 * difference.shape[1] ** 0.5
    return torch.sqrt(difference.square().sum(1) + c**2) - c


@register("distance", "norm", "arXiv 2406.14548")
def norm(a: Tensor, b: Tensor) -> Tensor:
    """|a - b| over all pixels of each sample, with gradient 0 where a = b. [B, ...] -> [B]. **Source**: arXiv 2406.14548 (c = 0)."""
    return torch.linalg.vector_norm((a - b).flatten(1), dim=1)


@register("distance", "huber", "arXiv 2310.04378")
def huber(a: Tensor, b: Tensor) -> Tensor:
    """mean over pixels of sqrt((a - b)^2 + c^2) - c, c = 0.001. [B, ...] -> [B]. **Source**: arXiv 2310.04378, released code."""
    return (torch.sqrt((a - b).flatten(1).square() + 0.001**2) - 0.001).mean(1)


@functools.lru_cache(maxsize=4)
def _digit_classifier(device: torch.device) -> DigitClassifier:
    return load_digit_classifier(device)[0]


@register("distance", "digits_features", "this project", weights={"digits_features": "digits_classifier"})
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


register("distance", "lpips", "arXiv 1801.03924")(lpips_vgg)
register("distance", "st_lpips", "arXiv 2207.13686")(st_lpips)
register("distance", "efficientnet_distance", "arXiv 1905.11946 (the network)")(efficientnet_distance)


@register("distance", "l1_lpips")
def l1_lpips(a: Tensor, b: Tensor) -> Tensor:
    """l1 + lpips. [B, C, H, W] -> [B]."""
    return total(l1, lpips_vgg)(a, b)


@register("distance", "l1_digits_features", "this project", weights={"digits_features": "digits_classifier"})
def l1_digits_features(a: Tensor, b: Tensor) -> Tensor:
    """l1 + digits_features. [B, 1, 8, 8] -> [B]."""
    return total(l1, digits_features)(a, b)


def distance(name: str) -> Distance:
    """The distance of a name. **Raises**: UsageError with near misses."""
    return get("distance", name).target
