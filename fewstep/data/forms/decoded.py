"""Files that cannot be mapped, decoded once: their 8-bit levels and labels in the cache folder."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewstep.data.kept import cache_folder, mapped, spool, stamp_of, text_digest
from fewstep.files import write_atomic
from fewstep.progress import say

Blocks = Iterator[np.ndarray]  # uint8 [n, C, H, W]


@dataclass(frozen=True, eq=False)
class Reading:
    """What a file holds: its labels [N], how many classes they are of (0: it has none), how many of the first images are for training, the
    shape of an image, and all images."""

    labels: np.ndarray
    classes: int
    train: int
    shape: tuple[int, ...]
    blocks: Blocks


@dataclass(frozen=True, eq=False)
class Levels:
    """Images as 8-bit levels [N, C, H, W] with int64 labels [N]: the first `train` are for training, the others are the test set."""

    levels: np.ndarray
    labels: np.ndarray
    classes: int
    train: int


def decoded(files: Sequence[Path], how: str, read: Callable[[], Reading]) -> Levels:
    """What `read` makes of some files, its levels in a memory map.

    They are read once, and again when a file has another size or time, or `how` says that they are read in another way. Without a cache
    folder they go at every start into a nameless file of the temporary folder.
    """
    place = cache_folder("decoded", text_digest(str(files[0].absolute()))[:16])
    stamp = text_digest(stamp_of(files), how)[:16]
    if place is not None and (found := _kept(place, stamp)) is not None:
        return found
    say(f"decoding {files[0]}, which is done once{'' if place is not None else ' where there is a cache folder, and here is none'}")
    if place is None:
        with tempfile.TemporaryDirectory(prefix="fewstep-") as folder:
            return _spooled(Path(folder), stamp, read())  # whose file goes on as long as it is mapped
    for old in [*place.glob("levels-*.npy"), *place.glob("labels-*.npz")]:
        with suppress(OSError):
            old.unlink()
    return _spooled(place, stamp, read())


def _kept(place: Path, stamp: str) -> Levels | None:
    try:
        with np.load(place / f"labels-{stamp}.npz", allow_pickle=False) as found:
            labels, shape = found["labels"], tuple(map(int, found["shape"]))
            classes, train = int(found["classes"]), int(found["train"])
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    levels = mapped(place / f"levels-{stamp}.npy", (len(labels), *shape))
    return None if levels is None else Levels(levels, labels, classes, train)


def _spooled(place: Path, stamp: str, made: Reading) -> Levels:
    labels = made.labels.astype(np.int64)
    levels = spool(place / f"levels-{stamp}.npy", (len(labels), *made.shape), made.blocks)
    written = io.BytesIO()
    np.savez(written, labels=labels, shape=np.array(made.shape), classes=made.classes, train=made.train)
    write_atomic(place / f"labels-{stamp}.npz", written.getvalue())
    return Levels(levels, labels, made.classes, made.train)
