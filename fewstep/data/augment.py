"""Augmentation of what trainings draw. It is part of the source, so that references and held-out parts stay as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fewstep.data.kept import text_digest
from fewstep.data.source import Batch, Source
from fewstep.errors import UsageError
from fewstep.noise import Rng
from fewstep.plugins import register


@register("augment", "flip", "arXiv 2206.00364, appendix F (horizontal flips)")
@dataclass(frozen=True, eq=False)
class Flipped:
    """A source whose images are mirrored left to right with probability 1/2, each by the batch's own `Rng`.

    **Raises**: UsageError for pairs of noise and images, whose noise a mirror image does not belong to.
    """

    source: Source
    version: ClassVar[int] = 1

    def digest(self) -> str:
        """The identity of what is trained on it: another one than that of the images as they are."""
        return text_digest("flip", self.version, self.source.digest())

    def draw(self, count: int, rng: Rng) -> Batch:
        batch = self.source.draw(count, rng)
        if batch.noise is not None:
            raise UsageError("pairs of noise and images cannot be mirrored, as mirrored noise gives other images; leave augment out")
        flipped = rng.uniform((count,)).to(batch.x0.device) < 0.5
        return replace(batch, x0=torch.where(flipped[:, None, None, None], batch.x0.flip(-1), batch.x0))
