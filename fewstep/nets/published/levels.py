"""The levels of published U-Nets, as their configurations give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.checks import check_count
from fewstep.errors import UsageError

OPTIONS = ("channels", "mult", "blocks", "attention")


@dataclass(frozen=True)
class Levels:
    """The levels of a U-Net on images [image, size, size]: `mult` times `channels` and `blocks` of each. `attention` says which of them
    attend as its checkpoints do: by their size, or by how often they were halved."""

    image: int
    size: int
    channels: int
    mult: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]

    @classmethod
    def of(cls, what: str, shape: Sequence[int], classes: int, given: Mapping[str, Any]) -> Levels:
        """**Raises**: UsageError for sizes that no such network has."""
        if isinstance(shape, str) or len(shape) != 3 or shape[1] != shape[2]:
            raise UsageError(f"{what} makes square images of shape (C, H, H), got {tuple(shape)}; e.g. (3, 32, 32)")
        if not isinstance(given, Mapping) or set(given) != set(OPTIONS):
            raise UsageError(f"levels of {what} hold {', '.join(OPTIONS)}, got {given!r}; e.g. {{channels: 128, mult: [2, 2], ...}}")
        channels, mult, blocks = given["channels"], given["mult"], given["blocks"]
        for name, value, least in (("shape", min(shape), 1), ("classes", classes, 0), ("channels", channels, 4), ("blocks", blocks, 1)):
            check_count(f"{name} of {what}", value, least, "e.g. shape (3, 32, 32), 10 classes, 128 channels, 4 blocks")
        if isinstance(mult, str) or not mult or not all(isinstance(m, int) and m > 0 for m in mult):
            raise UsageError(f"mult of {what} are integers, a level each, got {mult!r}; e.g. [2, 2, 2]")
        halved = 2 ** (len(mult) - 1)
        if shape[1] % halved:
            raise UsageError(f"{what} of {len(mult)} levels halves {shape[1]} pixels {len(mult) - 1} times; use a multiple of {halved}")
        if channels % 4 or any((channels * m) % min(32, channels * m // 4) for m in mult):
            raise UsageError(f"the norms of {what} have groups of equal size, and {channels} channels have not; use e.g. 32, 64 or 128")
        return cls(shape[0], shape[1], channels, tuple(mult), blocks, tuple(given["attention"]))

    @property
    def deepest(self) -> int:
        return self.size >> (len(self.mult) - 1)
