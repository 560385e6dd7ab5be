"""Gaussian fits to features, and the Frechet distance between two of them, by symmetric eigen-decomposition in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewstep.data.arrays import Images
from fewstep.errors import UsageError
from metrics.streaming import blocks, finite, flat


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
        f = finite(features).astype(np.float64)
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


def moments_of(rows: Images, index: np.ndarray | None = None) -> Moments:
    """Moments of rows (images are flattened), or of those of `index`, which may repeat some; merged block by block for rows not in memory.

    **Shapes**: rows [N, ...], index [n]. **Raises**: as `Moments.of`.
    """
    if isinstance(rows, np.ndarray) and not isinstance(rows, np.memmap):
        return Moments.of(flat(rows if index is None else rows[index]))
    times = np.ones(len(rows), np.int64) if index is None else np.bincount(index, minlength=len(rows))
    found, first = None, 0
    for block in blocks(rows):
        drawn = flat(block) if index is None else flat(block).repeat(times[first : first + len(block)], axis=0)
        first += len(block)
        if len(drawn):
            own = Moments.of(drawn)
            found = own if found is None else found.merge(own)
    if found is None:
        raise UsageError(f"moments need features [N, d] with N >= 1, got shape {list(rows.shape)}")
    return found


def _same_space(a: Moments, b: Moments) -> None:
    if a.mean.shape != b.mean.shape:
        raise UsageError(f"moments of {len(a.mean)} and of {len(b.mean)} features cannot meet; use one extractor for both")


@dataclass(frozen=True, eq=False)
class Distance:
    """The Frechet distance to one fixed reference, whose square root is computed once: `root` R with R R' = S_r.

    The eigenvalues of R' S R are those of S_r S, so that d = |m - m_r|^2 + tr S + tr S_r - 2 sum sqrt(eig(R' S R)); rounding below zero
    is clipped. **Units**: squared feature units. **Raises**: FloatingPointError when the result is not finite.
    **Source**: arXiv 1706.08500 equation 6; no matrix square root, so rank-deficient covariances need no offset.
    """

    reference: Moments
    root: np.ndarray

    def __call__(self, other: Moments) -> float:
        inner, apart = self._parts(other)
        overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(inner), 0)).sum()
        return max(float(apart - 2 * overlap), 0.0)

    def _parts(self, other: Moments) -> tuple[np.ndarray, float]:
        """R' S R, and what is left of the distance without the overlap."""
        _same_space(self.reference, other)
        cov, gap = other.cov, other.mean - self.reference.mean
        with np.errstate(over="ignore", invalid="ignore"):
            inner = self.root.T @ cov @ self.root
            apart = gap @ gap + np.trace(cov) + np.trace(self.reference.cov)
        if not (np.isfinite(inner).all() and np.isfinite(apart)):
            raise FloatingPointError("the Frechet distance is not finite: the features overflow float64")
        return (inner + inner.T) / 2, float(apart)

    def influences(self, rows: Images) -> tuple[float, np.ndarray]:
        """The distance of features [N, d], and how much each of them moves it, to first order: values [N] of mean 0.

        A sample of the weight (1 + e_i) / N moves the distance by e_i / N times its value. With M = R' S R and c = f - m:
        2 (m - m_r)'c + |c|^2 - c' R M^(-1/2) R' c, less the mean; directions in which the samples do not vary have no part.
        """
        own = moments_of(rows)
        inner, apart = self._parts(own)
        values, vectors = np.linalg.eigh(inner)
        values = np.maximum(values, 0)
        varies = values > len(values) * np.finfo(np.float64).eps * values[-1]
        gap = own.mean - self.reference.mean
        scaled = (self.root @ vectors[:, varies]) / values[varies] ** 0.25
        found = []
        for block in blocks(rows):
            c = flat(block) - own.mean
            found.append(2 * c @ gap + (c**2).sum(axis=1) - ((c @ scaled) ** 2).sum(axis=1))
        each = np.concatenate(found)
        return max(float(apart - 2 * np.sqrt(values).sum()), 0.0), each - each.mean()


def distance_to(reference: Moments) -> Distance:
    """The distance to one fixed reference: with S_r = V W V', R = V W^(1/2)."""
    values, vectors = np.linalg.eigh(reference.cov)
    return Distance(reference, vectors * np.sqrt(np.maximum(values, 0)))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared 2-Wasserstein distance of the Gaussians fitted to two sets: see `distance_to`."""
    return distance_to(a)(b)


def exact_moments(mean: np.ndarray, cov: np.ndarray) -> Moments:
    """A known mean [d] and covariance [d, d] as `Moments`: of "two samples", whose scatter is their covariance.

    **Raises**: UsageError for shapes that do not belong together or a covariance that is not symmetric.
    """
    d = len(mean)
    if mean.shape != (d,) or cov.shape != (d, d) or not np.allclose(cov, cov.T):
        raise UsageError(f"exact moments are a mean [d] and a symmetric covariance [d, d], got {list(mean.shape)} and {list(cov.shape)}")
    return Moments(2, mean.astype(np.float64), cov.astype(np.float64))
