"""Images drawn from the analytic arenas, with fixed seeds: what naive rows, distillers and feature extractors see of them."""

from __future__ import annotations

import numpy as np
import torch

from fewstep.analytic import Analytic
from fewstep.arenas import arena_gaussian, arena_mixture
from fewstep.data.images import ImageData
from fewstep.plugins import register

TRAIN, HELDOUT = 2000, 500


def drawn(name: str, source: Analytic) -> ImageData:
    """2,000 training and 500 held-out exact samples, class-balanced, float32; not clipped to [-1, 1], so that moments stay exact."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(TRAIN + HELDOUT) % max(source.classes, 1)
    x = source.draw(y, generator).float().numpy()
    labels = y.numpy().astype(np.int64)
    return ImageData(name, source.classes, x[:TRAIN], labels[:TRAIN], x[TRAIN:], labels[TRAIN:])


@register("data", "arena_mixture", "this project")
def mixture_images() -> ImageData:
    """Samples of `fewstep.arenas.arena_mixture`, as the data set `arena_mixture`."""
    return drawn("arena_mixture", arena_mixture())


@register("data", "arena_gaussian", "this project")
def gaussian_images() -> ImageData:
    """Samples of `fewstep.arenas.arena_gaussian`, as the data set `arena_gaussian`; it has no classes."""
    return drawn("arena_gaussian", arena_gaussian())
