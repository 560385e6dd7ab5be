"""What a user asks for by pictures of his own, row by row."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.cond import Cond
from fewstep.data.degradations.masks import check_mask, hidden
from fewstep.data.source import Batch
from fewstep.errors import UsageError
from fewstep.noise import Rng
from fewstep.tasks.task import Asked, Task

INSIDE = 1 + 1e-4  # of [-1, 1], for pictures that were resized or rounded


def check_picture(image: Tensor, count: int, model: Asked) -> None:
    """**Raises**: UsageError for pictures of another number, size, type or range than the model's images [count, *shape] in [-1, 1]."""
    wanted = [count, *model.shape]
    if not isinstance(image, Tensor):
        raise UsageError(f"the condition is a {type(image).__name__}; give a tensor {wanted} in [-1, 1]")
    if not image.is_floating_point():
        raise UsageError(f"the condition is {image.dtype}, and pictures are floats in [-1, 1]; use images / 127.5 - 1")
    if list(image.shape) != wanted:
        raise UsageError(f"the condition has shape {list(image.shape)}, and {count} samples of this model are asked by {wanted}; resize it")
    low, high = (float(v) for v in image.aminmax()) if image.numel() else (0.0, 0.0)
    if not (low >= -INSIDE and high <= INSIDE):  # neither is so for NaN
        raise UsageError(f"the condition has values from {low:g} to {high:g}, and pictures are in [-1, 1]; use images / 127.5 - 1 of uint8")


@dataclass(frozen=True, eq=False)
class Given:
    """The task `base` with pictures [B, C, H, W] for exactly these B samples, and masks [B, 1, H, W] where there are some.

    What a mask hides is grey (0) to the model. With `starts` sampling starts from the pictures. `label` is the class of all of them, by
    default the base's. **Raises**: UsageError for pictures and masks that do not fit the model that is asked.
    """

    base: Task
    image: Tensor
    mask: Tensor | None = None
    starts: bool = False
    label: int | None = None
    version: int = 1

    def __getitem__(self, rows: slice) -> Given:
        """The task of some of the samples."""
        return replace(self, image=self.image[rows], mask=None if self.mask is None else self.mask[rows])

    def check(self, count: int, model: Asked) -> None:
        """**Raises**: UsageError for pictures or masks that do not fit so many samples of a model."""
        check_picture(self.image, count, model)
        if self.mask is not None:
            check_mask(self.mask, count, model.shape[1:])

    def conditions(self, seeds: Tensor, model: Asked) -> Cond:
        self.check(len(seeds), model)
        image, mask = self.image.to(seeds.device), None if self.mask is None else self.mask.to(seeds.device, self.image.dtype)
        if mask is not None:
            image = hidden(image, mask).image
        cond = self.base.conditions(seeds, model)
        label = cond.label if self.label is None else torch.full_like(seeds, self.label)
        return replace(cond, label=label, image=image, mask=mask, drops=("label", "text"))

    def origin(self, cond: Cond) -> Tensor | None:
        return cond.image if self.starts else None

    def example(self, batch: Batch, rng: Rng) -> Batch:
        raise UsageError("pictures that a user gives are for sampling; train on a task of a degradation, e.g. superres_x4")

    def null(self, cond: Cond, model: Asked) -> Cond:
        return self.base.null(cond, model)

    def pixels(self, x: Tensor) -> Tensor:
        return self.base.pixels(x)
