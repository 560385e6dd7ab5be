"""A small class-conditional U-Net for small images (the shape of Song et al. 2021 and Karras et al. 2022, cut down).

Channels-last inside, because small convolutions on CPUs are several times faster that way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.checks import check_count
from fewstep.cond import NULL, Cond
from fewstep.errors import UsageError
from fewstep.nets.encoding import Context, Maps, both_ways, halved, level_ends, plus, reading
from fewstep.plugins import register


def zero_init(module: nn.Module) -> nn.Module:
    """The module with all parameters set to zero: a residual branch that starts as the identity."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def fourier(c_noise: Tensor, channels: int, max_period: float = 1000.0) -> Tensor:
    """Sinusoidal embedding [cos(2 pi f c), sin(2 pi f c)] with log-spaced f in [1/8, max_period/8]. [B] -> [B, channels]."""
    half = channels // 2
    freqs = torch.exp(torch.linspace(0.0, math.log(max_period), half, device=c_noise.device, dtype=torch.float32)) / 8
    phase = 2 * math.pi * c_noise.float()[:, None] * freqs[None]
    return torch.cat([phase.cos(), phase.sin()], dim=1)


class ScalarAdapter(nn.Sequential):
    """Two layers on the Fourier features of a scalar, the last one zero: an adapted network equals its teacher at the start.

    [B] -> [B, emb], added to the embedding of the noise level.
    """

    def __init__(self, emb: int) -> None:
        super().__init__(nn.Linear(emb, emb), nn.SiLU(), zero_init(nn.Linear(emb, emb)))
        self.channels = emb

    def forward(self, scalar: Tensor) -> Tensor:
        return super().forward(fourier(scalar, self.channels).to(next(self.parameters()).dtype))


def told(adapters: nn.ModuleDict, cond: Cond, emb: Tensor) -> Tensor:
    """The embedding [B, emb] with what `adapters` make of those entries of `cond.scalars` that there are."""
    for name, embed in adapters.items():
        if name in cond.scalars:
            emb = emb + embed(cond.scalars[name])
    return emb


class ResBlock(nn.Module):
    """GroupNorm-SiLU-conv twice, with the noise and class embedding as scale and shift between, and a skip connection."""

    def __init__(self, cin: int, cout: int, emb: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups(cin), cin)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.affine = nn.Linear(emb, 2 * cout)
        self.norm2 = nn.GroupNorm(groups(cout), cout)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(cout, cout, 3, padding=1))
        self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.affine(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(self.dropout(F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale))))
        return self.skip(x) + h


class Attention(nn.Module):
    """Multi-head self-attention over all positions, as a residual that starts at zero."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups(channels), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(b, h * w, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h, w, c).permute(0, 3, 1, 2)
        return x + self.proj(out)


def groups(width: int) -> int:
    """Groups of a norm over so many channels."""
    return min(8, width // 4)


def check_unet(
    shape: Sequence[int], classes: int, channels: Sequence[int], blocks: int, emb: int, dropout: float, scalars: Sequence[str], outputs: int
) -> None:
    """**Raises**: UsageError for arguments of a `UNet` that no network has."""
    for what, values in (("shape", shape), ("channels", channels)):
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise UsageError(f"{what} of a unet are integers, got {values!r}; e.g. {'(1, 8, 8)' if what == 'shape' else '(32, 64)'}")
        for value in values:
            check_count(f"each number in {what} {tuple(values)} of a unet", value, 1, "e.g. shape (1, 8, 8) and channels (32, 64)")
    if len(shape) != 3:
        raise UsageError(f"a unet makes images of shape (C, H, W), got {tuple(shape)}; e.g. (1, 8, 8)")
    halved = 2 ** (len(channels) - 1)
    if any(n % halved for n in shape[1:]):
        size = f"{shape[1]} x {shape[2]}"
        raise UsageError(f"a unet with {len(channels)} levels halves {size} images {len(channels) - 1} times; use multiples of {halved}")
    for what, value, least in (("classes", classes, 0), ("blocks", blocks, 0), ("outputs", outputs, 1)):
        check_count(f"the number of {what} of a unet", value, least, "e.g. 0 classes (none), 1 block, 1 output (like x)")
    for width in (n for c in channels for n in (c, 2 * c)):  # the second of a map joined with its skip
        if not groups(width) or width % groups(width):
            found = f"a norm over {width} channels that has no groups of equal size"
            raise UsageError(f"a unet of channels {tuple(channels)} has {found}; use multiples of 8, e.g. (32, 64)")
    if channels[-1] % max(1, channels[-1] // 32):
        heads = f"{channels[-1] // 32} heads over its last {channels[-1]} channels"
        raise UsageError(f"a unet of channels {tuple(channels)} has {heads}; let the last be a multiple of 32, or below 64")
    if isinstance(emb, bool) or not isinstance(emb, int) or emb < 2 or emb % 2:
        raise UsageError(f"emb, a sine and a cosine for each frequency, is an even integer >= 2, got {emb!r}; e.g. 128")
    if not isinstance(dropout, float | int) or not 0 <= dropout < 1:
        raise UsageError(f"dropout is a probability below 1, got {dropout!r}; e.g. 0.1")
    check_scalars(scalars)


def check_scalars(names: Sequence[str]) -> None:
    """**Raises**: UsageError for names that no module can have."""
    if isinstance(names, str) or not all(isinstance(name, str) and name and "." not in name for name in names):
        raise UsageError(f"scalars are a sequence of names without dots, got {names!r}; e.g. ('w',)")


@register("network", "unet", "arXiv 2206.00364")
class UNet(nn.Module):
    """F(c_in x, c_noise, label), the raw network of a preconditioned denoiser.

    **Shapes**: x [B, C, H, W] with H and W divisible by 2^(levels - 1); c_noise [B]; label [B] int64 in 0..classes, where `classes` is
    the null label (also used when no label is given); output like x, or `outputs` such in its channels. `scalars` names entries of
    `cond.scalars` [B] that are embedded beside the noise level and start without effect; an absent one has none. With `features` also the
    deepest map, whose channel mean has `feature_size` elements. **Raises**: UsageError for sizes that do not divide.
    **Source**: arXiv 2206.00364 and 2011.13456, reduced.
    """

    form = "edm"
    version: ClassVar[int] = 1  # of what the same weights compute

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        channels: Sequence[int] = (32, 64),
        blocks: int = 1,
        emb: int = 128,
        dropout: float = 0.0,
        scalars: Sequence[str] = (),
        outputs: int = 1,
    ) -> None:
        super().__init__()
        check_unet(shape, classes, channels, blocks, emb, dropout, scalars, outputs)
        self.shape, self.classes, self.emb_channels = tuple(shape), classes, emb
        self.feature_size = math.prod(n >> (len(channels) - 1) for n in shape[1:])
        self.embed_noise = nn.Linear(emb, emb)
        self.embed_class = nn.Embedding(classes + 1, emb)
        self.embed_out = nn.Linear(emb, emb)
        self.conv_in = nn.Conv2d(shape[0], channels[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, width = [channels[0]], channels[0]
        for level, c in enumerate(channels):
            if level > 0:
                self.down.append(nn.Conv2d(width, c, 2, stride=2))
                skips.append(c)
                width = c
            for _ in range(blocks):
                self.down.append(ResBlock(width, c, emb, dropout))
                skips.append(c)
                width = c
        self.maps = Maps((*skips, width), level_ends([blocks] * len(channels)))
        self.mid_block = ResBlock(width, width, emb, dropout)
        self.mid_attention = Attention(width, heads=max(1, width // 32))
        for level, c in reversed(list(enumerate(channels))):
            for _ in range(blocks + 1):
                self.up.append(ResBlock(width + skips.pop(), c, emb, dropout))
                width = c
            if level > 0:
                self.up.append(nn.ConvTranspose2d(width, channels[level - 1], 2, stride=2))
                width = channels[level - 1]
        self.norm_out = nn.GroupNorm(groups(width), width)
        self.conv_out = zero_init(nn.Conv2d(width, outputs * shape[0], 3, padding=1))
        self.embed_scalars = nn.ModuleDict({name: ScalarAdapter(emb) for name in scalars})
        self.to(memory_format=torch.channels_last)

    def context(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Context:
        label = cond.label if cond.label is not None else torch.full_like(c_noise, self.classes, dtype=torch.int64)
        emb = self.embed_noise(fourier(c_noise, self.emb_channels).to(x.dtype)) + self.embed_class(label)
        return Context(F.silu(self.embed_out(F.silu(told(self.embed_scalars, cond, emb)))))

    def encode(self, x: Tensor, context: Context, hint: Tensor | None = None, added: Sequence[Tensor] = ()) -> list[Tensor]:
        h, level = self.conv_in(x.contiguous(memory_format=torch.channels_last)), 0
        maps = [h if hint is None else h + hint]
        for layer in self.down:
            if isinstance(layer, ResBlock):
                maps.append(layer(maps[-1], context.emb))
            else:
                maps[-1], level = plus(maps[-1], added, level), level + 1
                maps.append(layer(maps[-1]))
        maps[-1] = plus(maps[-1], added, level)
        return [*maps, self.mid_attention(self.mid_block(maps[-1], context.emb))]

    def decode(self, maps: Sequence[Tensor], context: Context) -> Tensor:
        *stack, h = maps
        for layer in self.up:
            h = layer(torch.cat([h, stack.pop()], dim=1), context.emb) if isinstance(layer, ResBlock) else layer(h)
        return self.conv_out(F.silu(self.norm_out(h))).contiguous()

    def encoder(self, channels: int = 0) -> UNet:
        made = halved(self, ("up", "norm_out", "conv_out"))
        if channels:
            made.conv_in = reading(self.conv_in, channels)
        return made

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond = NULL, features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        return both_ways(self, x, c_noise, cond, features)
