"""The real images that samples are measured against, their moments in each feature space."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from metrics.intervals import resample_index
from metrics.moments import Moments, exact_moments
from metrics.pixels import quantise, to_uint8

if TYPE_CHECKING:
    from fewstep.data.images import ImageData
    from metrics.extractors import Extractor

# Images whose features are held at once: 2,048 Inception features of 1,024 images are 16 MiB.
CHUNK = 1024


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """Moments of the training split in the features of one extractor, and which extractor that was."""

    extractor: str
    version: int
    digest: str
    moments: Moments

    @property
    def identity(self) -> str:
        """`name-version-sha256[:16]`, as rows state it."""
        return f"{self.extractor}-{self.version}-{self.digest[:16]}"


@dataclass(frozen=True, eq=False)
class Reference:
    """A data set as metrics see it: both splits after `quantise`, a digest of them, and the training split's feature spaces.

    `moments` are the exact ones of the unquantised data, where the data set is an analytic arena.

    **Shapes**: train_x, heldout_x [N, C, H, W] float32 in [-1, 1]; train_y, heldout_y [N] int64.
    """

    name: str
    classes: int
    train_x: np.ndarray
    train_y: np.ndarray
    heldout_x: np.ndarray
    heldout_y: np.ndarray
    digest: str
    spaces: Mapping[str, FeatureSpace]
    moments: Moments | None = None


def feature_space(extractor: Extractor, images: np.ndarray) -> FeatureSpace:
    """Moments of images [N, C, H, W] (already quantised) in an extractor's features, merged chunk by chunk."""
    moments = Moments.of(extractor(images[:CHUNK])[0])
    for start in range(CHUNK, len(images), CHUNK):
        moments = moments.merge(Moments.of(extractor(images[start : start + CHUNK])[0]))
    return FeatureSpace(extractor.name, extractor.version, extractor.digest, moments)


def build_reference(data: ImageData, extractors: Iterable[Extractor], moments: tuple[np.ndarray, np.ndarray] | None = None) -> Reference:
    """The reference of a data set for these extractors. The digest covers pixels (as written) and labels of both splits.

    `moments` are the exact mean [d] and covariance [d, d] of the data's flattened pixels, where they are known; the digest covers them.
    """
    train, heldout = quantise(data.train_x), quantise(data.heldout_x)
    digest = hashlib.sha256()
    for x, y in ((train, data.train_y), (heldout, data.heldout_y)):
        digest.update(repr(x.shape).encode() + to_uint8(x).tobytes() + y.astype("<i8").tobytes())
    exact = None if moments is None else exact_moments(*moments)
    if exact is not None:  # twelve digits: sums may round their last bits differently elsewhere
        digest.update(",".join(f"{v:.12g}" for v in (*exact.mean, *exact.cov.ravel())).encode())
    spaces = {e.name: feature_space(e, train) for e in extractors}
    return Reference(data.name, data.classes, train, data.train_y, heldout, data.heldout_y, digest.hexdigest(), spaces, exact)


def real_resample(images: np.ndarray, labels: np.ndarray, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A class-balanced set of real images, `per_class` of each drawn with replacement, ordered by class; pinned by `seed`."""
    index = resample_index(labels, seed, per_class)
    return images[index], labels[index]
