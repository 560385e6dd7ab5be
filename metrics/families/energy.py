"""Energy distance of pixels (`fewstep.energy`) to the training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fewstep.data.arrays import Images
from fewstep.energy import Strata, distances, strata, within
from fewstep.errors import Unavailable, UsageError
from fewstep.plugins import register
from metrics.intervals import bootstrap, resample_index, single
from metrics.metric import Evidence, Measurement, Shown
from metrics.reference import Reference
from metrics.streaming import HELD, block_size, blocks, flat, held


def strata_of(labels: np.ndarray, real: Reference) -> tuple[Strata, Strata]:
    """How samples of these labels and the training split count: class by class, each class as much as it has of the split.

    **Raises**: UsageError for samples of a class that the split lacks; Unavailable where a class has none or a single one.
    """
    classes, counts = np.unique(real.train_y, return_counts=True)
    strange = np.setdiff1d(labels, classes)
    if len(strange):
        raise UsageError(
            f"samples of class {strange[0]}, of which the training split of {real.name} has no image; "
            f"give each sample the label that it was drawn for, of {', '.join(map(str, classes))}"
        )
    lacking = np.setdiff1d(classes, labels)
    if len(lacking) and len(np.unique(labels)) > 1:  # of one class throughout nobody says how it was drawn
        raise Unavailable(
            f"an unbiased energy distance needs samples of every class of {real.name}, got none of class {lacking[0]}; take more samples"
        )
    shares = dict(zip(classes.tolist(), (counts / counts.sum()).tolist()))
    data = strata(real.train_y, what=f"training images of {real.name}")
    try:
        return strata(labels, shares), data
    except UsageError as err:  # no fault of whoever asked for few samples
        raise Unavailable(str(err)) from None


def distances_to(images: Images, real: Images, weights: np.ndarray) -> np.ndarray:
    """The mean distance of each image to the real ones under their weights: [N] of images [N, ...] and real [M, ...]."""
    if held(real):
        y = flat(real[:])
        return np.concatenate([distances(flat(block), y) @ weights for block in blocks(images)])
    return np.concatenate([_distance_to(flat(block), real, weights) for block in blocks(images)])


def _distance_to(x: np.ndarray, real: Images, weights: np.ndarray) -> np.ndarray:
    found, first = np.zeros(len(x)), 0
    for block in blocks(real):
        found += distances(x, flat(block)) @ weights[first : first + len(block)]
        first += len(block)
    return found


def spreads(images: Images, rows: Strata, indices: Sequence[np.ndarray]) -> list[float]:
    """E|x - x'| (`fewstep.energy.within`) of the rows of each index, which has as many of each stratum as there are, in any order.

    Where the distances between all images fit in memory they are made once; otherwise they are summed block by block, a pair of one row
    with itself being at distance 0.
    """
    n = len(images)
    if 8 * n * n <= HELD:
        x = flat(images[:])
        apart = distances(x, x)
        return [within(apart[np.ix_(index, index)], rows.at(index)) for index in indices]
    _, place, counts = np.unique(rows.labels, return_inverse=True, return_counts=True)
    times = np.stack([np.bincount(index, minlength=n) for index in indices]) * rows.weights
    found, size = np.zeros(len(indices)), block_size(images)
    for a in range(0, n, size):
        x, here = flat(images[a : a + size]), slice(a, a + size)
        for b in range(a, n, size):
            there = slice(b, b + size)
            apart = distances(x, x if a == b else flat(images[there]))
            if a == b:
                np.fill_diagonal(apart, 0)
            # Every pair counts, and one of a single stratum n / (n - 1) times: n - 1 others are as likely as n draws of it.
            apart *= 1 + (place[here][:, None] == place[there][None]) / (counts[place[here]] - 1)[:, None]
            found += (1 if a == b else 2) * ((times[:, here] @ apart) * times[:, there]).sum(axis=1)
    return found.tolist()


@register("metric", "energy_distance", "Szekely and Rizzo 2013")
@dataclass(frozen=True)
class EnergyDistance:
    """2 E|x - y| - E|x - x'| - E|y - y'| of flattened images, x samples and y the training split: of the distributions in which each
    class counts as much as in the split. Labels are taken as given, in turn or at random, and draws of one class as independent:
    then it is unbiased, so that exact samples score 0 in the mean and negative half of the time; copies of training images score less.

    `fine_grid` in the protocol is the same for the teacher's fine-grid solutions: on a closed form, what an exact student scores. The
    standard error is a bootstrap of the samples within classes: right far from 0, up to twice the real spread near it.
    **Raises**: Unavailable where a class has no sample, or one. **Source**: Szekely and Rizzo, J. Stat. Plan. Inference 143 (2013).
    """

    name: str = "energy_distance"
    version: int = 3
    unit: str = "pixel units of [-1, 1], root of the sum over pixels"
    higher_is_better: bool = False
    extractor: str | None = None
    needs_teacher: bool = True  # for `fine_grid`; rows without a teacher go without
    resamples: int = 20
    shown: ClassVar[Shown] = Shown(place=40, headline=True, error=True)
    streams: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> Measurement:
        real, labels = evidence.real_of(self.name), evidence.labels
        own, data = strata_of(labels, evidence.reference)
        whole = np.arange(len(labels))
        drawn = [] if single(labels) else [resample_index(labels, seed) for seed in range(self.resamples)]
        (spread,) = spreads(real, data, [np.arange(len(real))])

        def values(images: Images, indices: Sequence[np.ndarray]) -> list[float]:
            to_data = distances_to(images, real, data.weights)
            apart = spreads(images, own, indices)
            return [float(2 * own.weights[i] @ to_data[i]) - between - spread for i, between in zip(indices, apart)]

        value, *others = values(evidence.images, [whole, *drawn])
        fine = None if evidence.teacher_images is None else values(evidence.teacher_images, [whole])[0]
        found = iter(others)  # those of the same resamples, in the same order
        error, resampled = bootstrap(labels, self.resamples, lambda index: next(found))
        protocol = {
            "metric_version": self.version,
            "reference": evidence.reference.digest,
            "fine_grid": fine,
            "pairs": "within classes",
            "classes": len(np.unique(labels)),
            **resampled,
        }
        return Measurement(value, error, len(labels), protocol)
