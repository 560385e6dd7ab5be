"""Artefacts in parts: made, checked and read a part at a time, so that a kill loses one of them and memory does not grow. Imports no torch.

results/.store/unfinished/<kind>-<hash>/   the parts of an artefact that is not complete yet; the folder becomes the artefact
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bench.store.artefacts import Store
from fewstep.data.arrays import Images
from fewstep.files import write_atomic
from metrics.metric import Pairs

SUFFIX = ".safetensors"
Tensors = dict[str, np.ndarray]
Notes = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Parted:
    """How an artefact of `count` rows is made, `size` at a time, in files that begin with `name`.

    `make(first, last)` gives the tensors of those rows and numbers to note of them, beside which stand the `seconds` that it took; `record`
    makes the record of the whole of all notes. The rows of a part depend on `first` and `last` alone.
    """

    name: str
    count: int
    size: int
    make: Callable[[int, int], tuple[Tensors, Notes]]
    record: Callable[[Sequence[Notes]], dict[str, Any]]

    def bounds(self) -> list[tuple[str, int, int]]:
        """The name of each part's file, and its rows."""
        starts = range(0, self.count, self.size)
        return [(f"{self.name}-{first:08d}{SUFFIX}", first, min(first + self.size, self.count)) for first in starts]


def _digest(tensors: Mapping[str, np.ndarray], notes: str) -> str:
    found = hashlib.sha256(notes.encode())
    for name in sorted(tensors):
        value = np.ascontiguousarray(tensors[name])
        found.update(f"{name} {value.dtype} {value.shape};".encode())
        found.update(value.data)
    return found.hexdigest()


def write_part(path: Path, tensors: Tensors, notes: Notes) -> None:
    """A part with its checksum inside: the file is whole, or not there."""
    told = json.dumps(dict(notes), sort_keys=True)
    own = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    write_atomic(path, save(own, {"notes": told, "sha256": _digest(own, told)}))


def check_part(path: Path, rows: int) -> Notes:
    """What is noted of a part. **Raises**: ValueError when it was changed after it was written, or has another number of rows."""
    try:
        with safe_open(path, framework="numpy") as f:
            told, tensors = f.metadata() or {}, {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as err:
        raise ValueError(f"{path} cannot be read ({err})") from None
    if told.get("sha256") != _digest(tensors, told.get("notes", "")):
        raise ValueError(f"{path} does not match its checksum")
    if any(len(value) != rows for value in tensors.values()):
        raise ValueError(f"{path} has {[len(value) for value in tensors.values()]} rows instead of {rows}")
    return json.loads(told["notes"])


def work_folder(store: Store, kind: str, key: str) -> Path:
    """Where the parts of an artefact lie that is not complete."""
    return store.root / "unfinished" / f"{kind}-{key}"


def ensure_parts(store: Store, kind: str, key: str, parted: Parted, say: Callable[[str], None]) -> dict[str, Any]:
    """The record of an artefact, whose missing parts are made now by one process, or by several together, while others wait.

    Parts that an interrupted run has made are kept. One that was changed is reported, set aside and made again, and only that one.
    """
    world, parts = store.world, parted.bounds()
    with store.held(kind, key):
        work = work_folder(store, kind, key)
        record = world.told(lambda: _begun(store, kind, key, parted, say))
        if record is not None:
            return record

        def made() -> dict[str, Notes]:
            return {bounds[0]: _part(store, work, bounds, f"{kind}-{key}", parted, say) for bounds in world.share(parts)}

        notes = {name: note for own in world.together(made) for name, note in own.items()}

        def whole() -> dict[str, Any]:
            for other in {path.name for path in work.iterdir()} - set(notes):
                (work / other).unlink()  # of parts of another size, or half-written
            told = [notes[name] for name, _, _ in parts]
            seconds = round(sum(note.get("seconds", 0.0) for note in told), 3)
            return store.adopt(kind, key, work, {"seconds": seconds, **parted.record(told)})

        return world.told(whole)


def _begun(store: Store, kind: str, key: str, parted: Parted, say: Callable[[str], None]) -> dict[str, Any] | None:
    """The record of an artefact that is whole; None of one that is not, whose parts lie in its work folder."""
    if store.path(kind, key).exists():
        try:
            return store.read(kind, key)
        except (ValueError, KeyError, TypeError, FileNotFoundError) as err:
            aside = _reopen(store, kind, key, parted)
            say(f"corrupt artefact: {err}; its record is set aside in {aside}, and what was changed is made again")
    work_folder(store, kind, key).mkdir(parents=True, exist_ok=True)
    return None


def _part(store: Store, work: Path, bounds: tuple[str, int, int], whose: str, parted: Parted, say: Callable[[str], None]) -> Notes:
    """What is noted of a part, which is made where it is not there."""
    name, first, last = bounds
    found = _kept(store, work / name, last - first, whose, say)
    if found is None:
        started = time.monotonic()
        tensors, told = parted.make(first, last)
        found = {"seconds": round(time.monotonic() - started, 3), **told}
        write_part(work / name, tensors, found)
    return found


def _kept(store: Store, path: Path, rows: int, whose: str, say: Callable[[str], None]) -> Notes | None:
    """What is noted of a part that is there and sound; one that is not is set aside."""
    if not path.exists():
        return None
    try:
        return check_part(path, rows)
    except ValueError as err:
        aside = _aside(store, whose)
        os.replace(path, aside / path.name)
        say(f"corrupt part: {err}; set aside in {aside}, and it alone is made again")
        return None


def _aside(store: Store, whose: str) -> Path:
    return Path(tempfile.mkdtemp(dir=store.root, prefix=f"corrupt-{whose}-"))


def _reopen(store: Store, kind: str, key: str, parted: Parted) -> Path:
    """Make the parts of a damaged artefact those of an unfinished one; whatever is no part of it is set aside, in the folder returned."""
    work, aside = work_folder(store, kind, key), _aside(store, f"{kind}-{key}")
    shutil.rmtree(work, ignore_errors=True)
    work.parent.mkdir(parents=True, exist_ok=True)
    os.replace(store.path(kind, key), work)
    names = {name for name, _, _ in parted.bounds()}
    for path in [path for path in work.iterdir() if path.name not in names]:
        os.replace(path, aside / path.name)
    return aside


@dataclass(frozen=True, eq=False)
class Stored:
    """The rows of one tensor in the files of an artefact, read when they are indexed: `Images`, features or labels.

    **Shapes**: `ends` are the rows up to the end of each file; `row` is the shape of one.
    """

    files: tuple[Path, ...]
    ends: tuple[int, ...]
    row: tuple[int, ...]
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.row)

    def __len__(self) -> int:
        return self.ends[-1]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.array([0, *self.ends[:-1]])

    @cached_property
    def _dtype(self) -> np.dtype:
        with safe_open(self.files[0], framework="numpy") as f:
            return f.get_slice(self.name)[:0].dtype

    def _read(self, file: int, rows: np.ndarray) -> np.ndarray:
        """Rows of one file, of which no others are read: what lies together is read at once."""
        own, back = np.unique(rows, return_inverse=True)
        runs = np.split(own, np.flatnonzero(np.diff(own) > 1) + 1)
        with safe_open(self.files[file], framework="numpy") as f:
            found = f.get_slice(self.name)
            pieces = [found[int(run[0]) : int(run[-1]) + 1] for run in runs]
        together = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return together if np.array_equal(back, np.arange(len(together))) else together[back]

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        if isinstance(index, slice):
            rows = np.arange(*index.indices(len(self)))
        else:
            index = np.asarray(index)
            rows = np.flatnonzero(index) if index.dtype == bool else np.where(index < 0, index + len(self), index).astype(np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        whose = np.searchsorted(self.ends, rows, side="right")
        touched = np.unique(whose)
        if len(touched) == 1:
            return self._read(int(touched[0]), rows - self._starts[touched[0]])
        out = np.empty((len(rows), *self.row), self._dtype)
        for file in touched:
            places = np.flatnonzero(whose == file)
            out[places] = self._read(int(file), rows[places] - self._starts[file])
        return out


def _files(folder: Path, prefix: str) -> tuple[Path, ...]:
    """The parts of an artefact or, where it was made before there were any, its one file."""
    return tuple(sorted(folder.glob(f"{prefix}-*{SUFFIX}"))) or (folder / f"{prefix}{SUFFIX}",)


def names_in(folder: Path, prefix: str) -> set[str]:
    """The names of the tensors in an artefact. **Raises**: as `stored`."""
    with safe_open(_files(folder, prefix)[0], framework="numpy") as f:
        return set(f.keys())


def stored(folder: Path, prefix: str, name: str) -> Stored:
    """One tensor of an artefact. **Raises**: FileNotFoundError where it is not there; SafetensorError, OSError for files that are none."""
    files, shapes = _files(folder, prefix), []
    for path in files:
        with safe_open(path, framework="numpy") as f:
            shapes.append(tuple(f.get_slice(name).get_shape()))
    return Stored(files, tuple(np.cumsum([shape[0] for shape in shapes]).tolist()), shapes[0][1:], name)


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples in order of their seeds: images, read when they are indexed, and the label that each was drawn for; the first seed, the
    noise and the task that drew the labels (none without any), where they are known. `pairs`: the true images of a task that has some.

    **Shapes**: images [N, C, H, W], labels [N] int64.
    """

    images: Images
    labels: np.ndarray
    seed: int | None = None
    noise: str = ""
    labelling: str = ""
    pairs: Pairs | None = None


SAMPLES = "samples"  # the kind of artefact, and what its files begin with
TRUTH = "truth"  # the kind of exact solutions that samples are compared with


def samples_in(folder: Path) -> Samples:
    """The samples of an artefact. **Raises**: as `stored`."""
    return Samples(stored(folder, SAMPLES, "images"), stored(folder, SAMPLES, "labels")[:])
