"""Folders of images: PNG, JPEG and WebP files, in class subfolders or none, resized and cropped to one size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from fewstep.data.arrays import Images, Joined, Picked, Scaled
from fewstep.data.images import ImageData, split
from fewstep.data.kept import cache_folder, mapped, spool, stamp_of, text_digest
from fewstep.errors import UsageError, one_line
from fewstep.progress import bar_settings

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
HOW = "shorter side resized with Lanczos' filter, then cropped at the centre"


def _files(folder: Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Image files in order, their classes by subfolder (0 without any), and the names of the classes."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder of images; give one with PNG, JPEG or WebP files, or with a subfolder for each class")
    parts = sorted(part for part in folder.iterdir() if part.is_dir() and not part.name.startswith("."))
    loose = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if parts and loose:
        raise UsageError(f"{folder} holds images ({loose[0].name}, ...) beside subfolders ({parts[0].name}, ...); use one or the other")
    groups = [sorted(file for file in part.iterdir() if file.suffix.lower() in SUFFIXES) for part in parts] or [loose]
    return (
        [file for group in groups for file in group],
        [i for i, group in enumerate(groups) for _ in group],
        tuple(part.name for part in parts),
    )


@contextmanager
def _opened(file: Path) -> Iterator[ImageFile.ImageFile]:
    """An image file. **Raises**: UsageError for one that is broken, wherever that shows."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            yield image
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise UsageError(f"{file} cannot be read as an image ({one_line(str(err)) or type(err).__name__}); restore or remove it") from None


def _size(file: Path) -> tuple[int, int]:
    """Width and height."""
    with _opened(file) as image:
        return image.size


def _image(file: Path, channels: int) -> Image.Image:
    """An image, turned as its EXIF says, grey or RGB.

    **Raises**: UsageError for a file that is broken, has more than 8 bits, or is transparent.
    """
    with _opened(file) as opened:
        deep = any(";16" in str(part[3]) for part in opened.tile)  # which some modes do not tell
        opened.load()
        image = ImageOps.exif_transpose(opened)
    if deep or image.mode.startswith(("I", "F")):
        raise UsageError(f"{file} has more than 8 bits a channel (mode {image.mode}); save it with 8")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            raise UsageError(f"{file} is transparent in places, and what shows there nobody knows; save it without transparency")
    return image.convert("L" if channels == 1 else "RGB")


def _channels_first(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[None] if image.mode == "L" else pixels.transpose(2, 0, 1)


def pixels_of(file: Path, channels: int) -> np.ndarray:
    """One image at its own size as uint8 [channels, H, W], read as `read_image` does."""
    return _channels_first(_image(file, channels)).copy()


def read_image(file: Path, size: int, channels: int) -> np.ndarray:
    """One image as uint8 [channels, size, size]: turned as its EXIF says, grey or RGB, resized and cropped (`HOW`).

    **Raises**: UsageError for a file that is broken, has more than 8 bits, is transparent, or is smaller than asked.
    """
    image = _image(file, channels)
    if min(image.size) < size:
        raise UsageError(f"{file} is {image.width}x{image.height}, smaller than the {size}x{size} asked for; remove it or ask for less")
    scale = size / min(image.size)
    wide, high = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((wide, high), Image.Resampling.LANCZOS) if scale < 1 else image
    left, top = (wide - size) // 2, (high - size) // 2
    return _channels_first(image.crop((left, top, left + size, top + size)))


def _own_size(files: list[Path]) -> int:
    """The shorter side of the smallest image."""
    return min(min(_size(file)) for file in files)


def _levels(folder: Path, files: list[Path], shape: tuple[int, ...] | None) -> tuple[np.ndarray, Path | None, str]:
    """All images as uint8 [N, C, H, W], the folder in which they are kept, and what says that they are of these files as they are.

    They are decoded once, into the cache folder; where there is none they are decoded at every time, into memory.
    """
    asked = "own" if shape is None else "x".join(map(str, shape))
    place, stamp = cache_folder("images", text_digest(str(folder.absolute()))[:16]), text_digest(stamp_of(files), HOW, PIL.__version__)[:16]
    found = None if place is None else next(iter(sorted(place.glob(f"{asked}-*-{stamp}.npy"))), None)
    if found is not None:
        size = tuple(map(int, found.name.removeprefix(f"{asked}-").split("-")[0].split("x")))
        if (levels := mapped(found, (len(files), *size))) is not None:
            return levels, place, stamp
    size = shape or (3, *(_own_size(files),) * 2)
    decoded = (read_image(file, size[1], size[0]) for file in tqdm(files, f"reading {folder.name}", unit="img", **bar_settings()))
    if place is not None:
        with suppress(OSError):  # a full disk, say
            for old in place.glob(f"{asked}-*.npy"):
                old.unlink()
            return spool(place / f"{asked}-{'x'.join(map(str, size))}-{stamp}.npy", (len(files), *size), decoded), place, stamp
    levels = np.empty((len(files), *size), np.uint8)
    for row, file in zip(levels, files):
        row[:] = read_image(file, size[1], size[0])
    return levels, None, stamp


def image_folder(path: str | Path, shape: tuple[int, ...] | None = None, name: str = "") -> ImageData:
    """The images of a folder in [-1, 1] (level / 127.5 - 1), a fifth of each class held out by a fixed permutation (seed 0).

    Subfolders are classes, in the order of their names; without any there are none. `shape` [C, H, W], H = W, is what they are made: by
    default RGB at the shorter side of the smallest of them. **Raises**: UsageError for a folder or a file that cannot be used.
    """
    folder = Path(path)
    files, labels, names = _files(folder)
    if shape is not None and (len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]):
        raise UsageError(f"images of a folder are made grey or RGB squares, [1 or 3, size, size], and the model has {list(shape)}")
    y = np.array(labels, np.int64)
    a, b = split(y, len(names), lambda label: str(folder / names[label] if names else folder), f" of {', '.join(SUFFIXES)}")
    levels, place, stamp = _levels(folder, files, shape)
    shape, x = levels.shape[1:], Scaled(levels)
    how = f"{HOW}, to {list(shape)}"
    data = ImageData(name or folder.name, len(names), Picked(x, a), y[a], Picked(x, b), y[b], names, how)
    return data if place is None else data.with_facts((place / f"{'x'.join(map(str, shape))}.json",), stamp)


def whole(data: ImageData) -> tuple[Images, np.ndarray]:
    """All images of a set and their labels, held-out ones too."""
    return Joined((data.train_x, data.heldout_x)), np.concatenate([data.train_y, data.heldout_y])
