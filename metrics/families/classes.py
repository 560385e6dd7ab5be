"""Is the sample of the class that was asked for, and how different are samples of one class?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fewstep.errors import UsageError
from fewstep.plugins import register
from metrics.intervals import mean_and_error
from metrics.metric import Evidence, Measurement, Shown
from metrics.streaming import blocks, finite, within_reach


@register("metric", "class_accuracy", "arXiv 1807.09499 (GAN-test: a classifier of real images on samples)")
@dataclass(frozen=True)
class ClassAccuracy:
    """Share of samples that the classifier puts into the class they were drawn for.

    **Units**: a share; the standard error is binomial in each class: sum_c n_c^2 p_c (1 - p_c) / (n_c - 1) under the root, over N. None
    where each class is all right or all wrong.
    """

    name: str = "class_accuracy"
    version: int = 2
    unit: str = "share"
    higher_is_better: bool = True
    extractor: str = "digits"
    needs_teacher: bool = False
    needs_labels: ClassVar[bool] = True
    shown: ClassVar[Shown] = Shown(place=50, role="condition")
    streams: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> Measurement:
        logits = evidence.logits_of(self.extractor)
        found = []
        for block in blocks(logits):
            if not np.isfinite(block).all():
                raise FloatingPointError("logits hold NaN or infinity: the images or the classifier's weights are broken")
            found.append(block.argmax(axis=1))
        share, error = mean_and_error((np.concatenate(found) == evidence.labels).astype(np.float64), evidence.labels)
        protocol = {
            "metric_version": self.version,
            **evidence.reference.spaces[self.extractor].named,
            "std_error": "binomial, within classes",
        }
        return Measurement(share, error, len(logits), protocol)


def mean_pair_distance(features: np.ndarray) -> tuple[float, float]:
    """Mean Euclidean distance of the n (n - 1) / 2 pairs of features [n, d], and its jackknife variance.

    With h_i the mean distance of sample i to the others, U = mean h; leaving i out gives (n U - 2 h_i) / (n - 2), so the jackknife
    variance is (n - 1) / n * 4 / (n - 2)^2 * sum (h_i - U)^2. **Raises**: UsageError below three samples.
    """
    n = len(features)
    if n < 3:
        raise UsageError(f"diversity needs at least 3 samples of each class, got {n}; draw more samples")
    f = features - features.mean(axis=0)
    # One row of differences at a time: the expanded square |a|^2 + |b|^2 - 2ab would leave rounding in place of exact zeros.
    h = np.array([np.sqrt(((f - row) ** 2).sum(axis=1)).sum() for row in f]) / (n - 1)
    mean = float(h.mean())
    return mean, float((n - 1) / n * 4 / (n - 2) ** 2 * ((h - mean) ** 2).sum())


@register("metric", "diversity_digits", "arXiv 1711.11586 (mean pairwise feature distance; ours in the digit classifier's features)")
@dataclass(frozen=True)
class Diversity:
    """Mean distance between the features of two distinct samples of one class, averaged over the classes present.

    Falls when guidance or distillation narrows a class; more is not better without quality: real images have a finite value.
    **Units**: feature units. The standard error is a jackknife over the samples of each class (classes are fixed, not drawn).
    """

    name: str = "diversity_digits"
    version: int = 2
    unit: str = "feature units"
    higher_is_better: bool = True
    extractor: str = "digits"
    needs_teacher: bool = False
    needs_labels: ClassVar[bool] = True
    shown: ClassVar[Shown] = Shown(place=60)
    streams: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> Measurement:
        features = within_reach(evidence.features_of(self.extractor))
        for block in blocks(features):
            finite(block)
        present = np.unique(evidence.labels)
        means, variances = np.array([mean_pair_distance(features[np.flatnonzero(evidence.labels == c)]) for c in present]).T
        protocol = {
            "metric_version": self.version,
            **evidence.reference.spaces[self.extractor].named,
            "classes": len(present),
            "std_error": "jackknife within classes",
        }
        error = float(np.sqrt(variances.sum()) / len(present)) or None  # samples of a class that are all the same leave exact zeros
        return Measurement(float(means.mean()), error, len(features), protocol)
