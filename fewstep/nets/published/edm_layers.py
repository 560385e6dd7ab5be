"""The layers that EDM's two U-Nets are made of, with the names of their published state dicts.

Convolutions may resample: a filter of two equal taps is the mean of 2 x 2 pixels, or their doubling, and is done as such.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Init = Callable[[Sequence[int], int, int], Tensor]  # shape, inputs and outputs of each position -> drawn weights


def xavier_uniform(shape: Sequence[int], fan_in: int, fan_out: int) -> Tensor:
    """Uniform in +-sqrt(6 / (inputs + outputs))."""
    return math.sqrt(6 / (fan_in + fan_out)) * (2 * torch.rand(*shape) - 1)


def kaiming_uniform(shape: Sequence[int], fan_in: int, fan_out: int) -> Tensor:
    """Uniform in +-sqrt(3 / inputs)."""
    return math.sqrt(3 / fan_in) * (2 * torch.rand(*shape) - 1)


def kaiming_normal(shape: Sequence[int], fan_in: int, fan_out: int) -> Tensor:
    """Normal of deviation 1 / sqrt(inputs)."""
    return torch.randn(*shape) / math.sqrt(fan_in)


@dataclass(frozen=True)
class Drawn:
    """How a layer's weights, and with another gain its biases, are drawn."""

    init: Init = xavier_uniform
    gain: float = 1.0
    bias: float = 0.0

    def scaled(self, gain: float) -> Drawn:
        return Drawn(self.init, self.gain * gain, self.bias)

    def draw(self, weight: Tensor, bias: Tensor | None) -> None:
        """Fill weight [out, in, ...] and bias [out]."""
        spatial = math.prod(weight.shape[2:])
        fans = weight.shape[1] * spatial, weight.shape[0] * spatial
        with torch.no_grad():
            weight.copy_(self.gain * self.init(weight.shape, *fans))
            if bias is not None:
                bias.copy_(self.bias * self.init(bias.shape, *fans))


def empty(*shape: int) -> nn.Parameter:
    """A parameter that is yet to be drawn."""
    return nn.Parameter(torch.empty(*shape))


class Linear(nn.Module):
    """y = W x + b."""

    def __init__(self, cin: int, cout: int, drawn: Drawn, bias: bool = True) -> None:
        super().__init__()
        self.drawn, self.weight, self.bias = drawn, empty(cout, cin), empty(cout) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        self.drawn.draw(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Conv2d(nn.Module):
    """A convolution of `kernel` pixels (0: none), after resampling by 2 where `up` or `down` says so.

    `fused` goes down the other way round: the convolution, padded by the filter's reach, then the filter. **Source**: arXiv 2206.00364,
    released networks.
    """

    resample_filter: Tensor

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int,
        drawn: Drawn,
        up: bool = False,
        down: bool = False,
        taps: Sequence[int] = (1, 1),
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.up, self.down, self.fused, self.drawn = up, down, fused, drawn
        self.weight, self.bias = (empty(cout, cin, kernel, kernel), empty(cout)) if kernel else (None, None)
        self.reset_parameters()
        self.plain = tuple(taps) == (1, 1)
        if up or down:
            line = torch.tensor(taps, dtype=torch.float32)
            self.register_buffer("resample_filter", (torch.outer(line, line) / line.sum() ** 2)[None, None])

    def reset_parameters(self) -> None:
        """Draw the weights anew, where there are some."""
        if self.weight is not None:
            self.drawn.draw(self.weight, self.bias)

    def _filter(self, x: Tensor, gain: float = 1.0) -> tuple[Tensor, int]:
        """The filter for each channel [C, 1, f, f], and how far it reaches over the border."""
        f = self.resample_filter.to(x.dtype) * gain
        return f.expand(x.shape[1], 1, -1, -1), (f.shape[-1] - 1) // 2

    def _resampled(self, x: Tensor) -> Tensor:
        if self.up and self.plain:
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        if self.up:
            f, pad = self._filter(x, 4.0)
            return F.conv_transpose2d(x, f, groups=x.shape[1], stride=2, padding=pad)
        if self.down and self.plain:
            return F.avg_pool2d(x, 2)
        if self.down:
            f, pad = self._filter(x)
            return F.conv2d(x, f, groups=x.shape[1], stride=2, padding=pad)
        return x

    def forward(self, x: Tensor) -> Tensor:
        if self.fused and self.down and self.weight is not None and self.bias is not None:
            reach = (self.resample_filter.shape[-1] - 1) // 2
            y = F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2 + reach)
            return F.conv2d(y, self._filter(y)[0], groups=y.shape[1], stride=2) + self.bias[:, None, None]
        x = self._resampled(x)
        return x if self.weight is None else F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)


def norm(channels: int, eps: float) -> nn.GroupNorm:
    """A norm of at most 32 groups, of at least 4 channels each."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


class Positional(nn.Module):
    """[cos(c f), sin(c f)] with f_j = 10000^(-j / n), j = 0 ... pairs - 1; n = pairs (less one: `endpoint`). [B] -> [B, channels]."""

    def __init__(self, channels: int, endpoint: bool) -> None:
        super().__init__()
        self.pairs, self.endpoint = channels // 2, endpoint

    def forward(self, c: Tensor) -> Tensor:
        j = torch.arange(self.pairs, dtype=torch.float32, device=c.device)
        phase = c.float()[:, None] * (1 / 10000) ** (j / (self.pairs - self.endpoint))
        return torch.cat([phase.cos(), phase.sin()], dim=1)


class Fourier(nn.Module):
    """[cos(2 pi c f), sin(2 pi c f)] with frequencies drawn once from a normal of deviation 16. [B] -> [B, channels]."""

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def forward(self, c: Tensor) -> Tensor:
        phase = c.float()[:, None] * (2 * math.pi * self.freqs.float())
        return torch.cat([phase.cos(), phase.sin()], dim=1)


def swapped(emb: Tensor) -> Tensor:
    """[sin, cos] of [cos, sin]: the order that EDM's first network had its embedding in."""
    cos, sin = emb.chunk(2, dim=1)
    return torch.cat([sin, cos], dim=1)


@dataclass(frozen=True)
class Style:
    """What the blocks of one network have in common.

    `head`: channels of an attention head (0: all in one); `shifted`: the embedding scales and shifts after the norm, and a block that
    resamples has no convolution in its skip connection; else it is added before, and has one; `gain` of every residual sum; `steps`: it
    also reads an embedding of the number of steps (arXiv 2409.19681).
    """

    emb: int
    dropout: float
    head: int
    shifted: bool
    gain: float
    eps: float
    drawn: Drawn
    zero: Drawn
    attention: Drawn
    taps: tuple[int, ...] = (1, 1)
    steps: bool = False


class Block(nn.Module):
    """Norm-SiLU-convolution twice with the embedding in between, a skip connection, and attention where there are `heads`."""

    def __init__(self, cin: int, cout: int, style: Style, up: bool = False, down: bool = False, attention: bool = False) -> None:
        super().__init__()
        drawn, self.style, self.cin = style.drawn, style, cin
        self.heads = max(1, cout // style.head if style.head else 1) if attention else 0
        self.norm0 = norm(cin, style.eps)
        self.conv0 = Conv2d(cin, cout, 3, drawn, up, down, style.taps)
        self.affine = Linear(style.emb, cout * (1 + style.shifted), drawn)
        self.norm1 = norm(cout, style.eps)
        self.dropout = nn.Dropout(style.dropout)
        self.conv1 = Conv2d(cout, cout, 3, style.zero)
        self.affine_step = Linear(style.emb, cout * (1 + style.shifted), drawn) if style.steps else None
        self.skip = None
        if cin != cout or up or down:
            kernel = 0 if style.shifted and cin == cout else 1
            self.skip = Conv2d(cin, cout, kernel, drawn, up, down, style.taps)
        if self.heads:
            self.norm2 = norm(cout, style.eps)
            self.qkv = Conv2d(cout, 3 * cout, 1, style.attention)
            self.proj = Conv2d(cout, cout, 1, style.zero)

    def forward(self, x: Tensor, emb: Tensor, step: Tensor | None = None) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        own = self.affine(emb)[:, :, None, None]
        also = self.affine_step(step)[:, :, None, None] if self.affine_step is not None and step is not None else None
        if self.style.shifted:
            scale, shift = own.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), 1 + scale)
            if also is not None:
                scale, shift = also.chunk(2, dim=1)
                h = torch.addcmul(shift, h, 1 + scale)
            h = F.silu(h)
        else:
            h = F.silu(self.norm1(h + (own if also is None else own + also)))
        h = self.conv1(self.dropout(h))
        h = (h + (x if self.skip is None else self.skip(x))) * self.style.gain
        return (self._attended(h) + h) * self.style.gain if self.heads else h

    def _attended(self, x: Tensor) -> Tensor:
        """Attention over all positions; q, k and v of a channel lie side by side in `qkv`."""
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm2(x)).permute(0, 2, 3, 1).reshape(b, h * w, self.heads, c // self.heads, 3)
        q, k, v = (part.transpose(1, 2).contiguous() for part in qkv.unbind(4))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, h, w, c).permute(0, 3, 1, 2))
