"""What a degradation draws: numbers that are a function of an image's seed and of the name of the draw alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.calls import check_seeds
from kernels.philox import MASK, box_muller, philox4x32

STREAM = 1  # third word of the counter: the sampler's noise of the same seed has 0 there, so the two never meet


@dataclass(frozen=True, eq=False)
class Draws:
    """Philox4x32-10 with key (low word of the seed, number of the draw) and counter (block, high word of the seed, 1, 0).

    `number` counts the draws from `first`; each method takes the next one, so that a degradation reads like its list of draws.
    **Shapes**: seeds [B] int64 -> uniforms float64 [B, *shape], normals float64 [B, *shape], made of float32 ones.
    """

    seeds: Tensor
    first: int = 0

    def __post_init__(self) -> None:
        check_seeds(self.seeds)

    def _words(self, number: int, count: int) -> Tensor:
        """[B, count] words of 32 bits, as int64."""
        seeds = self.seeds.to(torch.int64)[:, None]
        blocks = torch.arange((count + 3) // 4, device=seeds.device)[None]
        stream, zero = torch.full_like(blocks, STREAM), torch.zeros_like(blocks)
        key = (seeds & MASK, torch.full_like(seeds, self.first + number))
        words = philox4x32((blocks, (seeds >> 32) & MASK, stream, zero), key)
        return torch.stack(torch.broadcast_tensors(*words), dim=2).flatten(1)[:, :count]

    def uniform(self, number: int, low: float = 0.0, high: float = 1.0, shape: Sequence[int] = ()) -> Tensor:
        """Uniform between low and high, [B, *shape], never at its ends."""
        u = (self._words(number, max(1, torch.Size(shape).numel())).double() + 0.5) * 2.0**-32
        return (low + (high - low) * u).view(len(self.seeds), *shape)

    def integer(self, number: int, low: int, high: int, shape: Sequence[int] = ()) -> Tensor:
        """An integer from low to high, both among them, [B, *shape] int64."""
        return self.uniform(number, low, high + 1, shape).floor().long()

    def choice(self, number: int, weights: Sequence[float]) -> Tensor:
        """An index by its probability [B] int64; weights sum to 1."""
        edges = torch.tensor(weights, dtype=torch.float64, device=self.seeds.device).cumsum(0)[:-1].contiguous()
        return torch.searchsorted(edges, self.uniform(number), right=True)

    def normal(self, number: int, shape: Sequence[int]) -> Tensor:
        """Unit normals [B, *shape]."""
        count = torch.Size(shape).numel()
        w = self._words(number, count + (-count) % 2)
        found = torch.stack(box_muller(w[:, ::2], w[:, 1::2]), dim=2).flatten(1)[:, :count]
        return found.double().view(len(self.seeds), *shape)
