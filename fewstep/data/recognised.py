"""Whether images are those that were published, whatever file they came in: by their count, and by one digest of the levels and labels of
each split where it is known."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np

from fewstep.data.arrays import Images, parts
from fewstep.data.images import ImageData
from fewstep.errors import UsageError

LIST = Path(__file__).with_name("published.json")


def split_digest(images: Images, labels: np.ndarray) -> str:
    """SHA-256 of 8-bit levels [N, C, H, W], then of the labels as little-endian int64. Images go in as level / 127.5 - 1."""
    found = hashlib.sha256()
    for part in parts(images):
        found.update(np.rint((part.astype(np.float64) + 1) * 127.5).astype(np.uint8).tobytes())
    found.update(labels.astype("<i8").tobytes())
    return found.hexdigest()


def pixels(data: ImageData, split: str) -> str:
    """`split_digest` of a set's `train` or `heldout` part, which is kept with its facts."""
    images, labels = (data.train_x, data.train_y) if split == "train" else (data.heldout_x, data.heldout_y)
    return data.fact(f"pixels_{split}", lambda: split_digest(images, labels))


@cache
def _published() -> dict[str, dict[str, tuple[int, str]]]:
    return json.loads(LIST.read_bytes())


def recognised(data: ImageData, where: str) -> ImageData:
    """The set, which is the published one of its name; its held-out part may be absent, as in EDM's zips.

    **Raises**: UsageError for a set of another size, and for one with other images or labels, wherever one bit of them is another.
    """
    for split, (count, digest) in _published().get(data.name, {}).items():
        have = len(data.train_y if split == "train" else data.heldout_y)
        if have != count and (have or split == "train"):
            which = "training" if split == "train" else "held-out"
            own = "get it again, or give a set of your own by its path (data: ./NAME.zip, or a folder of images)"
            raise UsageError(f"{where} has {have:,} {which} images, and {data.name} has {count:,}; {own}")
        if have and digest and (found := pixels(data, split)) != digest:
            what = f"{where} has {count:,} images and labels of {data.name}'s size, but others than the published ones"
            raise UsageError(f"{what} (digest {found[:12]}..., published {digest[:12]}...); delete it and get it again")
    return data
