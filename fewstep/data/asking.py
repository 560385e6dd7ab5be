"""Folders of pictures that models are asked by, and of the masks that belong to them: no ground truth, no classes, no split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.data.degradations.bicubic import resized_levels
from fewstep.data.degradations.masks import check_mask
from fewstep.data.folders import SUFFIXES, read_image, read_levels, size_of
from fewstep.errors import UsageError

HOW = "a picture that is a whole number of times smaller is enlarged bicubically, any other resized and cropped as folders of images are"


@dataclass(frozen=True, eq=False)
class Folder:
    """Pictures [N, C, H, W] in [-1, 1] at a model's resolution, the names of their files without endings, and their masks [N, 1, H, W]."""

    names: tuple[str, ...]
    pictures: Tensor
    masks: Tensor | None = None


def _files(folder: Path, what: str) -> dict[str, Path]:
    """The image files of a folder by their names without endings, in order. **Raises**: UsageError for none, or two of one name."""
    if not folder.is_dir():
        raise UsageError(f"{what}={folder} is no folder; give one with PNG, JPEG or WebP files")
    found = dict[str, Path]()
    for file in sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES):
        if file.stem in found:
            raise UsageError(f"{what}={folder} has both {found[file.stem].name} and {file.name}; results would have one name: rename one")
        found[file.stem] = file
    if not found:
        raise UsageError(f"{what}={folder} holds no image of {', '.join(SUFFIXES)}; put some there")
    return found


def _picture(file: Path, channels: int, size: int) -> Tensor:
    """One picture [C, size, size] in [-1, 1], made of that size (`HOW`)."""
    levels = read_levels(file, channels)
    high, wide = levels.shape[1:]
    if high == wide and high < size and size % high == 0:
        return resized_levels(torch.from_numpy(levels.copy())[None] / 127.5 - 1, (size, size))[0]
    if min(high, wide) < size:
        ways = "give one as large, or square and a whole number of times smaller"
        raise UsageError(f"{file} is {wide}x{high}, and the model's pictures are {size}x{size}; {ways}")
    return torch.from_numpy(read_image(file, size, channels).astype(np.float32)) / 127.5 - 1


def asking_folder(pictures: str | Path, shape: tuple[int, ...], masks: str | Path | None = None, small: int | None = None) -> Folder:
    """The pictures of a folder for a model of images `shape`, and of a folder of masks of the same names: white where a picture is hidden.

    `small`: the height and width that they must have, of a model that enlarges pictures of one size. A mask has the size of its picture,
    or the model's; what is brighter than half is hidden. **Raises**: UsageError for a model of other than square grey or RGB images,
    files that cannot be read, are too small or of another size, masks that do not match in names, number or size, and masks that hide
    everything or nothing.
    """
    if len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]:
        raise UsageError(f"folders of pictures are for models of square grey or RGB images, and this one's are {list(shape)}")
    files = _files(Path(pictures), "condition")
    names, size = tuple(files), shape[1]
    for file in files.values() if small else ():
        if (own := size_of(file)) != (small, small):
            raise UsageError(f"{file} is {own[0]}x{own[1]}, and this model enlarges pictures of {small}x{small}; give it those")
    found = torch.stack([_picture(file, shape[0], size) for file in files.values()])
    if masks is None:
        return Folder(names, found)
    own = _files(Path(masks), "mask")
    if set(own) != set(files):
        first = sorted(set(own) ^ set(files))[0]
        where = f"{first} has no mask" if first in files else f"the mask {first} has no picture"
        raise UsageError(f"{len(files)} pictures in {pictures} and {len(own)} masks in {masks} do not match: {where}; use equal names")
    hidden = torch.stack([_mask(own[name], files[name], size) for name in names])
    for row, name in enumerate(names):
        check_mask(hidden[row : row + 1], 1, shape[1:], f"mask {own[name]}")
    return Folder(names, found, hidden)


def _mask(file: Path, of: Path, size: int) -> Tensor:
    """One mask [1, size, size]: resized and cropped as its picture is, where it has its size."""
    high, wide = read_levels(file, 1).shape[1:]
    theirs = read_levels(of, 1).shape[1:]
    if (high, wide) not in (theirs, (size, size)):
        raise UsageError(
            f"mask {file} is {wide}x{high} and its picture {theirs[1]}x{theirs[0]}; give it the picture's size, or {size}x{size}"
        )
    if min(high, wide) < size:  # of a picture that is enlarged
        levels = torch.from_numpy(read_levels(file, 1).copy())
        return (levels.repeat_interleave(size // high, 1).repeat_interleave(size // wide, 2) > 127).float()
    return torch.from_numpy((read_image(file, size, 1) > 127).astype(np.float32))
