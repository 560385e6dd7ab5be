"""A simulator of JPEG: what quantising the blocks of a picture does to it, without a file."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.data.degradations.canvas import Canvas, gathered

# Of ITU-T T.81, annex K.
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# JFIF: red, green and blue to brightness and two colour differences, and back.
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
UNIT = 16  # pixels of a unit with halved colour: two blocks


@cache
def _cosines() -> Tensor:
    """The orthonormal DCT of eight samples [8, 8]: row u holds cos((2 x + 1) u pi / 16) / 2, row 0 over sqrt(2)."""
    u, x = torch.arange(8.0, dtype=torch.float64)[:, None], torch.arange(8.0, dtype=torch.float64)[None]
    found = torch.cos((2 * x + 1) * u * math.pi / 16) / 2
    found[0] /= math.sqrt(2)
    return found


def quality_factor(quality: Tensor) -> Tensor:
    """What quantisation steps are multiplied by: 5000 / q below 50, else 200 - 2 q, over 100."""
    return torch.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100


def _quantised(plane: Tensor, table: Tensor) -> Tensor:
    """A plane [B, C, H, W] of levels, sides multiples of 8, whose blocks' coefficients are rounded to multiples of table [B, 8, 8]."""
    b, c, h, w = plane.shape
    dct = _cosines().to(plane)
    blocks = plane.view(b, c, h // 8, 8, w // 8, 8).transpose(3, 4) - 128
    steps = table[:, None, None, None]
    kept = torch.round(dct @ blocks @ dct.T / steps) * steps
    return (dct.T @ kept @ dct + 128).transpose(3, 4).reshape(b, c, h, w)


def _padded(of: Canvas, edge: bool) -> Tensor:
    """Pixels continued to whole units, by zeros or by their edge."""
    h, w = (n + -n % UNIT for n in of.pixels.shape[2:])
    rows, columns = (torch.arange(n, device=of.high.device).expand(len(of.high), n) for n in (h, w))
    found = gathered(of.pixels, rows.minimum(of.high[:, None] - 1), columns.minimum(of.wide[:, None] - 1))
    if edge:
        return found
    return found * (rows < of.high[:, None])[:, None, :, None] * (columns < of.wide[:, None])[:, None, None]


def compressed(of: Canvas, quality: Tensor, edge: bool = False) -> Canvas:
    """Pictures in [0, 1] as JPEG of their qualities [B] shows them: brightness at full size, colour at half of it, averaged and repeated.

    Tables are multiplied by `quality_factor` and not rounded, and pixels are not rounded at the end; a picture is continued to whole units
    by zeros, or by its `edge` as encoders do. Grey pictures have no colour. **Source**: arXiv 2107.10833, released code (DiffJPEG).
    """
    levels, factor = _padded(of, edge) * 255, quality_factor(quality)[:, None, None]
    luma, chroma = (torch.tensor(t, dtype=levels.dtype, device=levels.device) * factor for t in (LUMA, CHROMA))
    if levels.shape[1] == 1:
        found = _quantised(levels, luma)
    else:
        there, back = (torch.tensor(m, dtype=levels.dtype, device=levels.device) for m in (TO_YCC, TO_RGB))
        ycc = torch.einsum("dc,bchw->bdhw", there, levels)
        colour = _quantised(F.avg_pool2d(ycc[:, 1:], 2) + 128, chroma) - 128
        colour = colour.repeat_interleave(2, 2).repeat_interleave(2, 3)
        found = torch.einsum("dc,bchw->bdhw", back, torch.cat([_quantised(ycc[:, :1], luma), colour], 1))
    h, w = of.pixels.shape[2:]
    return Canvas(found[:, :, :h, :w].clamp(0, 255) / 255, of.high, of.wide)
