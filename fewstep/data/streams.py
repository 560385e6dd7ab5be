"""Images that come one part after another, from files of parts or from a function: written to a memory map when they are first read."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fewstep.data.arrays import Picked, Scaled
from fewstep.data.images import ImageData, split
from fewstep.data.kept import cache_folder, mapped, spool, stamp_of, text_digest
from fewstep.errors import UsageError, one_line
from fewstep.files import write_atomic

Parts = Iterator[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Stream:
    """A function that gives all images, part by part: uint8 [n, C, H, W] with integer labels [n], in the same order at every reading.

    `count` and `shape` say what it gives altogether; the last `heldout` are held out. `version` changes when it is meant to give other
    images: with the same one it has to give the same. Level / 127.5 - 1 are the images in [-1, 1].
    """

    name: str
    read: Callable[[], Parts]
    count: int
    shape: tuple[int, int, int]
    classes: int = 0
    heldout: int = 0
    version: str = "1"

    def _refuse(self, what: str, how: str) -> UsageError:
        return UsageError(f"stream '{self.name}' {what}; {how}")

    def _part(self, levels: np.ndarray, labels: np.ndarray) -> None:
        """**Raises**: UsageError for a part of another kind."""
        if levels.dtype != np.uint8 or levels.shape[1:] != self.shape:
            found = f"gives {levels.dtype} {list(levels.shape)}"
            raise self._refuse(found, f"let it give uint8 levels [n, {', '.join(map(str, self.shape))}] with labels [n]")
        if labels.shape != levels.shape[:1] or labels.dtype.kind not in "iu":
            raise self._refuse(
                f"gives {len(levels)} images with labels {labels.dtype} {list(labels.shape)}", "let it give one integer for each"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < max(1, self.classes):
            raise self._refuse(
                f"gives labels from {labels.min()} to {labels.max()} and says that it has {self.classes} classes",
                "let labels be 0, 1, ... and classes how many there are (0: all labels are 0)",
            )

    def _checked(self, labels: np.ndarray, found: hashlib._Hash) -> Iterator[np.ndarray]:
        """The images of one reading; their labels go into an array, and both into a digest. **Raises**: UsageError for another count."""
        at = 0
        for part, own in self.read():
            self._part(part, own)
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

    def _same(self, record: Path, digest: str) -> None:
        """Hold the stream to what it gave first. **Raises**: UsageError where it gives something else."""
        before = ""
        with suppress(OSError, ValueError, KeyError, TypeError):
            before = str(json.loads(record.read_bytes())["digest"])
        if before and before != digest:
            raise self._refuse(
                f"gives other images than when it was first read (digest {digest[:12]}..., then {before[:12]}...)",
                f"let it give the same in the same order, or another version than '{self.version}' where that is meant",
            )
        write_atomic(record, json.dumps({"digest": digest, "stream": self.name, "version": self.version}).encode())

    def check(self) -> None:
        """Read all of it once more. **Raises**: UsageError where it gives other images than before, or another number of them."""
        labels, found = np.empty(self.count, np.int64), hashlib.sha256()
        for _ in self._checked(labels, found):
            pass
        place = self._place()
        if place is not None:
            self._same(place / "digest.json", found.hexdigest())

    def _place(self) -> Path | None:
        key = text_digest(self.name, self.version, self.count, self.shape, self.classes)
        return cache_folder("streams", key[:16])

    def data(self) -> ImageData:
        """The stream as an image set: read once into the cache folder, and from there at every later start.

        Without a cache folder it is read at every start, into a nameless file of the temporary folder.
        """
        place = self._place()
        if place is not None:
            levels, labels = mapped(place / "levels.npy", (self.count, *self.shape)), _labels(place / "labels.npy", self.count)
            if levels is None or labels is None:
                levels, labels = self._spooled(place)
            return self._set(levels, labels).with_facts(
                (place / f"facts-{self.heldout}.json",), text_digest(stamp_of([place / "levels.npy"]))
            )
        with tempfile.TemporaryDirectory(prefix="fewstep-") as folder:
            return self._set(*self._spooled(Path(folder)))  # whose file goes on as long as it is mapped

    def _spooled(self, place: Path) -> tuple[np.ndarray, np.ndarray]:
        """All images and labels, from a file that appears once the stream has shown that it is what it was."""
        labels, found = np.empty(self.count, np.int64), hashlib.sha256()

        def held() -> Iterator[np.ndarray]:
            yield from self._checked(labels, found)
            self._same(place / "digest.json", found.hexdigest())

        levels = spool(place / "levels.npy", (self.count, *self.shape), held())
        written = io.BytesIO()
        np.save(written, labels)
        write_atomic(place / "labels.npy", written.getvalue())
        return levels, labels

    def _set(self, levels: np.ndarray, labels: np.ndarray) -> ImageData:
        cut = self.count - self.heldout
        images = Scaled(levels[:cut]), Scaled(levels[cut:])
        return ImageData(self.name, self.classes, images[0], labels[:cut], images[1], labels[cut:])


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
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as err:
        what = one_line(str(err)) or type(err).__name__
        raise UsageError(f"{file} is no file of images ({what}); write it with numpy.savez(file, images=LEVELS, labels=LABELS)") from None


def _shape(file: Path) -> tuple[int, ...]:
    """The shape of the images in a file of parts, which are not read."""
    with _one_line(file), zipfile.ZipFile(file) as archive, archive.open("images.npy") as images:
        first = np.lib.format.read_magic(images) == (1, 0)
        header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        return header(images)[0]


def _labels_in(file: Path) -> np.ndarray:
    """The labels in a file of parts; zeros where it has none."""
    with _one_line(file), np.load(file, allow_pickle=False) as found:
        return found["labels"] if "labels" in found else np.zeros(_shape(file)[0], np.int64)


def _opened(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of one file of parts."""
    with _one_line(file), np.load(file, allow_pickle=False) as found:
        return found["images"], _labels_in(file)


def parts_of(path: str | Path) -> list[Path]:
    """The files of parts in a folder, in the order of their names."""
    return sorted(Path(path).glob("*.npz"))


def parts_folder(path: str | Path) -> ImageData:
    """The images of a folder of .npz files, each with `images` (uint8 [n, C, H, W]) and perhaps `labels` [n]: a fifth of each class
    is held out, as of a folder of images. **Raises**: UsageError for a file that cannot be used."""
    folder, files = Path(path), parts_of(path)
    y = np.concatenate([_labels_in(file) for file in files])
    count, shape = sum(_shape(file)[0] for file in files), _shape(files[0])[1:]
    if len(shape) != 3:
        raise UsageError(f"{files[0]} has images [n, {', '.join(map(str, shape))}]; make them [n, channels, height, width]")
    classes = int(y.max()) + 1 if len(y) and y.any() else 0
    stamp = text_digest(str(folder.absolute()), stamp_of(files))
    found = Stream(folder.name, lambda: map(_opened, files), count, shape, classes, version=stamp).data()
    train, heldout = split(found.train_y, classes)
    x = found.train_x
    data = replace(found, train_x=Picked(x, train), train_y=y[train], heldout_x=Picked(x, heldout), heldout_y=y[heldout], kept=None)
    return data if found.kept is None else data.with_facts(tuple(p.with_name("facts-split.json") for p in found.kept.places), stamp)
