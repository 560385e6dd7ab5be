"""EDM's data sets at 64x64, and any other zip of theirs by its path: PNG files and dataset.json, read without being unpacked."""

from __future__ import annotations

from pathlib import Path

from fewstep.assets import data_folder, fetched_folder, shown
from fewstep.data.arrays import Scaled
from fewstep.data.forms import edm_zip
from fewstep.data.forms.decoded import decoded
from fewstep.data.images import ImageData
from fewstep.data.recognised import recognised
from fewstep.errors import Unavailable, UsageError
from fewstep.plugins import register

VERSION = "1"  # of how they are decoded: raised when other levels or labels come out
HOW = "levels as in the zip (cropped and resized when it was made), / 127.5 - 1; all images for training"


def zip_set(path: str | Path, name: str = "") -> ImageData:
    """The images of a zip in [-1, 1] (level / 127.5 - 1) in the order of their names, which is EDM's; none is held out, as in its protocol.

    Decoded once into 8-bit levels in the cache folder. **Raises**: UsageError for a file that is broken or no such zip.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"{file} is no file; give the path of a zip that EDM's dataset tool made, or the folder of images")
    made = decoded([file], f"zip {VERSION}", lambda: edm_zip.read(file))
    x, y, cut = made.levels, made.labels, made.train
    return ImageData(name or file.stem, made.classes, Scaled(x[:cut]), y[:cut], Scaled(x[cut:]), y[cut:], how=HOW).beside([file])


def _known(name: str, file: str, classes: int) -> ImageData:
    """**Raises**: Unavailable where the zip is not there; UsageError where it holds other images than a set of this name."""
    places = data_folder(), fetched_folder()
    found = next((place / file for place in places if (place / file).is_file()), None)
    if found is None:
        where = f"{places[0]} and {shown(places[1])}"
        raise Unavailable(f"{file} is not in {where} (make it with EDM's dataset tool and put it there, or set FEWSTEP_DATA)")
    data = zip_set(found, name)
    if data.shape != (3, 64, 64) or (classes and not 0 < data.classes <= classes):
        what = f"images {list(data.shape)} {f'in {data.classes} classes' if data.classes else 'without labels'}"
        raise UsageError(
            f"{found} holds {what}, and {name} is [3, 64, 64] in {classes or 'none'}; make it at 64x64, or give it another name"
        )
    return recognised(data if classes or not data.classes else data.unlabelled(), str(found))


@register("data", "imagenet64", "arXiv 2206.00364")
def imagenet64() -> ImageData:
    """ImageNet at 64x64 in 1,000 classes, from imagenet-64x64.zip."""
    return _known("imagenet64", "imagenet-64x64.zip", 1000)


@register("data", "ffhq64", "arXiv 2206.00364", augment="flip")
def ffhq64() -> ImageData:
    """FFHQ at 64x64, without classes, from ffhq-64x64.zip."""
    return _known("ffhq64", "ffhq-64x64.zip", 0)


@register("data", "afhqv2", "arXiv 2206.00364", augment="flip")
def afhqv2() -> ImageData:
    """AFHQv2 at 64x64, from afhqv2-64x64.zip; the classes of its zip are left out, as EDM's networks know none."""
    return _known("afhqv2", "afhqv2-64x64.zip", 0)
