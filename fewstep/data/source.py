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
    """Clean images x0 [B, C, H, W] in [-1, 1] and the condition that networks are told; of pairs, also the unit normals that a teacher made
    them from. `whole` is the condition before training dropped some of it, where it did."""

    x0: Tensor
    cond: Cond
    noise: Tensor | None = None
    whole: Cond | None = None

    @property
    def undropped(self) -> Cond:
        """The condition that belongs to x0."""
        return self.cond if self.whole is None else self.whole

    def to(self, device: torch.device | str) -> Batch:
        whole = None if self.whole is None else self.whole.to(device)
        return Batch(self.x0.to(device), self.cond.to(device), None if self.noise is None else self.noise.to(device), whole)


class Source(Protocol):
    """What batches are drawn from: an image set, or pairs of noise and a teacher's samples."""

    def digest(self) -> str: ...

    def draw(self, count: int, rng: Rng) -> Batch: ...
