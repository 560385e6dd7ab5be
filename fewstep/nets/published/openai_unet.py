"""The U-Net of openai's consistency models (ADM with residual resampling), and CTM's, which also reads a target level."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.cond import NULL, Cond
from fewstep.errors import UsageError
from fewstep.nets.encoding import Context, Maps, both_ways, halved, level_ends, plus, reading
from fewstep.nets.published.levels import Levels
from fewstep.nets.unet import ScalarAdapter, check_scalars, told, zero_init
from fewstep.plugins import register

TIME_SCALE = 1000.0  # the network was trained to be told 1000 log(sigma) / 4
TO = "sigma_to"  # the scalar that a flow map's network reads its target level from


@dataclass(frozen=True)
class Style:
    """`shifted`: the embedding scales and shifts after the norm, else it is added before; `two_time`: blocks also read the target."""

    emb: int
    dropout: float
    shifted: bool
    two_time: bool
    head: int


def norm(channels: int) -> nn.GroupNorm:
    """A norm of 32 groups."""
    return nn.GroupNorm(32, channels)


class ResBlock(nn.Module):
    """Norm-SiLU-convolution twice with the embedding in between, and a skip connection; resampled by 2 after the first SiLU."""

    def __init__(self, cin: int, cout: int, style: Style, up: bool = False, down: bool = False) -> None:
        super().__init__()
        self.up, self.down, self.style = up, down, style
        self.in_layers = nn.Sequential(norm(cin), nn.SiLU(), nn.Conv2d(cin, cout, 3, padding=1))
        wide = cout * (1 + style.shifted)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(style.emb, wide))
        self.emb_layers_s = nn.Sequential(nn.SiLU(), nn.Linear(style.emb, wide)) if style.two_time else None
        last = zero_init(nn.Conv2d(cout, cout, 3, padding=1))
        self.out_layers = nn.Sequential(norm(cout), nn.SiLU(), nn.Dropout(style.dropout), last)
        self.skip_connection = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def _resampled(self, x: Tensor) -> Tensor:
        if self.up:
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.avg_pool2d(x, 2) if self.down else x

    def forward(self, x: Tensor, emb: Tensor, to: Tensor | None) -> Tensor:
        first, act, conv = self.in_layers
        h = conv(self._resampled(act(first(x))))
        x = self._resampled(x)
        own = self.emb_layers(emb)
        if self.emb_layers_s is not None and to is not None:
            own = own + self.emb_layers_s(to)
        own = own[:, :, None, None]
        if self.style.shifted:
            scale, shift = own.chunk(2, dim=1)
            last_norm, act, dropout, last = self.out_layers
            h = last(dropout(act(torch.addcmul(shift, last_norm(h), 1 + scale))))
        else:
            h = self.out_layers(h + own)
        return self.skip_connection(x) + h


class AttentionBlock(nn.Module):
    """Attention over all positions as a residual; `qkv` has all of q, then k, then v, each by heads."""

    def __init__(self, channels: int, head: int) -> None:
        super().__init__()
        self.heads = max(1, channels // head)
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(b, h * w, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, h, w, c).permute(0, 3, 1, 2)
        return x + self.proj_out(out)


def timestep_embedding(t: Tensor, channels: int) -> Tensor:
    """[cos(t f), sin(t f)] with f_j = 10000^(-j / half). [B] -> [B, channels]."""
    half = channels // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    phase = t.float()[:, None] * freqs
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def _run(block: Iterable[nn.Module], h: Tensor, emb: Tensor, to: Tensor | None) -> Tensor:
    for layer in block:
        h = layer(h, emb, to) if isinstance(layer, ResBlock) else layer(h)
    return h


@register("network", "openai_unet", "arXiv 2303.01469, 2310.02279")
class OpenaiUNet(nn.Module):
    """F(c_in x, c_noise, label) of openai's consistency models; `two_time` is CTM's, which reads the scalar `sigma_to` as it reads c_noise.

    **Shapes**: x [B, C, R, R], c_noise [B] (told to the network times 1000), label [B] int64 in 0..classes, output like x. The null label,
    and no label, add nothing: these networks were not trained without. `levels` are {channels, mult, blocks, attention}, the latter in
    halvings; heads have 64 channels. `shifted` as in ADM; `scalars` start without effect. With `features` also the middle map.
    **Raises**: UsageError for sizes that do not divide. **Source**: arXiv 2303.01469, released code.
    """

    form = "edm"
    version: ClassVar[int] = 1  # of what the same weights compute

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        levels: Mapping[str, Any],
        shifted: bool = True,
        dropout: float = 0.0,
        two_time: bool = False,
        scalars: Sequence[str] = (),
    ) -> None:
        super().__init__()
        of = Levels.of("an openai_unet", shape, classes, levels)
        if of.channels % 32:
            raise UsageError(f"channels of an openai_unet are a multiple of 32, got {of.channels}; e.g. 192")
        check_scalars(scalars)
        emb = 4 * of.channels
        style = Style(emb, dropout, shifted, two_time, 64)
        self.classes, self.emb_channels, self.channels = classes, emb, of.channels
        self.feature_size = of.deepest**2
        self.time_embed = nn.Sequential(nn.Linear(of.channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.time_embed_s = nn.Sequential(nn.Linear(of.channels, emb), nn.SiLU(), nn.Linear(emb, emb)) if two_time else None
        self.label_emb = nn.Embedding(classes, emb) if classes else None
        width, first = of.channels * of.mult[0], of.channels * of.mult[0]
        self.input_blocks, widths = nn.ModuleList([nn.ModuleList([nn.Conv2d(of.image, first, 3, padding=1)])]), [first]
        for level, m in enumerate(of.mult):
            for _ in range(of.blocks):
                layers: list[nn.Module] = [ResBlock(width, of.channels * m, style)]
                width = of.channels * m
                layers += [AttentionBlock(width, style.head)] if level in of.attention else []
                self.input_blocks.append(nn.ModuleList(layers))
                widths.append(width)
            if level < len(of.mult) - 1:
                self.input_blocks.append(nn.ModuleList([ResBlock(width, width, style, down=True)]))
                widths.append(width)
        self.shape, self.maps = tuple(shape), Maps((*widths, width), level_ends([of.blocks] * len(of.mult)))
        self.middle_block = nn.ModuleList([ResBlock(width, width, style), AttentionBlock(width, style.head), ResBlock(width, width, style)])
        self.output_blocks = nn.ModuleList()
        for level, m in reversed(list(enumerate(of.mult))):
            for i in range(of.blocks + 1):
                layers = [ResBlock(width + widths.pop(), of.channels * m, style)]
                width = of.channels * m
                layers += [AttentionBlock(width, style.head)] if level in of.attention else []
                layers += [ResBlock(width, width, style, up=True)] if level and i == of.blocks else []
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.Sequential(norm(width), nn.SiLU(), zero_init(nn.Conv2d(width, of.image, 3, padding=1)))
        self.embed_scalars = nn.ModuleDict({name: ScalarAdapter(emb) for name in scalars})
        self.to(memory_format=torch.channels_last)

    def context(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Context:
        """The embedding of the level and the label, and as `also` that of the target level."""
        first, act, last = self.time_embed
        emb = first(timestep_embedding(TIME_SCALE * c_noise, self.channels).to(x.dtype))
        emb = told(self.embed_scalars, cond, emb)
        emb = last(act(emb))
        if self.label_emb is not None and cond.label is not None:
            known = cond.label < self.classes
            emb = emb + self.label_emb(torch.where(known, cond.label, 0)) * known[:, None].to(emb.dtype)
        if self.time_embed_s is None or TO not in cond.scalars:
            return Context(emb)
        return Context(emb, self.time_embed_s(timestep_embedding(TIME_SCALE * cond.scalars[TO], self.channels).to(x.dtype)))

    def encode(self, x: Tensor, context: Context, hint: Tensor | None = None, added: Sequence[Tensor] = ()) -> list[Tensor]:
        h = x.contiguous(memory_format=torch.channels_last)
        maps: list[Tensor] = []
        for block in self.input_blocks:
            h = _run(cast("nn.ModuleList", block), h, context.emb, context.also)
            h = h if hint is None or maps else h + hint
            if len(maps) in self.maps.ends:
                h = plus(h, added, self.maps.ends.index(len(maps)))
            maps.append(h)
        return [*maps, _run(self.middle_block, h, context.emb, context.also)]

    def decode(self, maps: Sequence[Tensor], context: Context) -> Tensor:
        *skips, h = maps
        for block in self.output_blocks:
            h = _run(cast("nn.ModuleList", block), torch.cat([h, skips.pop()], dim=1), context.emb, context.also)
        return self.out(h).contiguous()

    def encoder(self, channels: int = 0) -> OpenaiUNet:
        made = halved(self, ("output_blocks", "out"))
        if channels:
            (conv,) = cast("nn.ModuleList", made.input_blocks[0])
            made.input_blocks[0] = nn.ModuleList([reading(conv, channels)])
        return made

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond = NULL, features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        return both_ways(self, x, c_noise, cond, features)
