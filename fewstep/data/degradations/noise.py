"""Noise of the Real-ESRGAN degradation: Gaussian, and of counted light, in colour or grey."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from fewstep.data.degradations.canvas import Canvas
from fewstep.data.degradations.draws import Draws

GREY = (0.2989, 0.587, 0.114)  # brightness of red, green and blue
MOST = 416  # counts that are told apart: of a rate of at most 256, more are rarer than the smallest uniform


def grey(pixels: Tensor) -> Tensor:
    """Brightness [B, 1, H, W]; of one channel itself."""
    if pixels.shape[1] == 1:
        return pixels
    return (pixels * torch.tensor(GREY, dtype=pixels.dtype, device=pixels.device)[:, None, None]).sum(1, keepdim=True)


@cache
def _distributions(vals: int) -> Tensor:
    """P(count <= n) at the rates vals k / 255, k = 0 to 255, each row raised by its k, so that one search finds them all: [256 * MOST]."""
    rates = torch.arange(256, dtype=torch.float64)[:, None] * vals / 255
    counts = torch.arange(MOST, dtype=torch.float64)[None].expand(256, MOST)
    below = torch.special.gammaincc(counts + 1, rates.expand(256, MOST).contiguous())
    below[:, -1] = 1.0
    return (below + torch.arange(256, dtype=torch.float64)[:, None]).flatten()


def poisson(levels: Tensor, vals: Tensor, u: Tensor) -> Tensor:
    """Counts at the rates vals level / 255: the least n with P(count <= n) >= u. levels int64 [B, ...], vals int64 [B], u like levels."""
    found = torch.empty_like(u)
    for value in vals.unique().tolist():  # powers of two up to 256
        own = vals == value
        table = _distributions(int(value)).to(u.device)
        index = torch.searchsorted(table, levels[own].double() + u[own])
        found[own] = (index - levels[own] * MOST).double()
    return found


def distinct(of: Canvas, levels: Tensor) -> Tensor:
    """How many different levels each picture has [B]; pixels outside of its size do not count."""
    h, w = levels.shape[2:]
    at = (torch.arange(h, device=levels.device)[:, None], torch.arange(w, device=levels.device)[None])
    inside = (at[0] < of.high[:, None, None]) & (at[1] < of.wide[:, None, None])
    counted = torch.where(inside[:, None], levels, torch.full_like(levels, 256))  # all others are counted apart
    seen = torch.zeros(len(levels), 257, dtype=torch.bool, device=levels.device)
    return seen.scatter_(1, counted.flatten(1), True)[:, :256].sum(1)


def _counted(of: Canvas, draws: Draws, number: int, one: bool, light: int) -> Tensor:
    pixels = grey(of.pixels) if one else of.pixels
    levels = (pixels * 255).round().clamp(0, 255).long()
    vals = torch.full_like(of.high, light) if light else 2 ** distinct(of, levels).double().log2().ceil().long()
    counts = poisson(levels, vals, draws.uniform(number, shape=pixels.shape[1:]))
    return counts / vals[:, None, None, None] - levels / 255


def noise(of: Canvas, draws: Draws, number: int, kinds: tuple[Tensor, Tensor], amounts: tuple[Tensor, Tensor], light: int = 0) -> Tensor:
    """Noise like the pictures of a canvas, in their units.

    kinds: whether it is Gaussian, and whether it is grey, one pattern for all channels, bool [B]; amounts: standard deviations of Gaussian
    noise, and scales [B] of that of counted light, (count / vals - level) scale at 8-bit levels; grey, of the brightness. vals is `light`,
    a power of two up to 256, or with 0 the least one that is no less than the number of different levels.
    **Source**: arXiv 2107.10833, released code.
    """
    found = torch.zeros_like(of.pixels)
    for is_gaussian in (True, False):
        for one in (True, False):
            own = ((kinds[0] == is_gaussian) & (kinds[1] == one)).nonzero()[:, 0]
            if not len(own):
                continue
            mine, channels = Draws(draws.seeds[own]), 1 if one else found.shape[1]
            drawn = mine.normal(number, (channels, *found.shape[2:])) if is_gaussian else _counted(of[own], mine, number, one, light)
            found[own] = drawn * amounts[0 if is_gaussian else 1][own, None, None, None]
    return found
