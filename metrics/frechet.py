"""Frechet distance between Gaussians fitted to features, by symmetric eigen-decomposition in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fewstep.errors import UsageError
from metrics.intervals import bootstrap
from metrics.metric import Evidence, Measurement


@dataclass(frozen=True, eq=False)
class Moments:
    """Sufficient statistics of a Gaussian fit: count, mean [d] and scatter [d, d] = sum (f - mean)(f - mean)', all float64."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @staticmethod
    def of(features: np.ndarray) -> Moments:
        """Moments of features [N, d]. **Raises**: UsageError for another shape, FloatingPointError for NaN or infinity."""
        if features.ndim != 2 or len(features) == 0:
            raise UsageError(f"moments need features [N, d] with N >= 1, got shape {list(features.shape)}")
        if not np.isfinite(features).all():
            raise FloatingPointError("features hold NaN or infinity: the images or the extractor's weights are broken")
        f = features.astype(np.float64)
        mean = f.mean(axis=0)
        with np.errstate(over="ignore", invalid="ignore"):
            scatter = (f - mean).T @ (f - mean)
        if not np.isfinite(scatter).all():
            raise FloatingPointError("the covariance of the features overflows float64: the extractor's weights are broken")
        return Moments(len(f), mean, scatter)

    @property
    def cov(self) -> np.ndarray:
        """Unbiased covariance, scatter / (N - 1). **Raises**: UsageError below two samples."""
        if self.count < 2:
            raise UsageError(f"a covariance needs at least 2 samples, got {self.count}")
        return self.scatter / (self.count - 1)

    def merge(self, other: Moments) -> Moments:
        """Moments of the union: associative and commutative up to rounding. **Source**: Chan, Golub, LeVeque (1983), equation 2.1."""
        _same_space(self, other)
        n = self.count + other.count
        gap = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(gap, gap) * (self.count * other.count / n)
        return Moments(n, self.mean + gap * (other.count / n), scatter)


def _same_space(a: Moments, b: Moments) -> None:
    if a.mean.shape != b.mean.shape:
        raise UsageError(f"moments of {len(a.mean)} and of {len(b.mean)} features cannot meet; use one extractor for both")


def distance_to(reference: Moments) -> Callable[[Moments], float]:
    """The distance to one fixed reference, whose square root is computed once.

    With S_r = V W V' and R = V W^(1/2), the eigenvalues of R' S R are those of S_r S, so that
    d = |m - m_r|^2 + tr S + tr S_r - 2 sum sqrt(eig(R' S R)); rounding below zero is clipped.
    **Units**: squared feature units. **Raises**: FloatingPointError when the result is not finite.
    **Source**: arXiv 1706.08500 equation 6; no matrix square root, so rank-deficient covariances need no offset.
    """
    values, vectors = np.linalg.eigh(reference.cov)
    root = vectors * np.sqrt(np.maximum(values, 0))

    def distance(other: Moments) -> float:
        _same_space(reference, other)
        cov, gap = other.cov, other.mean - reference.mean
        with np.errstate(over="ignore", invalid="ignore"):
            inner = root.T @ cov @ root
            apart = gap @ gap + np.trace(cov) + np.trace(reference.cov)
        if not (np.isfinite(inner).all() and np.isfinite(apart)):
            raise FloatingPointError("the Frechet distance is not finite: the features overflow float64")
        overlap = np.sqrt(np.maximum(np.linalg.eigvalsh((inner + inner.T) / 2), 0)).sum()
        return max(float(apart - 2 * overlap), 0.0)

    return distance


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared 2-Wasserstein distance of the Gaussians fitted to two sets: see `distance_to`."""
    return distance_to(a)(b)


@dataclass(frozen=True)
class Frechet:
    """Frechet distance of the samples' features to the training split's.

    The standard error is the spread over 20 bootstrap resamples of the samples, drawn inside each class with pinned seeds 0..19 (so
    it is itself known to about 16%); it does not include the choice of the training split or of the classifier.
    The value is biased upwards by about 1/N: compare at equal N, and with the floor. `rank_deficient` is true in the protocol when
    the samples or the reference have no more images than features, so that a covariance is singular.
    """

    name: str
    extractor: str
    paper: str
    version: int = 3
    unit: str = "squared feature units"
    higher_is_better: bool = False
    needs_teacher: bool = False
    resamples: int = 20

    def __call__(self, evidence: Evidence) -> Measurement:
        features = evidence.features_of(self.extractor)
        space = evidence.reference.spaces[self.extractor]
        distance = distance_to(space.moments)
        error, resampled = bootstrap(evidence.labels, self.resamples, lambda index: distance(Moments.of(features[index])))
        samples, dimensions = features.shape
        protocol = {
            "metric_version": self.version,
            "features": space.identity,
            "reference": evidence.reference.digest,
            "reference_count": space.moments.count,
            "dimensions": dimensions,
            "rank_deficient": min(samples, space.moments.count) <= dimensions,
            **resampled,
        }
        return Measurement(distance(Moments.of(features)), error, samples, protocol)


FD_DIGITS = Frechet("fd_digits", "digits", "arXiv 1706.08500 (the distance; features of the recorded digit classifier)")
FID = Frechet("fid", "inception", "arXiv 1706.08500 (Inception features of torch-fidelity)")
