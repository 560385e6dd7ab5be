"""EDM's networks: the U-Nets of DDPM++ and NCSN++ (`song_unet`) and of ADM (`dhariwal_unet`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.cond import NULL, Cond
from fewstep.errors import UsageError, near_misses
from fewstep.nets.encoding import Context, Maps, both_ways, halved, level_ends, plus, reading
from fewstep.nets.published.edm_layers import (
    Block,
    Conv2d,
    Drawn,
    Fourier,
    Linear,
    Positional,
    Style,
    kaiming_normal,
    kaiming_uniform,
    norm,
    swapped,
)
from fewstep.nets.published.levels import Levels
from fewstep.nets.unet import ScalarAdapter, check_scalars, told
from fewstep.plugins import register

N = TypeVar("N", "SongUNet", "DhariwalUNet")
STEPS = "steps"  # the scalar that a network with `step_condition` reads: the number of steps, one below what it was trained to be told
KINDS = {  # of a SongUNet: embedding of the level, its width in `channels`, taps of the resampling filter, and whether the image goes along
    "ddpmpp": ("positional", 1, (1, 1), False),
    "ncsnpp": ("fourier", 2, (1, 3, 3, 1), True),
}


def encoder(of: Levels, style: Style, first: int, residual: bool = False) -> tuple[nn.ModuleDict, list[int]]:
    """The modules of the way down, and the widths of what the way up joins; `residual` has the image, halved, go along."""
    enc, width, aux = nn.ModuleDict({f"{of.size}x{of.size}_conv": Conv2d(of.image, first, 3, style.drawn)}), first, of.image
    widths = [first]
    for level, m in enumerate(of.mult):
        res = f"{of.size >> level}x{of.size >> level}"
        if level:
            enc[f"{res}_down"] = Block(width, width, style, down=True)
            widths.append(width)
        if level and residual:
            enc[f"{res}_aux_residual"] = Conv2d(aux, width, 3, style.drawn, down=True, taps=style.taps, fused=True)
            aux = width
        for i in range(of.blocks):
            enc[f"{res}_block{i}"] = Block(width, of.channels * m, style, attention=of.size >> level in of.attention)
            width = of.channels * m
            widths.append(width)
    return enc, widths


def decoder(of: Levels, style: Style, widths: list[int], last_only: bool) -> tuple[nn.ModuleDict, int]:
    """The modules of the way up, and the width that they end with; `last_only`: a level has attention in its last block alone."""
    dec, width = nn.ModuleDict(), widths[-1]
    for level, m in reversed(list(enumerate(of.mult))):
        res, attended = f"{of.size >> level}x{of.size >> level}", of.size >> level in of.attention
        if level == len(of.mult) - 1:
            dec[f"{res}_in0"] = Block(width, width, style, attention=True)
            dec[f"{res}_in1"] = Block(width, width, style)
        else:
            dec[f"{res}_up"] = Block(width, width, style, up=True)
        for i in range(of.blocks + 1):
            here = attended and (i == of.blocks or not last_only)
            dec[f"{res}_block{i}"] = Block(width + widths.pop(), of.channels * m, style, attention=here)
            width = of.channels * m
    return dec, width


MIDDLE = 2  # the first modules of the way up are the middle: they join no map of the way down


def joined(h: Tensor, skips: list[Tensor], block: Block) -> Tensor:
    """What a block of the way up reads: the map below, with one of the way down where it is as wide as both."""
    return h if h.shape[1] == block.cin else torch.cat([h, skips.pop()], dim=1)


def way_down(enc: nn.ModuleDict, x: Tensor, context: Context, hint: Tensor | None, added: Sequence[Tensor]) -> list[Tensor]:
    """The maps of the encoder; see `Encoding.encode`."""
    aux = x.contiguous(memory_format=torch.channels_last)
    maps: list[Tensor] = []  # a call of list[Tensor] would not be traced
    level = 0
    for name, module in enc.items():
        if not maps:
            maps.append(module(aux) if hint is None else module(aux) + hint)
        elif name.endswith("aux_residual"):
            maps[-1] = aux = (maps[-1] + module(aux)) / math.sqrt(2)
        else:
            if name.endswith("_down"):
                maps[-1], level = plus(maps[-1], added, level), level + 1
            maps.append(module(maps[-1], context.emb, context.also))
    maps[-1] = plus(maps[-1], added, level)
    return maps


def middle(dec: nn.ModuleDict, h: Tensor, context: Context) -> Tensor:
    """The deepest map through the middle blocks."""
    for module in list(dec.values())[:MIDDLE]:
        h = module(h, context.emb, context.also)
    return h


def without_decoder(net: N, drop: Sequence[str], channels: int) -> N:
    """The network's encoder and middle as a copy, on pictures of so many channels (0: on its own images)."""
    made = halved(net, drop)
    for name in list(made.dec)[MIDDLE:]:
        del made.dec[name]
    for name, module in made.enc.items() if channels else ():
        if isinstance(module, Conv2d) and module.weight is not None and module.weight.shape[1] == net.shape[0]:
            made.enc[name] = reading(module, channels)
    return made


def one_hot(cond: Cond, classes: int, like: Tensor) -> Tensor:
    """Labels as rows [B, classes] of the batch's dtype; the null label, and no label, are a row of zeros."""
    if cond.label is None:
        return torch.zeros(len(like), classes, device=like.device, dtype=like.dtype)
    return (cond.label[:, None] == torch.arange(classes, device=like.device)[None]).to(like.dtype)


@register("network", "song_unet", "arXiv 2011.13456, 2206.00364")
class SongUNet(nn.Module):
    """F(c_in x, c_noise, label) of DDPM++ (`kind` ddpmpp) and NCSN++ (ncsnpp).

    **Shapes**: x [B, C, R, R], c_noise [B], label [B] int64 in 0..classes (`classes`: none), output like x. `levels` are {channels, mult,
    blocks, attention}; `augment` is the width of the augmentation labels that a checkpoint was trained with, which are absent here.
    `step_condition` adds the layers of SFD-v, which read the scalar `steps`; other `scalars` start without effect. With `features` also
    the last map of the encoder. **Raises**: UsageError for sizes that do not divide. **Source**: arXiv 2206.00364, released networks.
    """

    form = "edm"
    version: ClassVar[int] = 2  # of what the same weights compute; 2: a student that starts from them has no dropout

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        levels: Mapping[str, Any],
        kind: str = "ddpmpp",
        dropout: float = 0.0,
        augment: int = 0,
        step_condition: bool = False,
        scalars: Sequence[str] = (),
    ) -> None:
        super().__init__()
        of = Levels.of("a song_unet", shape, classes, levels)
        if kind not in KINDS:
            raise UsageError(f"unknown kind '{kind}' of a song_unet{near_misses(kind, list(KINDS))}")
        check_scalars(scalars)
        embedding, wide, taps, residual = KINDS[kind]
        drawn, emb, noise = Drawn(), 4 * of.channels, wide * of.channels
        style = Style(
            emb, dropout, 0, False, math.sqrt(0.5), 1e-6, drawn, drawn.scaled(1e-5), drawn.scaled(math.sqrt(0.2)), taps, step_condition
        )
        self.classes, self.emb_channels, self.feature_size, self.step_condition = classes, emb, of.deepest**2, step_condition
        self.map_noise = Positional(noise, True) if embedding == "positional" else Fourier(noise)
        self.map_label = Linear(classes, noise, drawn) if classes else None
        self.map_augment = Linear(augment, noise, drawn, bias=False) if augment else None
        self.map_layer0, self.map_layer1 = Linear(noise, emb, drawn), Linear(emb, emb, drawn)
        if step_condition:
            self.map_step = Positional(noise, True)
            self.map_step_layer0, self.map_step_layer1 = Linear(noise, emb, drawn), Linear(emb, emb, drawn)
        self.enc, widths = encoder(of, style, of.channels, residual)
        self.shape, self.maps = tuple(shape), Maps((*widths, widths[-1]), level_ends([of.blocks] * len(of.mult)), features=-2)
        self.dec, width = decoder(of, style, widths, last_only=True)
        self.dec[f"{of.size}x{of.size}_aux_norm"] = norm(width, style.eps)
        self.dec[f"{of.size}x{of.size}_aux_conv"] = Conv2d(width, of.image, 3, style.zero)
        self.embed_scalars = nn.ModuleDict({name: ScalarAdapter(emb) for name in scalars})
        self.to(memory_format=torch.channels_last)

    def context(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Context:
        """The embedding that every block reads, and as `also` that of the number of steps."""
        emb = swapped(self.map_noise(c_noise)).to(x.dtype)
        if self.map_label is not None:
            emb = emb + self.map_label(one_hot(cond, self.classes, x) * math.sqrt(self.classes))
        emb = F.silu(self.map_layer1(F.silu(told(self.embed_scalars, cond, self.map_layer0(emb)))))
        if not self.step_condition or STEPS not in cond.scalars:
            return Context(emb)
        step = swapped(self.map_step(cond.scalars[STEPS] + 1)).to(x.dtype)
        return Context(emb, F.silu(self.map_step_layer1(F.silu(self.map_step_layer0(step)))))

    def encode(self, x: Tensor, context: Context, hint: Tensor | None = None, added: Sequence[Tensor] = ()) -> list[Tensor]:
        return [*(maps := way_down(self.enc, x, context, hint, added)), middle(self.dec, maps[-1], context)]

    def decode(self, maps: Sequence[Tensor], context: Context) -> Tensor:
        *skips, h = maps
        for module in list(self.dec.values())[MIDDLE:]:
            if isinstance(module, Block):
                h = module(joined(h, skips, module), context.emb, context.also)
            else:
                h = F.silu(module(h)) if isinstance(module, nn.GroupNorm) else module(h)
        return h.contiguous()

    def encoder(self, channels: int = 0) -> SongUNet:
        return without_decoder(self, (), channels)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond = NULL, features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        return both_ways(self, x, c_noise, cond, features)


@register("network", "dhariwal_unet", "arXiv 2105.05233, 2206.00364")
class DhariwalUNet(nn.Module):
    """F(c_in x, c_noise, label) of ADM as EDM has it.

    **Shapes**: x [B, C, R, R], c_noise [B], label [B] int64 in 0..classes (`classes`: none), output like x, of which the first C channels
    where `outputs` is 2 (a variance that nobody here reads). Attention has heads of 64 channels; `levels`, `augment`, `step_condition`,
    `scalars` and `features` as in `SongUNet`. **Raises**: UsageError for sizes that do not divide.
    **Source**: arXiv 2206.00364, released networks.
    """

    form = "edm"
    version: ClassVar[int] = 2  # of what the same weights compute; 2: a student that starts from them has no dropout

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        levels: Mapping[str, Any],
        dropout: float = 0.0,
        augment: int = 0,
        outputs: int = 1,
        step_condition: bool = False,
        scalars: Sequence[str] = (),
    ) -> None:
        super().__init__()
        of = Levels.of("a dhariwal_unet", shape, classes, levels)
        check_scalars(scalars)
        drawn = Drawn(kaiming_uniform, math.sqrt(1 / 3), math.sqrt(1 / 3))
        zero, emb, noise = Drawn(kaiming_uniform, 0.0, 0.0), 4 * of.channels, of.channels
        style = Style(emb, dropout, 64, True, 1.0, 1e-5, drawn, zero, drawn, (1, 1), step_condition)
        self.classes, self.emb_channels, self.feature_size, self.step_condition = classes, emb, of.deepest**2, step_condition
        self.channels = of.image
        self.map_noise = Positional(noise, False)
        self.map_augment = Linear(augment, noise, zero, bias=False) if augment else None
        self.map_layer0, self.map_layer1 = Linear(noise, emb, drawn), Linear(emb, emb, drawn)
        self.map_label = Linear(classes, emb, Drawn(kaiming_normal, math.sqrt(classes)), bias=False) if classes else None
        if step_condition:
            self.map_step = Positional(noise, False)
            self.map_step_layer0, self.map_step_layer1 = Linear(noise, emb, drawn), Linear(emb, emb, drawn)
        self.enc, widths = encoder(of, style, of.channels * of.mult[0])
        self.shape, self.maps = tuple(shape), Maps((*widths, widths[-1]), level_ends([of.blocks] * len(of.mult)), features=-2)
        self.dec, width = decoder(of, style, widths, last_only=False)
        self.out_norm = norm(width, style.eps)
        self.out_conv = Conv2d(width, outputs * of.image, 3, zero)
        self.embed_scalars = nn.ModuleDict({name: ScalarAdapter(emb) for name in scalars})
        self.to(memory_format=torch.channels_last)

    def context(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Context:
        """The embedding that every block reads, and as `also` that of the number of steps."""
        emb = self.map_noise(c_noise).to(x.dtype)
        emb = self.map_layer1(F.silu(told(self.embed_scalars, cond, self.map_layer0(emb))))
        if self.map_label is not None:
            emb = emb + self.map_label(one_hot(cond, self.classes, x))
        if not self.step_condition or STEPS not in cond.scalars:
            return Context(F.silu(emb))
        step = self.map_step(cond.scalars[STEPS] + 1).to(x.dtype)
        return Context(F.silu(emb), F.silu(self.map_step_layer1(F.silu(self.map_step_layer0(step)))))

    def encode(self, x: Tensor, context: Context, hint: Tensor | None = None, added: Sequence[Tensor] = ()) -> list[Tensor]:
        return [*(maps := way_down(self.enc, x, context, hint, added)), middle(self.dec, maps[-1], context)]

    def decode(self, maps: Sequence[Tensor], context: Context) -> Tensor:
        *skips, h = maps
        for block in cast("list[Block]", list(self.dec.values())[MIDDLE:]):
            h = block(joined(h, skips, block), context.emb, context.also)
        return self.out_conv(F.silu(self.out_norm(h)))[:, : self.channels].contiguous()

    def encoder(self, channels: int = 0) -> DhariwalUNet:
        return without_decoder(self, ("out_norm", "out_conv"), channels)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond = NULL, features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        return both_ways(self, x, c_noise, cond, features)
