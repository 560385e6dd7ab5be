"""A sheet of images as a picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from fewstep.files import write_atomic


def sheet(images: np.ndarray, columns: int, scale: int) -> np.ndarray:
    """Images [N, C, H, W] in [-1, 1] tiled in rows of `columns`, enlarged by whole pixels, as uint8 [H', W', C]."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * columns, c, h + 1, w + 1), -1.0, np.float32)
    canvas[:n, :, :h, :w] = images
    tiled = canvas.reshape(rows, columns, c, h + 1, w + 1).transpose(0, 3, 1, 4, 2).reshape(rows * (h + 1), columns * (w + 1), c)
    levels = np.clip(127.5 * tiled + 128, 0, 255).astype(np.uint8)
    return levels.repeat(scale, axis=0).repeat(scale, axis=1)


def write_png(images: np.ndarray, columns: int, path: Path, scale: int = 6) -> None:
    """The sheet of images as a PNG file."""
    _write(sheet(images, columns, scale), path)


def write_image(image: np.ndarray, path: Path) -> None:
    """One image [C, H, W] in [-1, 1] as a PNG file, pixel by pixel."""
    _write(np.clip(127.5 * image.transpose(1, 2, 0) + 128, 0, 255).astype(np.uint8), path)


def _write(pixels: np.ndarray, path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


def by_class(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, int]:
    """The images of a sheet with a column for each class, as many of each as the rarest has, and the number of columns."""
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return images[np.stack([own[: min(map(len, classes))] for own in classes], axis=1).ravel()], len(classes)
