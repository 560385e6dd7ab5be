"""Pairs of noise and a teacher's samples: what knowledge distillation learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.cond import Cond
from fewstep.data.arrays import Images
from fewstep.data.source import Batch
from fewstep.noise import LATENT, PhiloxNoise, Rng

FIRST = 1 << 40  # the seed of the first pair


@dataclass(frozen=True, eq=False)
class PairData:
    """A teacher's samples, read where they are indexed. The noise of pair i is that of seed 2^40 + i, which no evaluation uses. It is drawn
    again when it is asked for, and so is its condition: `conditions(seeds)`.

    **Shapes**: images [N, C, H, W] float32. `identity` names the teacher and how it was sampled.
    """

    images: Images
    conditions: Callable[[Tensor], Cond]
    identity: str

    def digest(self) -> str:
        return self.identity

    def draw(self, count: int, rng: Rng) -> Batch:
        """`count` pairs drawn with replacement, by an `Rng`."""
        index = rng.integers(len(self.images), (count,)).cpu()
        seeds = index + FIRST
        noise = PhiloxNoise(seeds).normal(LATENT, self.images.shape[1:])
        return Batch(torch.from_numpy(self.images[index.numpy()]), self.conditions(seeds), noise)


def pair_seeds(first: int, last: int) -> Tensor:
    """The seeds of the pairs from number `first` to before `last`."""
    return torch.arange(FIRST + first, FIRST + last)
