"""Energy distance of pixels (`fewstep.energy`) to the training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fewstep.energy import Strata, as_rows, distances, spread, strata, to_data, within
from fewstep.errors import Unavailable, UsageError
from fewstep.plugins import register
from metrics.intervals import bootstrap
from metrics.metric import Evidence, Measurement, Shown
from metrics.reference import Reference


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

    def __call__(self, evidence: Evidence) -> Measurement:
        own, data = strata_of(evidence.labels, evidence.reference)
        real = evidence.reference.train_x
        own_spread = spread(real, data)

        def parts(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """The mean distance of each sample to the data [N], and the distances between samples [N, N]."""
            x = as_rows(images)
            return to_data(x, real, data.weights), distances(x, x)

        def value(far: np.ndarray, apart: np.ndarray, rows: Strata) -> float:
            return float(2 * rows.weights @ far) - within(apart, rows) - own_spread

        far, apart = parts(evidence.images)
        fine = None if evidence.teacher_images is None else value(*parts(evidence.teacher_images), own)
        error, resampled = bootstrap(evidence.labels, self.resamples, lambda i: value(far[i], apart[np.ix_(i, i)], own.at(i)))
        protocol = {
            "metric_version": self.version,
            "reference": evidence.reference.digest,
            "fine_grid": fine,
            "pairs": "within classes",
            "classes": len(np.unique(evidence.labels)),
            **resampled,
        }
        return Measurement(value(far, apart, own), error, len(far), protocol)
