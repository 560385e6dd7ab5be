"""A labelled image set held in memory, and the batches drawn from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from fewstep.cond import NULL, Cond
from fewstep.data.source import Batch
from fewstep.noise import Rng


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images in [-1, 1], float32 [N, C, H, W], with int64 labels [N], split into a training and a held-out part."""

    name: str
    classes: int
    train_x: np.ndarray
    train_y: np.ndarray
    heldout_x: np.ndarray
    heldout_y: np.ndarray
    class_names: tuple[str, ...] = ()
    how: str = ""  # what was done to the files that it was read from

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.train_x.shape[1:])

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the training pixels about their common mean (EDM's sigma_data), in pixel units of [-1, 1]."""
        return float(self.train_x.astype(np.float64).std())

    def digest(self) -> str:
        """SHA-256 of the training split, pixels and labels: the identity of everything computed from it."""
        return hashlib.sha256(self.train_x.tobytes() + self.train_y.tobytes()).hexdigest()

    def draw(self, count: int, rng: Rng) -> Batch:
        """A batch of `count` training images drawn with replacement, by an `Rng`; without labels where there are no classes."""
        index = rng.integers(len(self.train_x), (count,)).cpu().numpy()
        return Batch(torch.from_numpy(self.train_x[index]), Cond(label=torch.from_numpy(self.train_y[index])) if self.classes else NULL)

    def unlabelled(self) -> ImageData:
        """The same images and split without their labels."""
        nothing = {part: np.zeros_like(getattr(self, part)) for part in ("train_y", "heldout_y")}
        return replace(self, classes=0, class_names=(), **nothing)

    def class_means(self) -> np.ndarray:
        """Mean training image of each class, [classes, C, H, W] float32; without classes that of all."""
        return np.stack([self.train_x[self.train_y == c].mean(axis=0) for c in range(max(1, self.classes))])
