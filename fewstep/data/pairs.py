"""Pairs of noise and a teacher's samples: what knowledge distillation learns from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.cond import Cond
from fewstep.data.source import Batch
from fewstep.noise import LATENT, PhiloxNoise, Rng


@dataclass(frozen=True, eq=False)
class PairData:
    """A teacher's samples, and the seeds of the noise they were made from, which is drawn again when it is asked for.

    **Shapes**: seeds [N] int64, images [N, C, H, W], the conditions of N samples. `identity` names the teacher and how it was sampled.
    """

    seeds: Tensor
    images: Tensor
    cond: Cond
    identity: str

    def digest(self) -> str:
        return self.identity

    def draw(self, count: int, rng: Rng) -> Batch:
        """`count` pairs drawn with replacement, by an `Rng`."""
        index = rng.integers(len(self.images), (count,)).cpu()
        noise = PhiloxNoise(self.seeds[index]).normal(LATENT, self.images.shape[1:])
        return Batch(self.images[index], self.cond[index], noise)


def pair_seeds(count: int) -> Tensor:
    """Seeds that no evaluation uses: from 2^40 on."""
    return torch.arange(1 << 40, (1 << 40) + count)
