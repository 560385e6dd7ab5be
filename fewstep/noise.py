"""Pinned noise: sample i is a function of seed i alone, whatever the batch, the process count or the resume point.

`philox` (default) is counter-based: Philox4x32-10 with key = (sample seed, slot) and counter = logical C,H,W index // 4, four
normals by Box-Muller (`kernels.philox`). `edm` follows the published protocol, with one CPU generator per image. No global generator is
touched. **Source**: Salmon et al., SC 2011 (Philox); NVlabs EDM `generate.py` conventions (per-image generators, latent, class, churn).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fewstep.calls import check_seeds
from fewstep.checks import check_count
from fewstep.errors import UsageError
from fewstep.plugins import get, register
from kernels import Normals, accumulator, update


class Slot(NamedTuple):
    """The name of one draw: the step it belongs to (0 is the initial latent) and its role inside the step."""

    step: int
    role: int = 0


LATENT = Slot(0, 0)


class Noise(Protocol):
    """Unit normals by slot for a batch of samples: made of their seeds [B] and the number of classes, for protocols that draw those too."""

    def normal(self, slot: Slot, shape: Sequence[int]) -> Tensor: ...


@register("noise", "philox", "Salmon et al., SC 2011")
@dataclass(frozen=True, eq=False)
class PhiloxNoise:
    """Counter-based noise. seeds [B] int64 >= 0, one per sample; `classes` changes nothing. **Raises**: UsageError for other seeds."""

    seeds: Tensor
    classes: int = 0

    def __post_init__(self) -> None:
        check_seeds(self.seeds)

    @staticmethod
    def key(slot: Slot) -> int:
        """step << 8 | role. **Raises**: UsageError for more than 24 and 8 bits, where two slots would share their noise."""
        if not (0 <= slot.step < 1 << 24 and 0 <= slot.role < 1 << 8):
            raise UsageError(f"{slot} does not fit the noise key; use steps below 2^24 and roles below 256")
        return slot.step << 8 | slot.role

    def normal(self, slot: Slot, shape: Sequence[int]) -> Tensor:
        """Unit normals [B, *shape], float32, of one slot. Element j takes lane j % 4 of counter block j // 4."""
        _check_shape(shape)
        drawn = torch.empty(len(self.seeds), math.prod(shape), device=self.seeds.device)
        update([drawn], [], drawn.new_ones(1, 1), Normals(self.seeds.to(torch.int64), self.key(slot)))
        return drawn.view(len(self.seeds), *shape)


@register("noise", "edm", "arXiv 2206.00364, released code", version=2)
@dataclass(frozen=True, eq=False)
class EDMNoise:
    """The published order of draws: image i has its own generator seeded with seed i mod 2^32; it draws the latent, then the class
    index, then the sampler's noise in order of step. `drawn_classes` [B] are those indices, once the latent was drawn; which class a
    sample is asked for, its task says. Without classes nothing is drawn between the two.

    Generators are on the CPU whatever the device, so that a seed is one sample everywhere. The released code has them on the device it
    samples on, and those of a GPU give other numbers: published runs had other noise of the same seeds.
    **Raises**: UsageError for seeds that are no integers >= 0 [B], and when slots are asked for out of that order.
    """

    seeds: Tensor
    classes: int = 0
    drawn_classes: Tensor | None = field(init=False, default=None)
    _generators: list[torch.Generator] = field(init=False)
    _drawn: list[Slot] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        check_count("the number of classes", self.classes, 0, "pass the model's `classes`, which is 0 without any")
        made = [torch.Generator().manual_seed(int(s) % (1 << 32)) for s in self.seeds]
        object.__setattr__(self, "_generators", made)

    def normal(self, slot: Slot, shape: Sequence[int]) -> Tensor:
        _check_shape(shape)
        if self._drawn and slot <= self._drawn[-1]:
            raise UsageError(f"edm noise must be drawn in order: slot {slot} after {self._drawn[-1]}; start a new EDMNoise")
        self._drawn.append(slot)
        drawn = [torch.randn(*shape, generator=g) for g in self._generators]
        if slot == LATENT and self.classes:
            indices = [int(torch.randint(self.classes, (), generator=g)) for g in self._generators]
            object.__setattr__(self, "drawn_classes", torch.tensor(indices, dtype=torch.int64, device=self.seeds.device))
        return (torch.stack(drawn) if drawn else torch.empty(0, *shape)).to(self.seeds.device)


def _check_shape(shape: Sequence[int]) -> None:
    if not isinstance(shape, Sequence) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise UsageError(f"noise has the shape of one sample, integers >= 0, got {shape!r}; e.g. (1, 8, 8)")


def make_noise(kind: str, seeds: Tensor, classes: int = 0) -> Noise:
    """The noise source named `kind` for samples with these seeds, of a model with so many classes."""
    return get("noise", kind).make(seeds=seeds, classes=classes)


def noised(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The forward process x = x0 + sigma noise, at a level for each sample. **Shapes**: x0 and noise [B, ...], sigma [B]."""
    if noise.shape != x0.shape or sigma.shape != x0.shape[:1]:
        found = f"x0 {list(x0.shape)}, noise {list(noise.shape)} and sigma {list(sigma.shape)}"
        raise UsageError(f"{found} do not fit; noise is like x0, and sigma [B] has a level for each sample")
    x = torch.empty_like(x0)
    levels = sigma.to(x0.device, accumulator(x0.dtype))
    update([x], [x0, noise], torch.stack([torch.ones_like(levels), levels])[None])
    return x


@dataclass(frozen=True)
class Rng:
    """Random numbers of training as a pure function of a tuple of names (seed, phase, batch, ...): resume needs no state.

    Every call draws from a fresh CPU generator, seeded by a hash of the names and the number of the call. With `part` (first, last, whole)
    it draws for a batch of `whole` examples and gives the rows of those from number `first` to before `last`.

    **Raises**: UsageError for a shape of other rows than the part's.
    """

    names: tuple[int, ...]
    device: torch.device | str = "cpu"
    part: tuple[int, int, int] | None = None
    _calls: list[int] = field(default_factory=lambda: [0], compare=False)

    def _generator(self) -> torch.Generator:
        self._calls[0] += 1
        digest = hashlib.sha256(repr((self.names, self._calls[0])).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def _drawn(self, draw: Callable[[Sequence[int], torch.Generator], Tensor], shape: Sequence[int]) -> Tensor:
        generator = self._generator()
        if self.part is None:
            return draw(tuple(shape), generator).to(self.device)
        first, last, whole = self.part
        if not shape or shape[0] != last - first:
            of = f"rows of {last - first} examples, which are a process's share of {whole}"
            raise UsageError(f"numbers of shape {list(shape)} are no {of}; draw for each example, or say why the method is `undivided`")
        return draw((whole, *shape[1:]), generator)[first:last].to(self.device)

    def normal(self, shape: Sequence[int]) -> Tensor:
        return self._drawn(lambda own, generator: torch.randn(own, generator=generator), shape)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        return self._drawn(lambda own, generator: torch.rand(own, generator=generator), shape)

    def integers(self, high: int, shape: Sequence[int]) -> Tensor:
        return self._drawn(lambda own, generator: torch.randint(high, tuple(own), generator=generator), shape)

    def integer(self, high: int) -> int:
        """One number in 0 to high - 1 for the whole batch, the same for every part of it."""
        return int(torch.randint(high, (), generator=self._generator()))

    def seed_global(self) -> None:
        """Seed the global generators, which dropout layers read, from this stream."""
        torch.manual_seed(int(self.integers(2**31 - 1, ())))
