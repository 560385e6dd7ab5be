"""The real images that samples are measured against, their moments in each feature space."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fewstep.data.arrays import Images, parts
from fewstep.errors import Unavailable, UsageError
from metrics.features.extractors import Extractor, file_of, looking
from metrics.moments import Distance, Moments, distance_to, exact_moments
from metrics.pixels import Seen, quantise, to_uint8

if TYPE_CHECKING:
    from fewstep.data.images import ImageData

# Images whose features are held at once: 2,048 Inception features of 1,024 images are 16 MiB.
CHUNK = 1024
FEW = 100  # images that are read at once for a digest


SPLITS = ("train", "heldout")


class Facts(Protocol):
    """What is computed of the training split's features once, whoever asks for it: numbers, and arrays, under names that say all that
    they depend on."""

    def number(self, name: str, compute: Callable[[], float]) -> float: ...
    def array(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray: ...


@dataclass(frozen=True)
class Computed:
    """Facts that are kept nowhere."""

    def number(self, name: str, compute: Callable[[], float]) -> float:
        return compute()

    def array(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        return compute()


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """Moments of the training split in the features of one extractor, and which extractor that was.

    `rows` give the features [N, d] of a split when they are asked for; published statistics have none, and `statistics` says which they
    are. `facts` are what is computed of the training split once. `counted`: the number of images is known. `file`: that of the extractor's
    weights, where they are published in several.
    """

    extractor: str
    version: int
    digest: str
    moments: Moments
    rows: Mapping[str, Callable[[], Images]] = field(default_factory=dict)
    facts: Facts = Computed()
    statistics: str = ""
    counted: bool = True
    file: str = ""

    @property
    def identity(self) -> str:
        """`name-version-sha256[:16]`, as rows state it."""
        return f"{self.extractor}-{self.version}-{self.digest[:16]}"

    @property
    def named(self) -> dict[str, str]:
        """What a protocol says of whose features these are: `identity`, and where the weights were read."""
        return {"features": self.identity, **({"features_file": self.file} if self.file else {})}

    @property
    def count(self) -> int | None:
        """How many images the moments are of, where that is known."""
        return self.moments.count if self.counted else None

    @cached_property
    def distance(self) -> Distance:
        """The Frechet distance to these moments, whose root is taken once."""
        return distance_to(self.moments)

    def features(self, metric: str, split: str = "train") -> Images:
        """The features of a split's images. **Raises**: Unavailable where there are only statistics, or no such images."""
        if split not in self.rows:
            what = f"only statistics ({self.statistics})" if self.statistics else f"no features of its {split} images"
            raise Unavailable(f"{metric} compares with each real image, and there are {what}; give the images with reference=")
        return self._read(split)

    @cached_property
    def _kept(self) -> dict[str, Images]:
        return {}

    def _read(self, split: str) -> Images:
        if split not in self._kept:
            self._kept[split] = self.rows[split]()
        return self._kept[split]


class Spaces(Mapping[str, FeatureSpace]):
    """Feature spaces by extractor name, each made when it is first read: what extractors see there is known without any network."""

    def __init__(self, makers: Mapping[str, Callable[[], FeatureSpace]]) -> None:
        self._makers, self._made = dict(makers), dict[str, FeatureSpace]()

    def __getitem__(self, name: str) -> FeatureSpace:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


@dataclass(frozen=True, eq=False)
class Reference:
    """A data set as metrics see it: both splits after `quantise`, a digest of them, and the training split's feature spaces.

    `moments` are the exact ones of the unquantised data, where the data set is an analytic arena. Images are read when they are indexed.

    **Shapes**: train_x, heldout_x [N, C, H, W] float32 in [-1, 1]; train_y, heldout_y [N] int64.
    """

    name: str
    classes: int
    train_x: Images
    train_y: np.ndarray
    heldout_x: Images
    heldout_y: np.ndarray
    digest: str
    spaces: Mapping[str, FeatureSpace]
    moments: Moments | None = None


def features_of(extractor: Extractor, images: Images) -> Iterator[np.ndarray]:
    """An extractor's features of images [N, C, H, W] (already quantised), `CHUNK` at a time."""
    look = looking(extractor)
    for part in parts(images, CHUNK):
        yield look(part)[0]


def merged(features: Iterable[np.ndarray]) -> Moments:
    """The moments of features that come in parts. **Raises**: UsageError where there are none."""
    found = None
    for part in features:
        own = Moments.of(part)
        found = own if found is None else found.merge(own)
    if found is None:
        raise UsageError("moments need at least one image; give a data set that has some")
    return found


def feature_space(extractor: Extractor, images: Images, heldout: Images | None = None) -> FeatureSpace:
    """Moments of images [N, C, H, W] (already quantised) in an extractor's features, merged chunk by chunk; features when asked for."""

    def rows(split: Images) -> Callable[[], Images]:
        return lambda: np.concatenate([*features_of(extractor, split)])

    found = {"train": rows(images)} | ({} if heldout is None or len(heldout) == 0 else {"heldout": rows(heldout)})
    return FeatureSpace(
        extractor.name, extractor.version, extractor.digest, merged(features_of(extractor, images)), found, file=file_of(extractor)
    )


def reference_digest(data: ImageData, exact: Moments | None) -> str:
    """SHA-256 of the pixels (as written) and labels of both splits, and of the exact moments where they are known."""
    digest = hashlib.sha256()
    for x, y in ((data.train_x, data.train_y), (data.heldout_x, data.heldout_y)):
        digest.update(repr(x.shape).encode())
        for part in parts(x, FEW):
            digest.update(to_uint8(part).tobytes())
        digest.update(y.astype("<i8").tobytes())
    if exact is not None:
        digest.update(_in_words(exact))
    return digest.hexdigest()


def _in_words(exact: Moments) -> bytes:
    """Twelve digits: sums may round their last bits differently elsewhere."""
    return ",".join(f"{v:.12g}" for v in (*exact.mean, *exact.cov.ravel())).encode()


def described(data: ImageData, moments: tuple[np.ndarray, np.ndarray] | None = None) -> Reference:
    """The reference of a data set without feature spaces. Its digest is kept with the data, where something is.

    `moments` are the exact mean [d] and covariance [d, d] of the data's flattened pixels, where they are known; the digest covers them.
    """
    exact = None if moments is None else exact_moments(*moments)
    name = "reference" if exact is None else f"reference {hashlib.sha256(_in_words(exact)).hexdigest()[:16]}"
    digest = data.fact(name, lambda: reference_digest(data, exact))
    train, heldout = Seen(data.train_x, quantise), Seen(data.heldout_x, quantise)
    return Reference(data.name, data.classes, train, data.train_y, heldout, data.heldout_y, digest, {}, exact)


def build_reference(data: ImageData, extractors: Iterable[Extractor], moments: tuple[np.ndarray, np.ndarray] | None = None) -> Reference:
    """The reference of a data set for these extractors, computed here and kept nowhere (see `described`)."""
    found = described(data, moments)
    return replace(found, spaces={e.name: feature_space(e, found.train_x, found.heldout_x) for e in extractors})
