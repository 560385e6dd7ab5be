"""Generation: images of a class, or images as such."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.cond import NULL, Cond
from fewstep.data.source import Batch
from fewstep.errors import UsageError, near_misses
from fewstep.noise import LATENT, EDMNoise, Rng
from fewstep.plugins import get, register
from fewstep.tasks.task import Asked, Task

LABELS = ("balanced", "edm")


@register("task", "class_conditional", "none (the common case)")
@register("task", "class_conditional_edm", "arXiv 2206.00364, released code", labels="edm")
@dataclass(frozen=True)
class ClassConditional:
    """Images of a class. Sample i is of class seed_i mod classes (`balanced`), so that any full run has as many of each; with `edm` of the
    class that the image's own generator draws after its first noise, as in the published code (on the CPU: see `EDMNoise`).

    **Raises**: UsageError for another rule.
    """

    labels: str = "balanced"
    version: int = 1

    def __post_init__(self) -> None:
        if self.labels not in LABELS:
            raise UsageError(f"class_conditional draws labels {' or '.join(LABELS)}, got '{self.labels}'{near_misses(self.labels, LABELS)}")

    def conditions(self, seeds: Tensor, model: Asked) -> Cond:
        if not model.classes:
            return NULL
        if self.labels == "edm":
            published = EDMNoise(seeds, model.classes)
            published.normal(LATENT, model.shape)
            return Cond(published.drawn_classes)
        return Cond(seeds % model.classes)

    def example(self, batch: Batch, rng: Rng) -> Batch:
        return batch

    def null(self, cond: Cond, model: Asked) -> Cond:
        return cond if cond.label is None else replace(cond, label=torch.full_like(cond.label, model.classes))

    def pixels(self, x: Tensor) -> Tensor:
        return x


@register("task", "unconditional", "none (the common case)")
@dataclass(frozen=True)
class Unconditional:
    """Images as such, also of data that have labels."""

    version: int = 1

    def conditions(self, seeds: Tensor, model: Asked) -> Cond:
        return NULL

    def example(self, batch: Batch, rng: Rng) -> Batch:
        return replace(batch, cond=NULL)

    def null(self, cond: Cond, model: Asked) -> Cond:
        return cond

    def pixels(self, x: Tensor) -> Tensor:
        return x


def task_name(model: Asked, name: str = "") -> str:
    """That name, by default generation: of a class where the model has classes."""
    return name or ("class_conditional" if model.classes else "unconditional")


def task_for(model: Asked, name: str = "") -> Task:
    """The task of that name, or generation."""
    return get("task", task_name(model, name)).make()
