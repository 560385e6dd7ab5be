"""Coloured patterns that are made where they are needed: a data set for trying commands out, with no file to fetch."""

from __future__ import annotations

import numpy as np

from fewstep.data.images import ImageData
from fewstep.plugins import register

SIDE, CLASSES = 32, 10
TRAIN, HELDOUT = 500, 200  # images, evenly many of each class


def patterns(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` images [N, 3, 32, 32] float32 in [-1, 1] on the 256 levels of a file, and their labels: waves whose direction and frequency
    are those of the class, in a hue of the class, with a phase, a contrast and a background of their own.

    **Shapes**: labels [N] int64, image i of class i mod 10.
    """
    rng = np.random.RandomState(seed)
    y = np.arange(count) % CLASSES
    angle, waves = np.pi * y / CLASSES, 1 + y % 3
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    along = np.cos(angle)[:, None, None] * columns + np.sin(angle)[:, None, None] * rows
    wave = np.cos(2 * np.pi * (waves[:, None, None] * along + rng.rand(count)[:, None, None]))
    hue = np.stack([np.cos(2 * np.pi * (y / CLASSES + third / 3)) for third in range(3)], axis=1)[:, :, None, None]
    contrast, ground = 0.3 + 0.3 * rng.rand(count, 1, 1, 1), 0.4 * rng.rand(count, 3, 1, 1) - 0.2
    x = np.clip(ground + contrast * (0.5 + hue) * wave[:, None], -1, 1)
    return (np.round((x + 1) * 127.5) / 127.5 - 1).astype(np.float32), y.astype(np.int64)


@register("data", "patterns32", "this project")
def patterns32() -> ImageData:
    """500 training and 200 held-out `patterns` of 32x32 pixels in ten classes: for trying a suite out, never for a measurement."""
    (train_x, train_y), (heldout_x, heldout_y) = patterns(TRAIN, 0), patterns(HELDOUT, 1)
    return ImageData("patterns32", CLASSES, train_x, train_y, heldout_x, heldout_y)
