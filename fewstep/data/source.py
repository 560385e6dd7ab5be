"""What trainings draw their batches from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.cond import Cond
from fewstep.noise import Rng


@dataclass(frozen=True)
class Batch:
    """Clean images x0 [B, C, H, W] in [-1, 1] and their condition; of pairs, also the unit normals that a teacher made them from."""

    x0: Tensor
    cond: Cond
    noise: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.x0.to(device), self.cond.to(device), None if self.noise is None else self.noise.to(device))


class Source(Protocol):
    """What batches are drawn from: an image set, or pairs of noise and a teacher's samples."""

    def digest(self) -> str: ...

    def draw(self, count: int, rng: Rng) -> Batch: ...
