"""Images that another program made, by the names of their files: which true image each belongs to, and what it was made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from bench.evaluate.pairs import BySeed, numbered, pairs_by_seed, pairs_told
from fewstep.data.arrays import Images, Picked
from fewstep.data.folders import SUFFIXES, read_levels, size_of
from fewstep.data.images import ImageData
from fewstep.errors import UsageError
from fewstep.progress import bar_settings
from fewstep.tasks.task import Paired
from metrics.metric import Pairs
from metrics.pixels import LEVELS, quantised, to_uint8

DIGITS = 5  # of the numbers that exported files are called by
HELD = "heldout_images"  # in a protocol: how many there are, of which outputs may be some
HIDDEN = 255  # the level of a mask's file where the image is hidden


@dataclass(frozen=True, eq=False)
class Files:
    """Images [N, C, H, W] in [-1, 1] in as many files, each read when it is indexed, as it is.

    **Raises**: UsageError for a file of another size, when it is read.
    """

    files: tuple[Path, ...]
    row: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.files), *self.row)

    def __len__(self) -> int:
        return len(self.files)

    def levels(self, index: slice | np.ndarray) -> np.ndarray:
        """uint8 [B, C, H, W]."""
        found = np.empty((len(rows := np.arange(len(self))[index]), *self.row), np.uint8)
        for place, i in enumerate(rows):
            one = read_levels(self.files[i], self.row[0])
            if one.shape != self.row:
                sizes = f"{one.shape[2]} x {one.shape[1]}, and {self.files[0].name} is {self.row[2]} x {self.row[1]}"
                raise UsageError(f"{self.files[i]} is {sizes}; images of one folder have one size, cut them to it")
            found[place] = one
        return found

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        return LEVELS[self.levels(index)]


@dataclass(frozen=True, eq=False)
class MaskFiles:
    """Masks [N, 1, H, W] in files that are white where the image is hidden and black elsewhere.

    **Raises**: UsageError for a file with other levels, when it is read.
    """

    files: Files

    @property
    def shape(self) -> tuple[int, ...]:
        return self.files.shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        levels = self.files.levels(index)
        if not np.isin(levels, (0, HIDDEN)).all():
            raise UsageError(
                f"masks in {self.files.files[0].parent} are white where hidden and black elsewhere, and have other levels, too"
            )
        return (levels == HIDDEN).astype(np.float32)


def named_files(folder: str | Path, suffix: str = "") -> dict[str, Path]:
    """The image files of a folder by their names without ending, and without the `suffix` that a program adds to them.

    **Raises**: UsageError for what is no folder of images, for one with subfolders, two files of one name, or a name without the suffix.
    """
    place = Path(folder)
    if not place.is_dir():
        raise UsageError(f"{place} is no folder; give one of PNG, JPEG or WebP files")
    files = sorted(file for file in place.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise UsageError(f"{place} holds no images ({', '.join(SUFFIXES)}); give the folder that they lie in")
    found: dict[str, Path] = {}
    for file in files:
        if not file.stem.endswith(suffix):
            raise UsageError(f"{file} does not end in suffix={suffix}; say what is added to every name")
        name = file.stem.removesuffix(suffix)
        if name in found:
            raise UsageError(f"{place} has {found[name].name} and {file.name}, which are of one name; keep one of them")
        found[name] = file
    return found


def opened(files: Sequence[Path], channels: int) -> Files:
    """Files as images of the size of the first. **Raises**: UsageError for one of another size."""
    wanted = size_of(files[0])
    for file in files:
        if (own := size_of(file)) != wanted:
            sizes = f"{own[0]} x {own[1]}, and {files[0].name} is {wanted[0]} x {wanted[1]}"
            raise UsageError(f"{file} is {sizes}; images of one folder have one size, cut them to it")
    return Files(tuple(files), read_levels(files[0], channels).shape)


def partners(names: Iterable[str], folder: str | Path, own: str | Path) -> list[Path]:
    """The file of each name in another folder. **Raises**: UsageError where one lacks an image that the other has."""
    names, found = list(names), named_files(folder)
    strange = next((name for name in names if name not in found), None)
    counts = f"({len(names)} images there, {len(found)} here)"
    if strange is not None:
        raise UsageError(f"{own} has '{strange}', which {folder} lacks {counts}; give both the same names, or suffix= that the tool adds")
    missing = next((name for name in found if name not in set(names)), None)
    if missing is not None:
        raise UsageError(f"{own} lacks '{missing}', which {folder} has {counts}; make all of them, or keep no others in {folder}")
    return [found[name] for name in names]


def numbers_in(names: Iterable[str], count: int, own: str | Path, data: ImageData) -> np.ndarray:
    """The numbers of samples that files are called by. **Raises**: UsageError for a name that is none, and a number that comes twice."""
    seen: dict[int, str] = {}
    for name in names:
        if not name.isdecimal() or int(name) >= count:
            what = f"images of {data.name} are called by their numbers, 0 to {count - 1}"
            raise UsageError(f"{own} has '{name}', and held-out {what}, as export= writes them; rename it, or give targets=FOLDER")
        if int(name) in seen:
            raise UsageError(f"{own} has '{seen[int(name)]}' and '{name}', which are of one held-out image; keep one of them")
        seen[int(name)] = name
    return np.array(list(seen), np.int64)


@dataclass(frozen=True)
class Compared:
    """Where outputs lie and what they are compared with: `targets` a folder, or the data set whose held-out images are called by number.

    A `task` that is bound to the data set makes the conditions of its images; else they may lie in folders of their own.
    """

    images: str
    targets: str | ImageData
    task: Paired | None = None
    condition: str = ""
    mask: str = ""
    suffix: str = ""

    def read(self, channels: int = 3) -> tuple[Files, Pairs]:
        """The outputs in the order of their names, and what each is compared with.

        **Raises**: UsageError for folders whose names, counts or sizes do not match.
        """
        own = named_files(self.images, self.suffix)
        channels = channels if isinstance(self.targets, str) else self.targets.shape[0]
        files = opened(list(own.values()), channels)
        if self.task is not None and not isinstance(self.targets, str):
            every = len(self.targets.heldout_x) * self.task.each
            told = {**pairs_told(self.task, self.targets.heldout_digest()), HELD: len(self.targets.heldout_x)}
            pairs = replace(pairs_by_seed(self.task, numbers_in(own, every, self.images, self.targets).tolist()), told=told)
        else:
            true = self._true(own, channels)
            given = {"image": (self.condition, channels), "mask": (self.mask, 1)}
            named = {what: opened(partners(own, place, self.images), count) for what, (place, count) in given.items() if place}
            condition: dict[str, Images] = {what: MaskFiles(read) if what == "mask" else read for what, read in named.items()}
            pairs = Pairs(quantised(true), condition, numbered(true), told=self._told())
        for what, other in (("the true image", pairs.target), *pairs.condition.items()):
            if other.shape[2:] != files.shape[2:]:
                sizes = " and ".join(f"{wide} x {high}" for high, wide in (files.shape[2:], other.shape[2:]))
                raise UsageError(f"outputs in {self.images} and {what} of each are of {sizes}; compare images of one size")
        return files, pairs

    def _told(self) -> dict[str, object]:
        """What a protocol says of true images and conditions that lie in folders, or are a data set's."""
        named = {"condition": self.condition, "mask": self.mask, "suffix": self.suffix}
        data = self.targets if isinstance(self.targets, ImageData) else None
        true: dict[str, object] = (
            {"targets": str(self.targets)}
            if data is None
            else {"targets": data.name, "heldout": data.heldout_digest()[:16], HELD: len(data.heldout_x)}
        )
        return {**true, **{what: value for what, value in named.items() if value}}

    def _true(self, own: dict[str, Path], channels: int) -> Images:
        if isinstance(self.targets, str):
            return opened(partners(own, self.targets, self.images), channels)
        held = self.targets.heldout_x
        return Picked(held, numbers_in(own, len(held), self.images, self.targets))


def _write(folder: Path, images: Images, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in tqdm(range(len(images)), f"writing {name}", unit="img", **bar_settings()):
        levels = to_uint8(images[i : i + 1])[0]
        Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)).save(folder / f"{i:0{DIGITS}d}.png")


def _small(task: Paired, seeds: torch.Tensor) -> torch.Tensor:
    return task.small(task.targets(seeds), seeds)


def export(task: Paired, count: int, folder: Path) -> list[str]:
    """Write what another program needs to do the task: `target`, `condition` (as networks are told it), `mask` (white where hidden) and
    `small`, where conditions are enlarged pictures. Returns the names of the folders; files are called by the sample's seed.

    **Raises**: UsageError for a folder that has such files already.
    """
    seeds = range(count)
    pairs = pairs_by_seed(task, seeds)
    parts: dict[str, Images] = {"target": pairs.target, "condition": pairs.condition["image"]}
    if "mask" in pairs.condition:
        mask = pairs.condition["mask"]
        parts["mask"] = BySeed(np.arange(count), tuple(mask.shape[1:]), lambda index: torch.from_numpy(2 * mask[index.numpy()] - 1))
    if (small := tuple(_small(task, torch.arange(1)).shape[1:])) != tuple(pairs.condition["image"].shape[1:]):
        parts["small"] = BySeed(np.arange(count), small, partial(_small, task))
    for name in parts:  # before anything is written
        if (folder / name).exists() and any((folder / name).iterdir()):
            raise UsageError(f"{folder / name} holds files already; export to another folder")
    for name, images in parts.items():
        _write(folder / name, images, name)
    return list(parts)
