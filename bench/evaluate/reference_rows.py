"""What reference rows are measured on: class means and real images, which no sampler made."""

from __future__ import annotations

import numpy as np

from bench.evaluate.judge import Judge
from fewstep.data.images import ImageData
from metrics import Measurement, declared, metric_named
from metrics.frechet import Frechet, floor
from metrics.reference import Reference, real_resample

VERSION = 1  # raised when other images or another floor come out


def few_of_each(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """counts[c] images of each class c, at random (seed 0: the digits come ordered by writer, so the first would be of few hands)."""
    rng = np.random.RandomState(0)
    index = np.concatenate([rng.permutation(np.flatnonzero(y == c))[:n] for c, n in enumerate(counts)])
    return x[index], y[index]


def naive_samples(kind: str, data: ImageData, samples: int, seed: int, ref: Reference) -> dict[str, np.ndarray]:
    """What the reference rows are measured on: class means (without classes the mean), or a class-balanced resample of real images."""
    classes = max(1, data.classes)
    if kind == "class_means":
        labels = np.arange(samples, dtype=np.int64) % classes
        return {"images": data.class_means()[labels], "labels": labels}
    sources = {
        "real_train": (ref.train_x, ref.train_y),
        "real_heldout": (ref.heldout_x, ref.heldout_y),
        # As many training images of each class as there are held-out ones: what being few costs, apart from being unseen.
        "real_train_subset": few_of_each(ref.train_x, ref.train_y, np.bincount(ref.heldout_y)),
    }
    x, y = sources[kind]
    images, labels = real_resample(x, y, samples // classes, seed)
    return {"images": images, "labels": labels}


def naive_floor(kind: str, name: str, judge: Judge, samples: int) -> Measurement | None:
    """The floor replaces the single resample's Frechet distance in the `real_train` row: a mean over 20."""
    metric = metric_named(name)
    extractor = judge.extractors.get(declared(metric).extractor or "")
    if kind != "real_train" or extractor is None or not isinstance(metric, Frechet):
        return None
    return floor(judge.reference, extractor, samples // max(1, judge.reference.classes))
