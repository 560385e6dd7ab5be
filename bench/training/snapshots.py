"""Weights on the way: what a training had reached after so many images, measured later as a curve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Snapshots:
    """`count` times in each phase, at equal distances, `write(images, weights)` is given what the phase exports and the images seen by all
    phases until then. They change nothing in the training, so they are no part of its identity."""

    count: int
    write: Callable[[int, Mapping[str, Tensor]], None]

    def due(self, batch: int, batches: int) -> bool:
        """Whether one is taken after `batch` of a phase's `batches`."""
        return batch * self.count // batches > (batch - 1) * self.count // batches
