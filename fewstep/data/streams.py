"""Images that come one part after another, from files of parts or from a function: written to a memory map when they are first read."""

from __future__ import annotations

import hashlib
import io
import json
import math
import tempfile
import zipfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np

from fewstep.data.arrays import Picked, Scaled, let_go, part_size
from fewstep.data.images import ImageData, split
from fewstep.data.kept import cache_folder, forget, mapped, spool, stamp_of, state_folder, text_digest
from fewstep.errors import Unavailable, UsageError, one_line
from fewstep.files import write_atomic
from fewstep.progress import say

Parts = Iterator[tuple[np.ndarray, np.ndarray]]
IMAGES = "images.npy"  # in a file of parts


class Unreadable(UsageError):
    """The function of a stream has failed."""


@dataclass(frozen=True)
class Stream:
    """A function that gives all images, part by part: uint8 [n, C, H, W] with integer labels [n], in the same order at every reading.

    `count` and `shape` say what it gives altogether; the last `heldout` are held out. `version` changes when it is meant to give other
    images: with the same one it has to give the same. Of streams with the same `source` the cache keeps the last version alone.
    Level / 127.5 - 1 are the images in [-1, 1]. **Raises**: UsageError where there is nothing to learn from.
    """

    name: str
    read: Callable[[], Parts]
    count: int
    shape: tuple[int, int, int]
    classes: int = 0
    heldout: int = 0
    version: str = "1"
    source: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.heldout < self.count:
            says = f"says that it has {self.count} images, of which {self.heldout} are held out"
            raise self._refuse(says, "let it have at least one to learn from")

    def _refuse(self, what: str, how: str) -> UsageError:
        return UsageError(f"stream '{self.name}' {what}; {how}")

    def _part(self, part: object) -> tuple[np.ndarray, np.ndarray]:
        """**Raises**: UsageError for a part of another kind."""
        wanted = f"let it give uint8 levels [n, {', '.join(map(str, self.shape))}] with labels [n]"
        pieces = part if isinstance(part, tuple | list) else [part]
        arrays = [piece for piece in pieces if isinstance(piece, np.ndarray)]
        if len(pieces) != 2 or len(arrays) != 2:
            found = " and ".join(type(piece).__name__ for piece in pieces[:3]) or "an empty part"
            raise self._refuse(f"gives {found}", f"{wanted}, two arrays of numpy at a time")
        levels, labels = arrays
        if levels.dtype != np.uint8 or levels.shape[1:] != self.shape:
            raise self._refuse(f"gives {levels.dtype} {list(levels.shape)}", wanted)
        if labels.shape != levels.shape[:1] or labels.dtype.kind not in "iu":
            raise self._refuse(
                f"gives {len(levels)} images with labels {labels.dtype} {list(labels.shape)}", "let it give one integer for each"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < max(1, self.classes):
            raise self._refuse(
                f"gives labels from {labels.min()} to {labels.max()} and says that it has {self.classes} classes",
                "let labels be 0, 1, ... and classes how many there are (0: all labels are 0)",
            )
        return levels, labels

    def _given(self) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        """What the function gives. **Raises**: Unreadable where it fails, UsageError for parts of another kind."""
        at = 0
        try:
            for part in self.read():
                levels, labels = self._part(part)
                yield levels, labels
                at += len(levels)
        except (UsageError, Unavailable):
            raise
        except Exception as err:  # whatever a function of somebody else's raises
            what = f"cannot be read after {at} of its {self.count} images ({type(err).__name__}: {err})"
            raise Unreadable(f"stream '{self.name}' {what}; mend what it reads, or the function that does") from err

    def _checked(self, labels: np.ndarray, found: hashlib._Hash) -> Iterator[np.ndarray]:
        """The images of one reading; their labels go into an array, and both into a digest. **Raises**: UsageError for another count."""
        at = 0
        for part, own in self._given():
            if at + len(part) > self.count:
                raise self._refuse(
                    f"goes on after the {self.count} images that it says it has", "give the right count; nothing was kept of it"
                )
            labels[at : at + len(part)] = own
            at += len(part)
            found.update(np.ascontiguousarray(part).data)
            yield part
        if at < self.count:
            raise self._refuse(f"ended after {at} of the {self.count} images that it says it has", "read it again; nothing was kept")
        found.update(labels.astype("<i8").tobytes())

    def _changed(self, what: str, digests: str = "") -> UsageError:
        return self._refuse(
            f"{what} other images than when it was first read{digests}",
            f"let it give the same in the same order, or another version than '{self.version}' where that is meant",
        )

    def _records(self) -> list[Path]:
        """Where the digest of what it gave first is written down: apart from the images, which may be deleted, and beside them."""
        known, place = state_folder("streams"), self._place()
        own = [] if known is None else [known / f"{self._key()}.json"]
        return own if place is None else [*own, place / "digest.json"]

    def _same(self, digest: str) -> None:
        """Hold the stream to what it gave first. **Raises**: UsageError where it gives something else."""
        for record in self._records():
            before = ""
            with suppress(OSError, ValueError, KeyError, TypeError):
                before = str(json.loads(record.read_bytes())["digest"])
            if before and before != digest:
                raise self._changed("gives", f" (digest {digest[:12]}..., then {before[:12]}...)")
            if not before:
                write_atomic(record, json.dumps({"digest": digest, "stream": self.name, "version": self.version}).encode())

    def _begins(self, levels: np.ndarray, labels: np.ndarray) -> None:
        """Compare the first part with what was kept of it. **Raises**: UsageError where it is another, or there is none."""
        given = self._given()
        try:
            part, own = next((part for part in given if len(part[0])), (levels[:0], labels[:0]))
        except Unreadable as err:
            return say(f"{err}; until then what was kept of it is used")
        finally:
            given.close()
        if not len(part) or not np.array_equal(part, levels[: len(part)]) or not np.array_equal(own, labels[: len(part)]):
            raise self._changed("begins with")
        return let_go(levels)

    def check(self) -> None:
        """Read all of it once more. **Raises**: UsageError where it gives other images than before or another number of them, or where the
        copy in the cache is damaged."""
        labels, found, place = np.empty(self.count, np.int64), hashlib.sha256(), self._place()
        levels, own = (None, None) if place is None else self._kept(place)
        at, same = 0, True
        for part in self._checked(labels, found):
            same = same and (levels is None or np.array_equal(part, levels[at : at + len(part)]))
            at += len(part)
            if levels is not None:
                let_go(levels)
        self._same(found.hexdigest())
        if not same or (own is not None and not np.array_equal(own, labels)):
            raise self._refuse(f"gives what it always gave, but its copy in {place} is damaged", "delete that folder, and it is read again")

    def _group(self) -> str:
        return text_digest(self.source)[:12] if self.source else "stream"

    def _key(self) -> str:
        return f"{self._group()}-{text_digest(self.name, self.version, self.count, self.shape, self.classes)[:16]}"

    def _place(self) -> Path | None:
        return cache_folder("streams", self._key())

    def _kept(self, place: Path) -> tuple[np.ndarray | None, np.ndarray | None]:
        """What an earlier start has left: images and labels."""
        return mapped(place / "levels.npy", (self.count, *self.shape)), _labels(place / "labels.npy", self.count)

    def data(self) -> ImageData:
        """The stream as an image set: read once into the cache folder, and from there at every later start, which compares the first part
        of the stream alone; `check` compares all of it. Without a cache folder it is read at every start, into a nameless file.
        """
        place = self._place()
        if place is not None:
            levels, labels = self._kept(place)
            if levels is None or labels is None:
                levels, labels = self._spooled(place)
                self._forget_others(place)
            else:
                self._begins(levels, labels)
            stamp = text_digest(stamp_of([place / "levels.npy"]))
            return self._set(levels, labels).with_facts((place / f"facts-{self.heldout}.json",), stamp)
        with tempfile.TemporaryDirectory(prefix="fewstep-") as folder:
            return self._set(*self._spooled(Path(folder)))  # whose file goes on as long as it is mapped

    def _spooled(self, place: Path) -> tuple[np.ndarray, np.ndarray]:
        """All images and labels, from a file that appears once the stream has shown that it is what it was."""
        labels, found = np.empty(self.count, np.int64), hashlib.sha256()

        def held() -> Iterator[np.ndarray]:
            yield from self._checked(labels, found)
            self._same(found.hexdigest())

        levels = spool(place / "levels.npy", (self.count, *self.shape), held())
        written = io.BytesIO()
        np.save(written, labels)
        write_atomic(place / "labels.npy", written.getvalue())
        return levels, labels

    def _forget_others(self, place: Path) -> None:
        """Remove what is kept of earlier versions of the same source."""
        known = state_folder("streams")
        if self.source:
            for other in set(place.parent.glob(f"{self._group()}-*")) - {place}:
                forget(other)
            for record in known.glob(f"{self._group()}-*.json") if known is not None else ():
                if record.stem != place.name:
                    record.unlink(missing_ok=True)

    def _set(self, levels: np.ndarray, labels: np.ndarray) -> ImageData:
        cut = self.count - self.heldout
        images = Scaled(levels[:cut]), Scaled(levels[cut:])
        found = ImageData(self.name, self.classes, images[0], labels[:cut], images[1], labels[cut:])
        return replace(found, check=self.check)


def _labels(path: Path, count: int) -> np.ndarray | None:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.dtype == np.int64 and found.shape == (count,) else None


@contextmanager
def _one_line(file: Path) -> Iterator[None]:
    """**Raises**: UsageError for a file of parts that cannot be read."""
    try:
        yield
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, NotImplementedError) as err:
        what = one_line(str(err)) or type(err).__name__
        raise UsageError(f"{file} is no file of images ({what}); write it with numpy.savez(file, images=LEVELS, labels=LABELS)") from None


def _header(images: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of an array in an archive, whose pixels come next."""
    first = np.lib.format.read_magic(images) == (1, 0)
    return (np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0)(images)


def _shape(file: Path) -> tuple[int, int, int, int]:
    """The shape of the images in a file of parts, which are not read. **Raises**: UsageError for anything but [n, C, H, W]."""
    with _one_line(file), zipfile.ZipFile(file) as archive, archive.open(IMAGES) as images:
        shape = _header(images)[0]
    if len(shape) != 4:
        raise UsageError(f"{file} has images {list(shape)}; make them [n, channels, height, width]")
    n, channels, height, width = shape
    return n, channels, height, width


def _labels_in(file: Path, count: int) -> np.ndarray:
    """The labels in a file of parts; zeros where it has none. **Raises**: UsageError for anything but a class for each image."""
    with _one_line(file), np.load(file, allow_pickle=False) as found:
        labels = found["labels"] if "labels" in found else np.zeros(count, np.int64)
    if labels.dtype.kind not in "iu" or labels.shape != (count,) or (count and int(labels.min()) < 0):
        what = f"labels {labels.dtype} {list(labels.shape)}"
        raise UsageError(f"{file} has {what} with {count} images; give each the number of its class: 0, 1, ...")
    return labels.astype(np.int64)


def _opened(file: Path) -> Parts:
    """The images and labels of one file, some at a time."""
    labels = _labels_in(file, _shape(file)[0])
    with _one_line(file), zipfile.ZipFile(file) as archive, archive.open(IMAGES) as images:
        shape, fortran, dtype = _header(images)
        if fortran or dtype != np.uint8:
            with np.load(file, allow_pickle=False) as found:
                yield found["images"], labels
            return
        size, each = part_size(shape[1:]), math.prod(shape[1:])
        for first in range(0, len(labels), size):
            own = labels[first : first + size]
            yield np.frombuffer(images.read(len(own) * each), np.uint8).reshape(len(own), *shape[1:]), own


def parts_of(path: str | Path) -> list[Path]:
    """The files of parts in a folder, in the order of their names."""
    return sorted(Path(path).glob("*.npz"))


def parts_folder(path: str | Path) -> ImageData:
    """The images of a folder of .npz files, each with `images` (uint8 [n, C, H, W]) and perhaps `labels` [n]: a fifth of each class
    is held out, as of a folder of images. **Raises**: UsageError for a file that cannot be used."""
    folder, files = Path(path), parts_of(path)
    shapes = [_shape(file) for file in files]
    for file, own in zip(files, shapes):
        if own[1:] != shapes[0][1:]:
            raise UsageError(f"{file} has images {list(own[1:])}, and {files[0].name} has {list(shapes[0][1:])}; make them of one shape")
    y = np.concatenate([_labels_in(file, own[0]) for file, own in zip(files, shapes)])
    classes = int(y.max()) + 1 if y.any() else 0
    train, heldout = split(y, classes, lambda label: f"class {label} of {folder}" if classes else str(folder))
    source = str(folder.absolute())
    stamp = text_digest(source, stamp_of(files))
    stream = Stream(folder.name, lambda: chain.from_iterable(map(_opened, files)), len(y), shapes[0][1:], classes, 0, stamp, source)
    found = stream.data()
    x = found.train_x
    data = replace(found, train_x=Picked(x, train), train_y=y[train], heldout_x=Picked(x, heldout), heldout_y=y[heldout], kept=None)
    return data if found.kept is None else data.with_facts(tuple(p.with_name("facts-split.json") for p in found.kept.places), stamp)
