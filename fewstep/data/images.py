"""A labelled image set, read where it is indexed, and the batches drawn from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from fewstep.cond import NULL, Cond
from fewstep.data.arrays import FEW, Absent, Images, class_means, let_go, parts, pixel_std
from fewstep.data.kept import Kept, cache_folder, stamp_of, text_digest
from fewstep.data.source import Batch
from fewstep.errors import Unavailable, UsageError
from fewstep.noise import Rng

PROBES = 64  # images of each split that say whether a set is still made of its files in the same way
HELDOUT = 0.2  # of each class of a set that comes in one piece
FACTS = ".fewstep-{}.json"  # beside the data


def split(
    labels: np.ndarray, classes: int, called: Callable[[int], str] = "class {}".format, sort: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """The indices of images to learn from and of those held out: a fifth of each class by a fixed permutation (seed 0), at least one.

    **Raises**: UsageError for a class of fewer than two images, which is `called` so; `sort` says which images were looked for.
    """
    rng, train, heldout = np.random.RandomState(0), list[np.ndarray](), list[np.ndarray]()
    for label in range(max(1, classes)):
        index = rng.permutation(np.flatnonzero(labels == label))
        if len(index) < 2:
            found = f"{'one' if len(index) else 'no'} image{sort}"
            raise UsageError(f"{called(label)} holds {found}; a class needs at least two, one to learn from and one held out")
        cut = min(len(index) - 1, max(1, round((1 - HELDOUT) * len(index))))
        train.append(index[:cut])
        heldout.append(index[cut:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(heldout))


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images in [-1, 1], float32 [N, C, H, W] where they are read, with int64 labels [N], split into a training and a held-out part.

    An array of floats will do for a small set. A large one stays in its own dtype and on the disk: `Scaled` levels of a memory map.
    """

    name: str
    classes: int
    train_x: Images
    train_y: np.ndarray
    heldout_x: Images
    heldout_y: np.ndarray
    class_names: tuple[str, ...] = ()
    how: str = ""  # what was done to the files that it was read from
    kept: Kept | None = None  # where its facts are kept
    check: Callable[[], None] | None = None  # reads what it was made of once more; raises UsageError where that has changed

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.train_x.shape[1:])  # pyright: ignore[reportReturnType]

    @property
    def _arrays(self) -> tuple[object, ...]:
        return self.train_x, self.train_y, self.heldout_x, self.heldout_y

    def fact(self, name: str, compute: Callable[[], str]) -> str:
        """What `compute` says of the set, which is kept beside its files where it has some (see `beside`)."""
        kept = self.kept
        if kept is None or any(a is not b for a, b in zip(self._arrays, kept.about, strict=True)):
            return compute()
        return kept.of(name, compute)

    def beside(self, files: Sequence[str | Path]) -> ImageData:
        """The same set, whose facts (digests, sigma_data) are computed once and kept beside the first of the files that it is read from, or
        in the cache folder. They are computed again when a file has another size or time, or the set other labels or (some) pixels."""
        paths = [Path(file) for file in files]
        folder, name = cache_folder("facts"), FACTS.format(self.name)
        elsewhere = () if folder is None else (folder / f"{text_digest(str(paths[0].absolute()))[:16]}{name}",)
        return self.with_facts((paths[0].parent / name, *elsewhere), stamp_of(paths))

    def with_facts(self, places: tuple[Path, ...], stamp: str) -> ImageData:
        """The same set, whose facts are kept in one of these places as long as what it was made of has this stamp."""
        seen = hashlib.sha256()
        for images, labels in ((self.train_x, self.train_y), (self.heldout_x, self.heldout_y)):
            some = np.unique(np.linspace(0, max(0, len(images) - 1), PROBES).astype(np.int64)) if len(images) else np.arange(0)
            seen.update(images[some].tobytes() + labels.tobytes())
            let_go(images)  # a look at one image may map megabytes of a file
        told = self.name, self.classes, self.how, tuple(self.train_x.shape), tuple(self.heldout_x.shape), seen.hexdigest()
        return replace(self, kept=Kept(text_digest(stamp, told), places, self._arrays))

    @cached_property
    def sigma_data(self) -> float:
        """Standard deviation of the training pixels about their common mean (EDM's sigma_data), in pixel units of [-1, 1]."""
        return float(self.fact("sigma_data", lambda: repr(pixel_std(self.train_x))))

    @cached_property
    def _digest(self) -> str:
        def compute() -> str:
            found = hashlib.sha256()
            for part in parts(self.train_x, FEW):
                found.update(part.tobytes())
            found.update(self.train_y.tobytes())
            return found.hexdigest()

        return self.fact("digest", compute)

    def digest(self) -> str:
        """SHA-256 of the training split, pixels and labels: the identity of everything computed from it."""
        return self._digest

    def heldout_digest(self) -> str:
        """SHA-256 of the held-out split, pixels and labels: of what tasks of pictures ask by."""

        def compute() -> str:
            found = hashlib.sha256()
            for part in parts(self.heldout_x, FEW):
                found.update(part.tobytes())
            found.update(self.heldout_y.tobytes())
            return found.hexdigest()

        return self.fact("heldout digest", compute)

    def draw(self, count: int, rng: Rng) -> Batch:
        """A batch of `count` training images drawn with replacement, by an `Rng`; without labels where there are no classes."""
        if isinstance(self.train_x, Absent):
            raise Unavailable(self.train_x.why)
        index = rng.integers(len(self.train_x), (count,)).cpu().numpy()
        return Batch(torch.from_numpy(self.train_x[index]), Cond(label=torch.from_numpy(self.train_y[index])) if self.classes else NULL)

    def unlabelled(self) -> ImageData:
        """The same images and split without their labels."""
        train_y, heldout_y = np.zeros_like(self.train_y), np.zeros_like(self.heldout_y)
        found = replace(self, classes=0, class_names=(), train_y=train_y, heldout_y=heldout_y, kept=None)
        if self.kept is None:
            return found
        places = tuple(place.with_name(f"{place.stem}-unlabelled.json") for place in self.kept.places)
        return found.with_facts(places, self.kept.stamp)

    def class_means(self) -> np.ndarray:
        """Mean training image of each class, [classes, C, H, W] float32; without classes that of all."""
        return class_means(self.train_x, self.train_y, max(1, self.classes))
