"""Measurements against ground truth, on raw (unquantised) samples: the end point of the flow, and the data's exact moments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fewstep.errors import Unavailable
from fewstep.plugins import register
from metrics.intervals import bootstrap, mean_and_error
from metrics.metric import Evidence, Measurement, Shown
from metrics.moments import distance_to, moments_of
from metrics.streaming import blocks, within_reach


def rms(values: np.ndarray) -> float:
    """Root of the mean square over all elements, in float64."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def _finite(what: str, values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise FloatingPointError(f"{what} hold NaN or infinity: the sampler diverged")
    return values.astype(np.float64)


@register("metric", "endpoint_error", "arXiv 2211.01095 (the idea: l2 distance to the solution of many steps)")
@dataclass(frozen=True)
class EndpointError:
    """RMS difference, over all elements of all samples, between raw samples and the fine-grid solution from the same noise and class.

    Data units, not relative: comparable with sigma_min and with the spread of the data. A solver of order p falls as NFE^-p until it
    meets the solution's own error (`reference_error`, or the rounding of the samples' dtype); at or below that the metric is that
    error, without a standard error, and `saturated`. `median` is that of the samples' own RMS: a few samples that end in another mode
    rule the value, not the median. The standard error is by the delta method, within classes.
    **Units**: those of the data, images in [-1, 1].
    """

    name: str = "endpoint_error"
    version: int = 2
    unit: str = "data units (RMS)"
    higher_is_better: bool = False
    extractor: str | None = None
    needs_teacher: bool = True
    shown: ClassVar[Shown] = Shown(place=20, headline=True, error=True, role="flow")
    streams: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> Measurement:
        raw, exact = evidence.raw_of(self.name), evidence.raw_teacher_of(self.name)
        found, total = [], 0.0
        for ours, theirs in zip(blocks(raw), blocks(exact)):
            end = _finite("fine-grid solutions", theirs)
            found.append(((_finite("raw samples", ours) - end) ** 2).reshape(len(ours), -1).mean(axis=1))
            total += float(np.square(end).sum())
        squares, size = np.concatenate(found), float(np.sqrt(total / np.prod(exact.shape, dtype=np.int64)))
        mean, error = mean_and_error(squares, evidence.labels)
        value, own = float(np.sqrt(mean)), evidence.raw_teacher_error
        rounding = float(np.finfo(np.result_type(raw[:1].dtype, np.float32)).eps) * size
        floor = max(own or 0.0, rounding)
        saturated = value <= floor
        protocol = {
            "metric_version": self.version,
            "over": "set",
            "reference_error": own,
            "rounding": rounding,
            "saturated": saturated,
            "median": float(np.sqrt(np.median(squares))),
            "std_error": "delta method, within classes",
        }
        known = None if saturated or error is None else error / (2 * value)
        return Measurement(max(value, floor), known, len(raw), protocol)


@register("metric", "fd_moments", "arXiv 1706.08500 (the distance; between Gaussians of exact and sample moments)")
@dataclass(frozen=True)
class MomentsDistance:
    """Frechet distance between the moments of raw samples (flattened pixels) and the exact mean and covariance of the data.

    The reference has no sampling error, but the samples have: N exact ones score above 0, by about 1 / N. Read it against `fine_grid`
    in the protocol, the same distance for the fine-grid solutions from the same noise and classes. No learned features: this is no FID.
    The standard error is a bootstrap within classes, as for the other Frechet distances. **Raises**: Unavailable without exact moments.
    """

    name: str = "fd_moments"
    version: int = 3
    unit: str = "squared data units"
    higher_is_better: bool = False
    extractor: str | None = None
    needs_teacher: bool = True  # for `fine_grid`; rows without a teacher go without
    resamples: int = 20
    shown: ClassVar[Shown] = Shown(place=30, headline=True, error=True, judges=1, role="moments")
    streams: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> Measurement:
        exact = evidence.reference.moments
        if exact is None:
            raise Unavailable(f"{self.name} needs the exact moments of the data, and data set {evidence.reference.name} has none")
        raw, fine = within_reach(evidence.raw_of(self.name)), evidence.raw_teacher
        for block in blocks(raw):
            _finite("raw samples", block)
        dimensions = int(np.prod(raw.shape[1:]))
        distance = distance_to(exact)
        error, resampled = bootstrap(evidence.labels, self.resamples, lambda index: distance(moments_of(raw, index)))
        protocol = {
            "metric_version": self.version,
            "reference": evidence.reference.digest,
            "fine_grid": None if fine is None else distance(moments_of(within_reach(fine))),
            "dimensions": dimensions,
            "rank_deficient": len(raw) <= dimensions,
            **resampled,
        }
        return Measurement(distance(moments_of(raw)), error, len(raw), protocol)
