"""Tasks that are asked by a picture: what it is made of a true image by, and which true image belongs to a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fewstep.checks import check_count
from fewstep.cond import Cond
from fewstep.data.degradation import Degradation, Small
from fewstep.data.images import ImageData
from fewstep.data.source import Batch
from fewstep.errors import UsageError
from fewstep.noise import Rng
from fewstep.plugins import get, register
from fewstep.tasks.task import Asked

SEEDS = 2**31  # of training examples, drawn from the batch's stream


@register("task", "superres_x2", "arXiv 2310.01407 (task)", degradation="bicubic_x2")
@register("task", "superres_x4", "arXiv 2310.01407 (task)", degradation="bicubic_x4")
@register("task", "superres_x4_labelled", "arXiv 2310.01407 (task)", degradation="bicubic_x4", labels=True)
@register("task", "superres_x2_real", "arXiv 2310.01407 (task)", degradation="realesrgan_x2")
@register("task", "superres_x4_real", "arXiv 2310.01407 (task)", degradation="realesrgan_x4")
@register("task", "superres_x2_real_small", "arXiv 2310.01407 (task)", degradation="realesrgan_x2_small")
@register("task", "superres_x4_real_small", "arXiv 2310.01407 (task)", degradation="realesrgan_x4_small")
@register("task", "inpaint_centre", "arXiv 2111.05826 (task)", degradation="hidden_centre")
@register("task", "inpaint_half", "arXiv 2201.09865 (task)", degradation="hidden_half")
@register("task", "inpaint_rectangles", "arXiv 2111.05826 (task)", degradation="hidden_rectangles")
@register("task", "inpaint_strokes", "arXiv 2111.05826 (task)", degradation="hidden_strokes")
@register("task", "edit_posterised", "arXiv 2108.01073 (task)", degradation="posterised", starts=True)
@register("task", "edit_strokes", "arXiv 2108.01073 (task)", degradation="strokes", starts=True)
@register("task", "edit_strokes_labelled", "arXiv 2108.01073 (task)", degradation="strokes", starts=True, labels=True)
@dataclass(frozen=True)
class Pictured:
    """Images, asked for by a degraded picture of each: sample i is of held-out image k mod their number with the seed k = i / `each`.

    With `labels` networks are told the class as well. Guidance leaves out the label alone: the picture stays. With `starts` sampling
    starts from the picture under noise, as SDEdit does, and not from noise alone.
    **Raises**: UsageError for another degradation, and for samples of a task that is not bound to data.
    """

    degradation: str = "bicubic_x4"
    labels: bool = False
    each: int = 1
    starts: bool = False
    version: int = 1
    data: ImageData | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        get("degradation", self.degradation)
        check_count("the samples of each condition", self.each, 1, "e.g. each=1")

    @property
    def degrade(self) -> Degradation:
        return get("degradation", self.degradation).make()

    @property
    def identity(self) -> str:
        return f"{self.degradation} {self.degrade.version}{' and labels' if self.labels else ''}"

    def channels(self, shape: Sequence[int]) -> int:
        return self.degrade.channels(shape)

    def bound(self, data: ImageData) -> Pictured:
        return replace(self, data=data)

    def _indices(self, seeds: Tensor) -> Tensor:
        if self.data is None or not len(self.data.heldout_x):
            held = "no data" if self.data is None else f"{self.data.name}, which holds out no images"
            raise UsageError(f"samples of {self.degradation} are asked for by held-out images, and the task has {held}; bind it to data")
        return (seeds // self.each % len(self.data.heldout_x)).cpu()

    def origin(self, cond: Cond) -> Tensor | None:
        return cond.image if self.starts else None

    def targets(self, seeds: Tensor) -> Tensor:
        index = self._indices(seeds).numpy()
        assert self.data is not None
        return torch.from_numpy(self.data.heldout_x[index]).to(seeds.device)

    def asked(self, images: Tensor, seeds: Tensor) -> Cond:
        told = self.degrade(images, seeds // self.each)  # the samples of one condition share what is drawn for it, too
        return Cond(image=told.image, mask=told.mask, drops=("label", "text"))

    def small(self, images: Tensor, seeds: Tensor) -> Tensor:
        own = self.degrade
        return own.small(images, seeds // self.each) if isinstance(own, Small) else own(images, seeds // self.each).image

    def conditions(self, seeds: Tensor, model: Asked) -> Cond:
        cond = self.asked(self.targets(seeds), seeds)
        if not (self.labels and model.classes):
            return cond
        assert self.data is not None
        return replace(cond, label=torch.from_numpy(self.data.heldout_y[self._indices(seeds).numpy()]).to(seeds.device))

    def example(self, batch: Batch, rng: Rng) -> Batch:
        cond = self.asked(batch.x0, rng.integers(SEEDS, (len(batch.x0),)))
        return replace(batch, cond=replace(cond, label=batch.cond.label if self.labels else None))

    def null(self, cond: Cond, model: Asked) -> Cond:
        return cond if cond.label is None else replace(cond, label=torch.full_like(cond.label, model.classes))

    def pixels(self, x: Tensor) -> Tensor:
        return x
