"""The Frechet distance of the samples' features to the data's, and the floor that real images reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fewstep.data.arrays import Images
from fewstep.plugins import register
from metrics.features.extractors import Extractor
from metrics.intervals import bootstrap, mean_and_error, resample_index
from metrics.metric import Evidence, Measurement, Shown, measured_in
from metrics.moments import moments_of
from metrics.reference import Reference, features_of
from metrics.streaming import within_reach

# Beyond so many features the distances of resamples are taken to first order: of 2,048 each would take seconds, and resamples of about as
# many samples, which repeat a third of them, lie far off.
EXACT = 512
ASIDE = Shown(place=110, error=True)


@register(
    "metric",
    "fd_digits",
    "arXiv 1706.08500 (the distance; features of the recorded digit classifier)",
    extractor="digits",
    shown=Shown(place=10, headline=True, error=True, judges=2),
)
@register(
    "metric",
    "fid",
    "arXiv 1706.08500 (Inception features after the resizing of TensorFlow's graph)",
    extractor="inception",
    shown=Shown(place=90, headline=True, error=True, judges=3, published="FID"),
)
@register(
    "metric",
    "fd_efficientnet",
    "arXiv 1706.08500 (the distance; features of EfficientNet-Lite0, arXiv 1905.11946)",
    extractor="efficientnet_lite0",
    shown=Shown(place=95, headline=True, error=True, judges=1),
)
@register("metric", "fid_clean", "arXiv 2104.11222 (clean)", extractor="inception_clean", shown=ASIDE, on_request=True)
@register("metric", "fid_legacy_tensorflow", "arXiv 2104.11222 (legacy_tensorflow)", extractor="inception", shown=ASIDE, on_request=True)
@register("metric", "fid_legacy_pytorch", "arXiv 2104.11222", extractor="inception_legacy_pytorch", shown=ASIDE, on_request=True)
@dataclass(frozen=True)
class Frechet:
    """Frechet distance of the samples' features to the training split's.

    The standard error is the spread over 20 bootstrap resamples of the samples, drawn inside each class with pinned seeds 0..19 (so
    it is itself known to about 16%), of more than 512 features to first order (`Distance.influences`); it does not include the choice
    of the training split or of the classifier.
    The value is biased upwards by about 1/N: compare at equal N, and with the floor. `rank_deficient` is true in the protocol when
    the samples or the reference have no more images than features, so that a covariance is singular.
    """

    name: str
    extractor: str
    shown: Shown
    version: int = 3
    unit: str = "squared feature units"
    higher_is_better: bool = False
    needs_teacher: bool = False
    resamples: int = 20
    on_request: bool = False
    streams: ClassVar[bool] = True
    by_moments: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> Measurement:
        features = within_reach(evidence.features_of(self.extractor))
        distance = evidence.reference.spaces[self.extractor].distance
        samples, dimensions = features.shape
        if dimensions > EXACT:
            value, each = distance.influences(features)
            error, resampled = bootstrap(evidence.labels, self.resamples, lambda index: value + float(each[index].mean()))
            resampled["std_error"] = f"{resampled['std_error']}, to first order"
        else:
            value = distance(moments_of(features))
            error, resampled = bootstrap(evidence.labels, self.resamples, lambda index: distance(moments_of(features, index)))
        return Measurement(value, error, samples, {**of_moments(evidence, self.extractor, self.version, samples), **resampled})


def of_moments(evidence: Evidence, extractor: str, version: int, samples: int) -> dict[str, object]:
    """What the protocol of a distance of moments says: `measured_in`, where published statistics are from, and `rank_deficient`."""
    space = evidence.reference.spaces[extractor]
    found = measured_in(evidence, extractor, version, space.count)
    published = {"statistics": space.statistics} if space.statistics else {}
    dimensions = evidence.features_of(extractor).shape[1]
    deficient = min(samples, space.count or samples) <= dimensions
    return {**found, **published, "dimensions": dimensions, "rank_deficient": deficient}


def floor(
    reference: Reference,
    extractor: Extractor,
    per_class: int = 200,
    repeats: int = 20,
    seed: int = 0,
    features: Images | None = None,
) -> Measurement:
    """The Frechet distance that real images reach: mean over class-balanced resamples (seeds seed, seed + 1, ...) of the training split.

    What a perfect sampler of the training distribution would score at this sample count. `std_error` is that of the mean over
    resamples; `std` in the protocol is the spread of a single one, which a single cell is to be compared with. `features` are the
    extractor's [N, d] of the training split, where they are known.
    """
    features = np.concatenate([*features_of(extractor, reference.train_x)]) if features is None else within_reach(features)
    space = reference.spaces[extractor.name]
    distance = space.distance
    index = [resample_index(reference.train_y, seed + k, per_class) for k in range(repeats)]
    values = np.array([distance(moments_of(features, i)) for i in index])
    value, error = mean_and_error(values)
    protocol = {
        "metric_version": 1,
        **space.named,
        "reference": reference.digest,
        "repeats": repeats,
        "per_class": per_class,
        "seed": seed,
        "std": float(values.std(ddof=1)),
        "std_error": f"of the mean over {repeats} resamples",
    }
    return Measurement(value, error, len(index[0]), protocol)
