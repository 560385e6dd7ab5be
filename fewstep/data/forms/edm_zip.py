"""EDM's data sets: a zip of PNG files of one size, and dataset.json with their labels (arXiv 2206.00364, its dataset tool)."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fewstep.data.forms.decoded import Blocks, Reading
from fewstep.errors import UsageError, one_line
from fewstep.progress import bar_settings

JSON = "dataset.json"
SUFFIXES = (".png",)
TOGETHER = 256  # images decoded before they are written
CLASSES = 100_000  # the most that labels may be of, each of which costs memory later; the largest set has 21,841
BROKEN = (OSError, EOFError, KeyError, ValueError, SyntaxError, RuntimeError, zipfile.BadZipFile, zlib.error, Image.DecompressionBombError)


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    """**Raises**: UsageError for an archive that is truncated, altered or something else."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except BROKEN as err:
        what = one_line(str(err)) or type(err).__name__
        raise UsageError(f"{file} is no data set of EDM's ({what}); make it again with its dataset tool, or get it again") from None


def _names(archive: zipfile.ZipFile) -> list[str]:
    """The images in the order that EDM reads them in."""
    names = sorted(name for name in archive.namelist() if name.lower().endswith(SUFFIXES))
    if not names:
        raise ValueError(f"no {', '.join(SUFFIXES)} file in it")
    return names


def _told(archive: zipfile.ZipFile) -> dict[str, Any]:
    """The label of each image by its name; nothing of a set without labels."""
    if JSON not in archive.namelist():
        return {}
    found = json.loads(archive.read(JSON))
    pairs = (found.get("labels") if isinstance(found, dict) else None) or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"{JSON} has labels that are no list of [name, class]")
    return {str(name).replace("\\", "/"): label for name, label in pairs}


def _labels(archive: zipfile.ZipFile, names: Sequence[str]) -> tuple[np.ndarray, bool]:
    """A label for each image, and whether the set has any."""
    told = _told(archive)
    if not told:
        return np.zeros(len(names), np.int64), False
    if lacking := [name for name in names if name not in told]:
        raise ValueError(f"{JSON} has no label of {lacking[0]}")
    labels = [told[name] for name in names]
    if not all(type(label) is int and 0 <= label < CLASSES for label in labels):
        raise ValueError(f"{JSON} has labels that are no classes 0, 1, ... below {CLASSES:,}")
    return np.array(labels, np.int64), True


def _image(raw: bytes, name: str) -> np.ndarray:
    """One image as uint8 [C, H, W], grey or RGB."""
    with Image.open(io.BytesIO(raw), formats=("PNG",)) as image:
        if image.mode not in ("L", "RGB"):
            raise ValueError(f"{name} is of mode {image.mode}, not grey or RGB of 8 bits")
        pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _blocks(file: Path, names: Sequence[str], shape: tuple[int, ...]) -> Blocks:
    from tqdm import tqdm

    with _opened(file) as archive:
        several = list[np.ndarray]()
        for name in tqdm(names, f"reading {file.name}", unit="img", **bar_settings()):
            pixels = _image(archive.read(name), name)
            if pixels.shape != shape:
                raise ValueError(f"{name} is {list(pixels.shape)}, and {names[0]} {list(shape)}")
            several.append(pixels)
            if len(several) == TOGETHER:
                yield np.stack(several)
                several = []
        if several:
            yield np.stack(several)


def read(file: Path) -> Reading:
    """The images of a zip and their labels, all of them for training. **Raises**: UsageError."""
    with _opened(file) as archive:
        names = _names(archive)
        labels, labelled = _labels(archive, names)
        shape = _image(archive.read(names[0]), names[0]).shape
    return Reading(labels, int(labels.max()) + 1 if labelled else 0, len(names), shape, _blocks(file, names, shape))
