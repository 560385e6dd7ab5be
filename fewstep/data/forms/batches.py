"""CIFAR-10 as its author publishes it: binary records or pickled batches, unpacked or as the archives that they come in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.data.arrays import Images, Joined, Scaled
from fewstep.data.forms.decoded import Blocks, Reading
from fewstep.data.forms.tars import BROKEN, Member, members
from fewstep.errors import UsageError, one_line
from fewstep.nets.readers.pickled_numpy import NUMPY, array
from fewstep.nets.readers.safe_pickle import loads

BINARY, PYTHON = "cifar-10-batches-bin", "cifar-10-batches-py"
ARCHIVES = {"cifar-10-python.tar.gz": PYTHON, "cifar-10-binary.tar.gz": BINARY}
TRAIN, TEST = tuple(f"data_batch_{k}" for k in range(1, 6)), ("test_batch",)
RECORD = 1 + 3 * 32 * 32  # a label byte, then red, green and blue planes in rows
PIXELS = RECORD - 1


def names_of(form: str) -> tuple[str, ...]:
    """The files of a form, the training batches first."""
    return tuple(f"{name}{'.bin' if form == BINARY else ''}" for name in (*TRAIN, *TEST))


def found(folder: Path, form: str) -> list[Path]:
    """The unpacked files of a form in a folder; none where one of them is not there."""
    files = [folder / form / name for name in names_of(form)]
    return files if all(file.is_file() for file in files) else []


def archive(folder: Path) -> list[Path]:
    """The archive of either form in a folder, where there is one."""
    return [folder / name for name in ARCHIVES if (folder / name).is_file()][:1]


def mapped_binary(files: Sequence[Path]) -> tuple[Images, np.ndarray]:
    """The images of unpacked binary files, which stay on the disk, and their labels. **Raises**: UsageError."""
    images, labels = list[Images](), list[np.ndarray]()
    for file in files:
        size = file.stat().st_size
        if size == 0 or size % RECORD:
            raise UsageError(f"{file} has {size} bytes, not a multiple of {RECORD}; unpack its archive again")
        records = np.memmap(file, np.uint8, "r").reshape(-1, RECORD)
        images.append(Scaled(records[:, 1:].reshape(-1, 3, 32, 32)))
        labels.append(records[:, 0].astype(np.int64))
    if max(part.max() for part in labels) > 9:
        raise UsageError(f"{files[0].parent} holds a label above 9; unpack its archive again")
    return Joined(tuple(images)), np.concatenate(labels)


def _binary(raw: bytes, what: str) -> tuple[np.ndarray, np.ndarray]:
    if not raw or len(raw) % RECORD:
        raise ValueError(f"{what} has {len(raw)} bytes, not a multiple of {RECORD}")
    records = np.frombuffer(raw, np.uint8).reshape(-1, RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def _python(raw: bytes, what: str) -> tuple[np.ndarray, np.ndarray]:
    """A pickled batch: a mapping with `data` [n, 3072] and `labels`, taken out without unpickling it."""
    told: Any = loads(raw, NUMPY.get, what)
    if not isinstance(told, dict):
        raise ValueError(f"{what} is no mapping of data and labels")
    told = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in told.items()}
    data, labels = array(told.get("data"), what), told.get("labels")
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != PIXELS:
        raise ValueError(f"{what} has data {data.dtype} {list(data.shape)}, not uint8 [n, {PIXELS}]")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(type(n) is int and 0 <= n <= 9 for n in labels):
        raise ValueError(f"{what} has no label from 0 to 9 for each of its {len(data)} images")
    return data.reshape(-1, 3, 32, 32), np.array(labels, np.int64)


@contextmanager
def _members(files: Sequence[Path], form: str) -> Iterator[Member]:
    """What gives the bytes of a batch by its name. **Raises**: UsageError for a file that is truncated or altered."""
    try:
        if files[0].name not in ARCHIVES:
            yield lambda name: next(file for file in files if file.name == name).read_bytes()
            return
        with members(files[0]) as read:
            yield lambda name: read(f"{form}/{name}")
    except BROKEN as err:
        what, place = one_line(str(err)) or type(err).__name__, files[0] if len(files) == 1 else files[0].parent
        raise UsageError(f"{place} is not CIFAR-10 as it is published ({what}); delete it and get it again") from None


def read(files: Sequence[Path], form: str) -> Reading:
    """The batches of an archive, or of unpacked pickles, one after the other. **Raises**: UsageError."""
    one = _binary if form == BINARY else _python
    with _members(files, form) as member:  # twice, so that the images of one batch are held at once
        labels = [one(member(name), name)[1] for name in names_of(form)]
    together = np.concatenate(labels)
    if together.max() > 9:
        raise UsageError(f"{files[0]} holds labels up to {together.max()}, not 0 to 9; delete it and get it again")

    def blocks() -> Blocks:
        with _members(files, form) as member:
            for name in names_of(form):
                yield one(member(name), name)[0]

    return Reading(together, 10, sum(map(len, labels[: len(TRAIN)])), (3, 32, 32), blocks())
