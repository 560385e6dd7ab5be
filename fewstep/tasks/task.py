"""The contract of a task, which training, sampling and measuring share: no solver, distiller, loss or metric asks which task it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from fewstep.cond import Cond
from fewstep.data.images import ImageData
from fewstep.data.source import Batch
from fewstep.noise import Rng


class Asked(Protocol):
    """What a task reads of the model that is asked (a `Denoiser`): the shape of its images and its number of classes."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def classes(self) -> int: ...


class Task(Protocol):
    """A frozen dataclass. `version` rises when the same seeds are asked for something else."""

    @property
    def version(self) -> int: ...

    def conditions(self, seeds: Tensor, model: Asked) -> Cond:
        """The conditions of the samples with these seeds [B], each a function of its seed alone. Their `drops` name the fields that
        guidance leaves out."""
        ...

    def example(self, batch: Batch, rng: Rng) -> Batch:
        """A batch of the data (images and labels) as condition and target."""
        ...

    def null(self, cond: Cond, model: Asked) -> Cond:
        """The condition that stands for none, in tensors of the same shapes: what training puts in place of what it drops."""
        ...

    def pixels(self, x: Tensor) -> Tensor:
        """The model's outputs [B, *shape] as images [B, C, H, W] in [-1, 1]: through a decoder, where the model works in its latents."""
        ...


@runtime_checkable
class Coded(Task, Protocol):
    """A task of a model that works on latents: `pixels` decodes, `latents` encodes."""

    def latents(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] as the model's own [B, *shape]."""
        ...


@runtime_checkable
class Paired(Task, Protocol):
    """A task whose conditions are made of true images, so that its samples can be compared with them: super-resolution, inpainting.

    When samples are drawn the images are those held out of the data that it is `bound` to.
    """

    @property
    def each(self) -> int:
        """The samples of each condition, whose seeds follow each other."""
        ...

    @property
    def identity(self) -> str:
        """What can change the pictures that are made of an image."""
        ...

    def channels(self, shape: Sequence[int]) -> int:
        """The channels of what networks are told of an image of that shape: the condition's image, and its mask where it has one."""
        ...

    def bound(self, data: ImageData) -> Paired:
        """The task on these data."""
        ...

    def asked(self, images: Tensor, seeds: Tensor) -> Cond:
        """The conditions made of true images [B, C, H, W], each a function of its image and its seed [B] alone."""
        ...

    def small(self, images: Tensor, seeds: Tensor) -> Tensor:
        """The pictures of `asked`, before they were enlarged to the model's resolution where they were."""
        ...

    def targets(self, seeds: Tensor) -> Tensor:
        """The true images [B, C, H, W] that the conditions of these seeds [B] are made of. **Raises**: UsageError where it is not bound."""
        ...


@runtime_checkable
class Started(Task, Protocol):
    """A task that says where sampling starts: x = origin + sigma_start n, as SDEdit does (arXiv 2108.01073, equation 4).

    `starts` says whether it starts from pictures, which models are then not told.
    """

    @property
    def starts(self) -> bool: ...

    def origin(self, cond: Cond) -> Tensor | None:
        """The picture [B, *shape] that samples under this condition start from; None where they start from noise alone."""
        ...


def origin_of(task: Task, cond: Cond) -> Tensor | None:
    """The picture that samples under a task's condition start from; None of most tasks."""
    return task.origin(cond) if isinstance(task, Started) else None
