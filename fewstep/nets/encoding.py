"""U-Nets in two halves, between which a branch can join: what every block is told, the way down, and the way up."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from fewstep.cond import Cond
from fewstep.errors import UsageError

T = TypeVar("T", bound=nn.Module)


@dataclass(frozen=True)
class Context:
    """What every block of a network is told: the embedding [B, E] of the noise level, the label and the scalars.

    `also` [B, E] is a second one (of the number of steps, of a target level), `text` [B, L, W] is for cross-attention, `time` [B] is the
    level as the last layer reads it.
    """

    emb: Tensor
    also: Tensor | None = None
    text: Tensor | None = None
    time: Tensor | None = None


@dataclass(frozen=True)
class Maps:
    """The maps that a decoder reads: the width of each in the order of `encode` (the middle one last), and of each level which is its
    last. `features` is the one that `features=True` returns."""

    widths: tuple[int, ...]
    ends: tuple[int, ...]
    features: int = -1

    def level(self, index: int) -> int:
        """The level of a map; the middle one is of the deepest."""
        return next((level for level, end in enumerate(self.ends) if index <= end), len(self.ends) - 1)

    @property
    def levels(self) -> tuple[int, ...]:
        """The width of each level's last map."""
        return tuple(self.widths[end] for end in self.ends)


@runtime_checkable
class Encoding(Protocol):
    """A network whose forward pass is decode(encode(x, context), context), of images of `shape`."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def classes(self) -> int: ...
    @property
    def maps(self) -> Maps: ...

    def context(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Context: ...

    def encode(self, x: Tensor, context: Context, hint: Tensor | None = None, added: Sequence[Tensor] = ()) -> list[Tensor]:
        """The maps that `decode` reads. `hint` is added to the first one; `added` has a tensor for each level, added after its last block
        and before it is halved."""
        ...

    def decode(self, maps: Sequence[Tensor], context: Context) -> Tensor: ...

    def encoder(self, channels: int = 0) -> nn.Module:
        """A copy without decoder and scalars; with `channels` it reads pictures of so many, by an input convolution of its own."""
        ...


def both_ways(net: Encoding, x: Tensor, c_noise: Tensor, cond: Cond, features: bool) -> Tensor | tuple[Tensor, Tensor]:
    """A forward pass of a network: down and up again."""
    context = net.context(x, c_noise, cond)
    maps = net.encode(x, context)
    out = net.decode(maps, context)
    return (out, maps[net.maps.features]) if features else out


def joinable(net: nn.Module, what: str) -> Any:
    """The network as an `Encoding`. **Raises**: UsageError for one that is none."""
    if not isinstance(net, Encoding):
        has = "unet, unet2d, song_unet, dhariwal_unet, openai_unet, x0_eps and diffusers' networks"
        raise UsageError(f"{what} joins a network between its encoder and its decoder, and a {type(net).__name__} has none; {has} have")
    return net


def level_ends(blocks: Sequence[int]) -> tuple[int, ...]:
    """Of levels with so many blocks each, which map is the last: the first map, then each block's and, between levels, the halved one's."""
    ends, at = [], 0
    for level, count in enumerate(blocks):
        at += count + (level > 0)
        ends.append(at)
    return tuple(ends)


def plus(h: Tensor, added: Sequence[Tensor], level: int) -> Tensor:
    """The last map of a level with what is added to it."""
    return h + added[level] if added else h


def halved(net: T, drop: Sequence[str]) -> T:
    """A copy of a network whose modules of these names are gone, and whose scalars are."""
    spared = [getattr(net, name) for name in drop]
    made = copy.deepcopy(net, {id(module): nn.Identity() for module in spared if module is not None})
    if "embed_scalars" in dict(made.named_children()):
        made.embed_scalars = nn.ModuleDict()
    return made


@torch.no_grad()
def retold(own: Tensor, channels: int) -> Tensor:
    """Weights [out, channels, ...] for pictures: the first channels read as the network reads its images, what is left (a mask) nothing;
    for pictures of fewer channels than the images, small random ones."""
    made = own.new_zeros(own.shape[0], channels, *own.shape[2:])
    if channels >= own.shape[1]:
        made[:, : own.shape[1]] = own
    else:
        nn.init.kaiming_uniform_(made, a=5**0.5)
    return made.contiguous(memory_format=torch.channels_last)


def reading(conv: T, channels: int) -> T:
    """A copy of a convolution on pictures of so many channels (see `retold`)."""
    made: Any = copy.deepcopy(conv)
    made.in_channels, made.weight = channels, nn.Parameter(retold(made.weight, channels))
    return made
