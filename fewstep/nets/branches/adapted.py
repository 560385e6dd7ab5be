"""A network with a branch that is told a picture, which joins it between its encoder and its decoder."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fewstep.checks import check_count
from fewstep.cond import NULL, Cond
from fewstep.denoiser import FeatureNetwork
from fewstep.errors import UsageError
from fewstep.nets.branches.picture import check_picture, check_values, picture_of
from fewstep.nets.encoding import Context, Encoding
from fewstep.plugins import get

EMPTY = torch.empty(0)


class Branch(Protocol):
    """The module of a branch. `once`: what it makes of a picture depends on nothing else, so that it is made once for a trajectory;
    `factor`: how many times larger than the network's images its pictures are."""

    @property
    def once(self) -> bool: ...
    @property
    def factor(self) -> int: ...

    def __call__(self, picture: Tensor, x: Tensor, c_noise: Tensor, cond: Cond) -> tuple[Tensor, ...]:
        """What it makes of a picture [B, channels, H, W], and unless `once` of the network's own input."""
        ...

    def join(self, base: Encoding, x: Tensor, context: Context, made: tuple[Tensor, ...]) -> list[Tensor]:
        """The maps that the network's decoder reads: those of its encoder, and what the branch made."""
        ...


class Adapted(nn.Module):
    """F(x, c_noise, cond) of `base` where `branch` is told the picture of `cond` (image, then mask); `base` itself at the start.

    **Shapes**: as base's; cond.image [B, C, f H, f W] and cond.mask [B, 1, f H, f W] have `channels` together (0: no picture is read), f
    the branch's `factor`. `own` are the names of the parameters that the branch brought with it.
    **Raises**: UsageError for a picture that is missing, or of another size, type or number of channels.
    """

    def __init__(self, base: nn.Module, branch: Any, name: str, channels: int, options: Mapping[str, Any], own: tuple[str, ...]) -> None:
        super().__init__()
        self.base, self.branch = base, branch
        self.name, self.channels, self.options, self.own = name, channels, dict(options), own
        self.form, self.version = getattr(base, "form", ""), getattr(base, "version", 1)
        self.classes = getattr(base, "classes", 0)
        self.feature_size = base.feature_size if isinstance(base, FeatureNetwork) else 0

    @property
    def embed_scalars(self) -> nn.ModuleDict:
        found = self.base.embed_scalars
        assert isinstance(found, nn.ModuleDict)
        return found

    @property
    def emb_channels(self) -> int:
        return int(self.base.emb_channels)  # pyright: ignore[reportArgumentType]

    def _size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        _, height, width = self.base.shape  # pyright: ignore
        return self.branch.factor * height, self.branch.factor * width

    def prepared(self, cond: Cond) -> Cond:
        """The condition with what the branch makes of its picture once, where it makes something that no other input changes."""
        if not self.channels:
            return cond
        check_picture(cond, self.channels, self._size(), self.name)
        check_values(cond)
        if not self.branch.once:
            return cond
        picture = picture_of(cond, next(self.branch.parameters()).dtype)
        return cond.with_made(self.branch, self.branch(picture, EMPTY, EMPTY, NULL))

    def _made(self, x: Tensor, c_noise: Tensor, cond: Cond) -> tuple[Tensor, ...]:
        known = cond.made_by(self.branch)
        if known is not None:
            return known
        check_picture(cond, self.channels, self._size(), self.name)
        return self.branch(picture_of(cond, x.dtype), x, c_noise, cond)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond = NULL, features: bool = False) -> Any:
        if not self.channels:
            return self.base(x, c_noise, cond, features=True) if features else self.base(x, c_noise, cond)
        base: Any = self.base
        context = base.context(x, c_noise, cond)
        maps = self.branch.join(base, x, context, self._made(x, c_noise, cond))
        out = base.decode(maps, context)
        return (out, maps[base.maps.features]) if features else out


def with_branch(net: nn.Module, branch: str, channels: int, options: Mapping[str, Any] | None = None) -> Adapted:
    """A copy of the network with a registered branch, told pictures of so many channels (image, mask); `options` are its fields.

    At the start it equals the network bit for bit. New layers are drawn from torch's global generator.
    **Raises**: UsageError for an unknown branch or option, for channels that it cannot be told, and for a network that it cannot join.
    """
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in (options or {}).items()}  # JSON has no tuples
    made = get("branch", branch).make(**given)
    check_count("the channels of a branch's pictures", channels, 0, "e.g. 3, or 4 with a mask; lora alone can do without (0)")
    base = copy.deepcopy(net)
    before = {id(p) for p in base.parameters()}
    module = made(base, channels)
    like = next(base.parameters(), None)
    if module is not None and like is not None:
        module.to(like.device, like.dtype)
    own = ["branch"] if module is not None else []
    own += [f"base.{name}" for name, p in base.named_parameters() if id(p) not in before]
    if not own:
        raise UsageError(f"branch '{branch}' adds nothing to a {type(net).__name__} that is told no picture; give it channels, e.g. 3")
    return Adapted(base, module, branch, channels, given, tuple(own))
