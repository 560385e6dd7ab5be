"""What reference rows are measured on: class means and real images, which no sampler made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bench.evaluate.judge import Judge
from bench.evaluate.pairs import pairs_by_seed
from bench.store.cell import PICTURE
from bench.store.parts import Samples
from fewstep.data.arrays import PART, Images, Picked
from fewstep.data.images import ImageData
from fewstep.errors import Unavailable, UsageError
from fewstep.tasks.task import Asked, Paired, Task
from metrics import Measurement, declared, metric_named
from metrics.families.frechet import Frechet, floor
from metrics.intervals import drawn_index
from metrics.reference import Reference

# Raised when other images or another floor come out. The first: with replacement throughout, which stays so where a class is too small.
REPEATED, VERSION = 1, 2


def version_of(kind: str, reference: Reference, samples: int) -> int:
    """The version of the images of a reference row."""
    if kind == PICTURE:
        return 1
    classes = max(1, reference.classes)
    counts = np.bincount(reference.train_y if kind == "real_train" else reference.heldout_y, minlength=classes)
    if kind == "real_train_subset":
        counts = np.minimum(counts, np.bincount(reference.train_y, minlength=classes))
    return REPEATED if kind == "class_means" or counts.max(initial=0) < samples // classes else VERSION


def components_of(kind: str, reference: Reference, samples: int) -> dict[str, int]:
    """The component of a reference row's images. Both ways of drawing stand side by side in a suite, and neither supersedes the other."""
    version = version_of(kind, reference, samples)
    if kind == PICTURE:
        return {"pictures as outputs": version}
    return {"reference rows": version} if version == REPEATED else {"reference rows, none twice": version}


def few_of_each(y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The indices of counts[c] images of each class c, at random (seed 0: digits come ordered by writer, the first are of few hands)."""
    rng = np.random.RandomState(0)
    return np.concatenate([rng.permutation(np.flatnonzero(y == c))[:n] for c, n in enumerate(counts)])


def naive_images(kind: str, data: ImageData, samples: int, seed: int, ref: Reference) -> tuple[Images, np.ndarray]:
    """What the reference rows are measured on: class means (without classes the mean), or real images, as many of each class, none twice
    where the split has enough of them. Labels, and images that are read when they are indexed.

    **Raises**: UsageError where that takes held-out images and there are none.
    """
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
    index = drawn_index(y, seed, samples // classes)
    return Picked(x, index), y[index]


def pictures_as_outputs(task: Task, asked: Asked, seeds: Sequence[int]) -> Samples:
    """The pictures that samples of these seeds are asked by, as if they were outputs: what a model that returns them would score.

    **Raises**: Unavailable for a task that asks by none.
    """
    pairs = pairs_by_seed(task, seeds) if isinstance(task, Paired) else None
    if pairs is None or "image" not in pairs.condition:
        raise Unavailable(f"the row {PICTURE} is of tasks that ask by pictures, and a {type(task).__name__} asks by none; leave it out")
    labels = [task.conditions(torch.tensor(seeds[i : i + PART]), asked).label for i in range(0, len(seeds), PART)]
    drawn = [np.zeros(0, np.int64) if own is None else own.cpu().numpy() for own in labels]
    own = np.concatenate(drawn) if all(len(part) for part in drawn) else np.zeros(len(seeds), np.int64)
    return Samples(pairs.condition["image"], own, pairs=pairs)


def naive_floor(kind: str, name: str, judge: Judge, samples: int) -> Measurement | None:
    """The floor replaces the Frechet distance of one such draw in the `real_train` row: a mean over 20, with replacement."""
    metric = metric_named(name)
    extractor = judge.extractors.get(declared(metric).extractor or "")
    if kind != "real_train" or extractor is None or not isinstance(metric, Frechet):
        return None
    classes = max(1, judge.reference.classes)
    return floor(judge.reference, extractor, samples // classes, features=judge.reference_features(extractor.name))
