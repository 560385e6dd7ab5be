"""What the samples of a task are compared with: true images and conditions by their seeds, read a part at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fewstep.cond import Cond
from fewstep.data.arrays import Images, parts
from fewstep.tasks.task import Paired
from metrics.metric import Pairs
from metrics.pixels import quantised, to_uint8


@dataclass(frozen=True, eq=False)
class BySeed:
    """Images [N, ...] that a function gives for seeds, when they are indexed."""

    seeds: np.ndarray
    row: tuple[int, ...]
    give: Callable[[Tensor], Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.seeds), *self.row)

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        return self.give(torch.from_numpy(self.seeds[index])).numpy()


def _made(task: Paired, seeds: Tensor) -> Cond:
    return task.asked(task.targets(seeds), seeds)


def _picture(cond: Cond) -> Tensor:
    assert cond.image is not None
    return cond.image


def _mask(cond: Cond) -> Tensor:
    assert cond.mask is not None
    return cond.mask


def _field(task: Paired, get: Callable[[Cond], Tensor], seeds: Tensor) -> Tensor:
    return get(_made(task, seeds))


def _again(task: Paired, all_seeds: np.ndarray, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """See `Pairs.asked`."""
    return task.small(torch.from_numpy(images), torch.from_numpy(all_seeds[rows])).numpy()


def numbered(images: Images) -> np.ndarray:
    """A number for each image [N], that of equal ones the same: by the order in which they first come."""
    numbers, seen = list[int](), dict[bytes, int]()
    for part in parts(images):
        for levels in to_uint8(part):
            numbers.append(seen.setdefault(hashlib.sha256(levels.tobytes()).digest(), len(seen)))
    return np.array(numbers, np.int64)


def pairs_by_seed(task: Paired, seeds: Sequence[int]) -> Pairs:
    """True images and conditions of the samples with these seeds, of a task that is bound to data.

    **Raises**: UsageError for a task that is not bound, or whose data hold out no images.
    """
    every = np.array(seeds, np.int64)
    first = torch.from_numpy(every[:1])
    true, cond = task.targets(first), _made(task, first)
    target = quantised(BySeed(every, tuple(true.shape[1:]), task.targets))
    condition: dict[str, Images] = {}
    if cond.image is not None:
        condition["image"] = BySeed(every, tuple(cond.image.shape[1:]), partial(_field, task, _picture))
    if cond.mask is not None:
        condition["mask"] = BySeed(every, tuple(cond.mask.shape[1:]), partial(_field, task, _mask))
    return Pairs(target, condition, numbered(target), partial(_again, task, every))


def pairs_told(task: Paired, heldout: str) -> Mapping[str, object]:
    """What a protocol says of them: the task with what it is made of, and the digest of the images that are held out."""
    return {"task": repr(task), "made_of": task.identity, "heldout": heldout[:16]}
