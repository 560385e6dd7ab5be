"""Pinned noise: sample i is a function of seed i alone, whatever the batch, the process count or the resume point.

`philox` (default) is counter-based: Philox4x32-10 with key = (sample seed, slot) and counter = logical C,H,W index // 4, four
normals by Box-Muller. `edm` is the published protocol: one CPU generator per image. Neither touches the global generator.
**Source**: Salmon et al., SC 2011 (Philox); NVlabs EDM `generate.py` conventions (per-image generators, latent, class, churn).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fewstep.errors import UsageError, near_misses


class Slot(NamedTuple):
    """The name of one draw: the step it belongs to (0 is the initial latent) and its role inside the step."""

    step: int
    role: int = 0


LATENT = Slot(0, 0)


class Noise(Protocol):
    """Unit normals by slot for a batch of samples, and the samples' pinned class labels."""

    def normal(self, slot: Slot, shape: Sequence[int]) -> Tensor: ...

    def labels(self, classes: int) -> Tensor: ...


_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32 on broadcastable int64 tensors holding 32-bit words: counter (4), key (2) -> 4 words.

    The 64-bit products wrap in int64; their high and low words are exact after masking.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        hi0, lo0 = (p0 >> 32) & _MASK, p0 & _MASK
        hi1, lo1 = (p1 >> 32) & _MASK, p1 & _MASK
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _box_muller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two normals from two 32-bit words, in float64: radius from (a + 1/2) 2^-32, angle from b 2^-32."""
    radius = torch.sqrt(-2 * torch.log((a.double() + 0.5) * 2.0**-32))
    angle = b.double() * (2 * math.pi * 2.0**-32)
    return radius * torch.cos(angle), radius * torch.sin(angle)


@dataclass(frozen=True, eq=False)
class PhiloxNoise:
    """Counter-based noise. seeds [B] int64 >= 0, one per sample; labels are seed mod classes, so any full run is balanced."""

    seeds: Tensor

    def normal(self, slot: Slot, shape: Sequence[int]) -> Tensor:
        """Unit normals [B, *shape], float32, of one slot. Element j takes lane j % 4 of counter block j // 4.

        **Raises**: UsageError for a step or role outside the key's 24 and 8 bits, where two slots would share their noise.
        """
        if not (0 <= slot.step < 1 << 24 and 0 <= slot.role < 1 << 8):
            raise UsageError(f"{slot} does not fit the noise key; use steps below 2^24 and roles below 256")
        count = math.prod(shape)
        seeds = self.seeds[:, None]
        blocks = torch.arange((count + 3) // 4, device=seeds.device)[None].expand(len(seeds), -1)
        zero = torch.zeros_like(blocks)
        name = torch.full_like(seeds, slot.step << 8 | slot.role)
        words = philox4x32((blocks, seeds >> 32, zero, zero), (seeds & _MASK, name))
        lanes = [*_box_muller(words[0], words[1]), *_box_muller(words[2], words[3])]
        flat = torch.stack(lanes, dim=2).flatten(1)[:, :count]
        return flat.float().reshape(len(seeds), *shape)

    def labels(self, classes: int) -> Tensor:
        return self.seeds % classes


@dataclass(frozen=True, eq=False)
class EDMNoise:
    """The published protocol: image i has its own CPU generator seeded with seed i mod 2^32; it draws the latent, then the class
    index, then the sampler's noise in order of step. **Raises**: UsageError when slots are asked for out of that order."""

    seeds: Tensor
    _generators: list[torch.Generator] = field(init=False)
    _drawn: list[Slot] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        made = [torch.Generator().manual_seed(int(s) % (1 << 32)) for s in self.seeds]
        object.__setattr__(self, "_generators", made)

    def normal(self, slot: Slot, shape: Sequence[int]) -> Tensor:
        if self._drawn and slot <= self._drawn[-1]:
            raise UsageError(f"edm noise must be drawn in order: slot {slot} after {self._drawn[-1]}; start a new EDMNoise")
        self._drawn.append(slot)
        return torch.stack([torch.randn(*shape, generator=g) for g in self._generators]).to(self.seeds.device)

    def labels(self, classes: int) -> Tensor:
        """One class index per image; call it right after the latent, as the protocol does."""
        drawn = [torch.randint(classes, (), generator=g) for g in self._generators]
        return torch.stack(drawn).to(self.seeds.device)


KINDS = {"philox": PhiloxNoise, "edm": EDMNoise}


def make_noise(kind: str, seeds: Tensor) -> Noise:
    """The noise source named `kind` for samples with these seeds."""
    if kind not in KINDS:
        raise UsageError(f"unknown noise '{kind}'{near_misses(kind, list(KINDS))}")
    return KINDS[kind](seeds)


@dataclass(frozen=True)
class Rng:
    """Random numbers of training as a pure function of a tuple of names (seed, phase, batch, ...): resume needs no state.

    Every call draws from a fresh CPU generator, seeded by a hash of the names and the number of the call.
    """

    names: tuple[int, ...]
    device: torch.device | str = "cpu"
    _calls: list[int] = field(default_factory=lambda: [0], compare=False)

    def _generator(self) -> torch.Generator:
        self._calls[0] += 1
        digest = hashlib.sha256(repr((self.names, self._calls[0])).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(*shape, generator=self._generator()).to(self.device)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        return torch.rand(*shape, generator=self._generator()).to(self.device)

    def integers(self, high: int, shape: Sequence[int]) -> Tensor:
        return torch.randint(high, tuple(shape), generator=self._generator()).to(self.device)

    def seed_global(self) -> None:
        """Seed the global generators, which dropout layers read, from this stream."""
        torch.manual_seed(int(self.integers(2**31 - 1, ())))
