"""Do samples copy the training images? Nearest real neighbours, training against held-out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fewstep.data.arrays import Images
from fewstep.errors import Unavailable
from fewstep.plugins import register
from metrics.families.neighbours import squared
from metrics.intervals import mean_and_error
from metrics.metric import Evidence, Measurement, Shown
from metrics.pixels import to_uint8
from metrics.streaming import block_size, blocks, finite, flat


def nearest(samples: Images, real: Images, chunk: int = 1024) -> np.ndarray:
    """Least squared pixel distance of each sample to any real image, in squared 8-bit levels: exact integers in float64.

    **Shapes**: samples [N, C, H, W], real [M, C, H, W], both as `quantise` leaves them -> [N].
    """
    return np.concatenate([_nearest(flat(to_uint8(block)), real, chunk) for block in blocks(samples)])


def _nearest(a: np.ndarray, real: Images, chunk: int) -> np.ndarray:
    best, own = np.full(len(a), np.inf), (a**2).sum(axis=1)[:, None]
    for block in blocks(real, chunk):
        b = flat(to_uint8(block))
        # Products of levels stay below 2^53, so |a|^2 + |b|^2 - 2ab has no rounding and equal images are at distance 0.
        squared = own + (b**2).sum(axis=1)[None] - 2 * a @ b.T
        best = np.minimum(best, squared.min(axis=1))
    return best


@register("metric", "nn_train_share", "arXiv 2004.05675 (the idea: train against held-out distances)")
@dataclass(frozen=True)
class NearestTrainShare:
    """How much more often a training image than a held-out image is a sample's nearest real neighbour (pixel L2), corrected for size.

    With s the share of samples nearer to the training split and p = N_train / (N_train + N_heldout) its value for fresh draws (the
    splits are exchangeable then), the metric weighs wins by split size: s (1 - p) / (s (1 - p) + (1 - s) p). 0.5: no copying;
    1: every sample is nearest to a training image; ties count p. **Units**: a share; standard error by the delta method, within classes.
    **Source**: the data-copying idea of arXiv 2004.05675 (train against test distances) with a size correction of our own.
    """

    name: str = "nn_train_share"
    version: int = 2
    unit: str = "share"
    higher_is_better: bool = False
    extractor: str | None = None
    needs_teacher: bool = False
    shown: ClassVar[Shown] = Shown(place=70)
    streams: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> Measurement:
        real = evidence.reference
        if len(real.heldout_x) == 0 or len(real.train_x) == 0:
            raise Unavailable(f"{self.name} needs training and held-out images, and data set {real.name} lacks one of them")
        train, heldout = nearest(evidence.images, real.train_x), nearest(evidence.images, real.heldout_x)
        sizes = len(real.train_x), len(real.heldout_x)
        return nearest_share(train, heldout, sizes, evidence.labels, {"metric_version": self.version, "reference": real.digest})


def nearest_share(
    train: np.ndarray, heldout: np.ndarray, sizes: tuple[int, int], labels: np.ndarray, protocol: dict[str, object]
) -> Measurement:
    """The share of `NearestTrainShare` from each sample's distance to the nearest training and held-out image [N], and their numbers."""
    chance = sizes[0] / sum(sizes)
    wins = np.where(train == heldout, chance, np.where(train < heldout, 1.0, 0.0))
    share, error = mean_and_error(wins, labels)
    weight = share * (1 - chance) + (1 - share) * chance
    slope = chance * (1 - chance) / weight**2
    told = {"raw_share": share, "chance": chance, "ties": int((train == heldout).sum()), "std_error": "delta method, within classes"}
    return Measurement(share * (1 - chance) / weight, None if error is None else slope * error, len(wins), {**protocol, **told})


def nearest_features(samples: Images, real: Images) -> np.ndarray:
    """Least squared distance of each row of features [N, d] to any of [M, d]: [N], float64."""
    size = block_size(real)
    best = [
        np.min([squared(flat(x), flat(real[b : b + size])).min(axis=1) for b in range(0, len(real), size)], axis=0) for x in blocks(samples)
    ]
    return np.concatenate(best)


@register("metric", "nn_train_share_inception", "arXiv 2004.05675 (the idea; in Inception features)")
@dataclass(frozen=True)
class NearestTrainShareInFeatures:
    """`nn_train_share` with distances between Inception features in place of pixels: copies that were shifted, mirrored or blurred count.

    **Units**: a share, 0.5 without copying. **Source**: as `nn_train_share`. **Raises**: Unavailable without features of both splits.
    """

    name: str = "nn_train_share_inception"
    version: int = 1
    unit: str = "share"
    higher_is_better: bool = False
    extractor: str = "inception"
    needs_teacher: bool = False
    shown: ClassVar[Shown] = Shown(place=96)
    streams: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> Measurement:
        features, space = evidence.features_of(self.extractor), evidence.reference.spaces[self.extractor]
        train, heldout = space.features(self.name), space.features(self.name, "heldout")
        near, far = (nearest_features(features, real) for real in (train, heldout))
        finite(near), finite(far)
        protocol: dict[str, object] = {"metric_version": self.version, **space.named, "reference": evidence.reference.digest}
        return nearest_share(near, far, (len(train), len(heldout)), evidence.labels, protocol)
