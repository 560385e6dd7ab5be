"""What reference rows are measured on: class means and real images, which no sampler made."""

from __future__ import annotations

import numpy as np

from bench.evaluate.judge import Judge
from fewstep.data.arrays import Images, Picked
from fewstep.data.images import ImageData
from fewstep.errors import UsageError
from metrics import Measurement, declared, metric_named
from metrics.frechet import Frechet, floor
from metrics.intervals import resample_index
from metrics.reference import Reference

VERSION = 1  # raised when other images or another floor come out


def few_of_each(y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The indices of counts[c] images of each class c, at random (seed 0: digits come ordered by writer, the first are of few hands)."""
    rng = np.random.RandomState(0)
    return np.concatenate([rng.permutation(np.flatnonzero(y == c))[:n] for c, n in enumerate(counts)])


def naive_images(kind: str, data: ImageData, samples: int, seed: int, ref: Reference) -> tuple[Images, np.ndarray]:
    """What the reference rows are measured on: class means (without classes the mean), or a class-balanced resample of real images. Labels,
    and images that are read when they are indexed. **Raises**: UsageError where that takes held-out images and there are none."""
    if not len(data.train_x):
        data.train_x[:1]  # which says why
    classes = max(1, data.classes)
    if kind == "class_means":
        labels = np.arange(samples, dtype=np.int64) % classes
        return Picked(data.class_means(), labels), labels
    if kind != "real_train" and not len(ref.heldout_y):
        raise UsageError(f"{data.name} is read from files that hold no held-out images, which {kind} needs; leave that row out")
    x, y = (ref.heldout_x, ref.heldout_y) if kind == "real_heldout" else (ref.train_x, ref.train_y)
    if kind == "real_train_subset":
        # As many training images of each class as there are held-out ones: what being few costs, apart from being unseen.
        index = few_of_each(y, np.bincount(ref.heldout_y))
        x, y = Picked(x, index), y[index]
    index = resample_index(y, seed, samples // classes)
    return Picked(x, index), y[index]


def naive_floor(kind: str, name: str, judge: Judge, samples: int) -> Measurement | None:
    """The floor replaces the single resample's Frechet distance in the `real_train` row: a mean over 20."""
    metric = metric_named(name)
    extractor = judge.extractors.get(declared(metric).extractor or "")
    if kind != "real_train" or extractor is None or not isinstance(metric, Frechet):
        return None
    classes = max(1, judge.reference.classes)
    return floor(judge.reference, extractor, samples // classes, features=judge.reference_features(extractor.name))
