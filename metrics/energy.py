"""Energy distance of pixels (`fewstep.energy`) to the training images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewstep.energy import distances, energy, energy_distance
from metrics.metric import Evidence, Measurement
from metrics.resample import bootstrap


@dataclass(frozen=True)
class EnergyDistance:
    """2 E|x - y| - E|x - x'| - E|y - y'| of flattened images, x samples and y the training split; unbiased, so 0 means the same
    distribution and noise around 0 is negative half of the time.

    `fine_grid` in the protocol is the same for the teacher's fine-grid solutions: on a closed form, what an exact student scores. The
    standard error is a bootstrap of the samples within classes. **Source**: Szekely and Rizzo, J. Stat. Plan. Inference 143 (2013).
    """

    name: str = "energy_distance"
    version: int = 2
    unit: str = "pixel units of [-1, 1], root of the sum over pixels"
    higher_is_better: bool = False
    paper: str = "Szekely and Rizzo 2013"
    extractor: str | None = None
    needs_teacher: bool = True  # for `fine_grid`; rows without a teacher go without
    resamples: int = 20

    def __call__(self, evidence: Evidence) -> Measurement:
        x, y = (images.reshape(len(images), -1).astype(np.float64) for images in (evidence.images, evidence.reference.train_x))
        across, own, data = distances(x, y), distances(x, x), distances(y, y)

        def of(index: np.ndarray) -> float:
            return energy(across[index], own[np.ix_(index, index)], data)

        error, resampled = bootstrap(evidence.labels, self.resamples, of)
        fine = evidence.teacher_images
        protocol = {
            "metric_version": self.version,
            "reference": evidence.reference.digest,
            "fine_grid": None if fine is None else energy_distance(fine, y),
            **resampled,
        }
        return Measurement(energy(across, own, data), error, len(x), protocol)


ENERGY_DISTANCE = EnergyDistance()
