"""How a picture that a model is asked by is made of a true image: the contract of what is registered as `degradation`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class Told(NamedTuple):
    """What a model is told of an image: a picture [B, C, H, W] in [-1, 1], and a mask [B, 1, H, W] that is 1 where nothing is told."""

    image: Tensor
    mask: Tensor | None = None


class Degradation(Protocol):
    """Makes conditions of true images. A frozen dataclass, registered as `degradation`; `version` rises when it makes others of them."""

    @property
    def version(self) -> int: ...

    def channels(self, shape: Sequence[int]) -> int:
        """The channels of image and mask together, for images of a shape. **Raises**: UsageError for one that it cannot be of."""
        ...

    def __call__(self, images: Tensor, seeds: Tensor) -> Told:
        """images [B, C, H, W] in [-1, 1], seeds [B] int64: each picture is a function of its image and its seed alone."""
        ...


@runtime_checkable
class Small(Degradation, Protocol):
    """A degradation whose pictures are enlarged images: what other programs for super-resolution are given is the small one."""

    def small(self, images: Tensor, seeds: Tensor) -> Tensor:
        """The small images [B, C, h, w] in [-1, 1], of whole 8-bit levels, of the same images and seeds."""
        ...
