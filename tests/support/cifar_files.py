"""CIFAR-10 of a few images in each of its published forms, and EDM's zips."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fewstep.data.cifar10 import ZIP
from fewstep.data.forms import batches, png_rows

COUNT = 4  # images of each batch
LEVELS = np.random.RandomState(0).randint(0, 256, (6, COUNT, 3, 32, 32)).astype(np.uint8)
LABELS = np.random.RandomState(1).randint(0, 10, (6, COUNT))
RAW = [np.concatenate([own[:, None].astype(np.uint8), part.reshape(COUNT, -1)], 1).tobytes() for part, own in zip(LEVELS, LABELS)]


def python2(levels: np.ndarray, labels: np.ndarray) -> bytes:
    """A batch as Python 2 pickled it, protocol 2: text without an encoding, NumPy's older module names."""
    raw = levels.reshape(len(levels), -1).tobytes()

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + len(value).to_bytes(4, "little") + value

    def number(value: int) -> bytes:
        return b"M" + value.to_bytes(2, "little")

    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R(K\x01"
    array += number(len(levels)) + number(3072) + b"\x86cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|")
    array += b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb\x89"
    array += text(raw) + b"tb"
    own = b"(" + b"".join(b"K" + bytes([label]) for label in labels.tolist()) + b"e"
    return b"\x80\x02}(" + text(b"batch_label") + text(b"one") + text(b"labels") + b"]" + own + text(b"data") + array + b"u."


def tarred(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            told = tarfile.TarInfo(name)
            told.size = len(data)
            archive.addfile(told, io.BytesIO(data))


def png(pixels: np.ndarray) -> bytes:
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


def package() -> dict[str, bytes]:
    rows = [part.transpose(0, 2, 3, 1).reshape(COUNT, 1024, 3) for part in LEVELS]
    files = {name: png(part) for name, part in zip((*png_rows.TRAIN, *png_rows.TEST), rows)}
    labels = json.dumps(LABELS[:5].ravel().tolist()).encode(), json.dumps(LABELS[5].tolist()).encode()
    return {f"package/{name}": data for name, data in {**files, **dict(zip(png_rows.LABELS, labels))}.items()}


def unpacked(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def zipped(path: Path, levels: np.ndarray, labels: Sequence[object] | None) -> None:
    names = [f"{i // 20:05d}/img{i:08d}.png" for i in range(len(levels))]
    with zipfile.ZipFile(path, "w") as archive:
        for i in np.random.RandomState(2).permutation(len(levels)):  # the order of names counts, not that in the file
            archive.writestr(names[i], png(levels[i].transpose(1, 2, 0) if levels.shape[1] == 3 else levels[i, 0]))
        archive.writestr("dataset.json", json.dumps({"labels": None if labels is None else [*map(list, zip(names, labels))]}))


def pickled(form: str) -> dict[str, bytes]:
    made = RAW if form == batches.BINARY else [python2(part, own) for part, own in zip(LEVELS, LABELS)]
    return {f"{form}/{name}": data for name, data in zip(batches.names_of(form), made)}


ALL = LEVELS[:5].reshape(-1, 3, 32, 32)
FORMS: dict[str, Callable[[Path], None]] = {
    "binary": lambda folder: unpacked(folder, pickled(batches.BINARY)),
    "python": lambda folder: unpacked(folder, pickled(batches.PYTHON)),
    "binary archive": lambda folder: tarred(folder / "cifar-10-binary.tar.gz", pickled(batches.BINARY)),
    "python archive": lambda folder: tarred(folder / "cifar-10-python.tar.gz", pickled(batches.PYTHON)),
    "package": lambda folder: unpacked(folder, package()),
    "package archive": lambda folder: tarred(folder / png_rows.ARCHIVES[0], package()),
    "zip": lambda folder: zipped(folder / ZIP, ALL, LABELS[:5].ravel().tolist()),
}
