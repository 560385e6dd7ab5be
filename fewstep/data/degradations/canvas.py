"""Pictures of different sizes in one batch, and how they are resized and filtered: a linear map of rows and one of columns for each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MODES = ("area", "bilinear", "bicubic")
CUBIC = -0.75  # the released degradation resizes by torch's own cubic, whose a is -3/4, and without widening the filter


@dataclass(frozen=True, eq=False)
class Canvas:
    """Pictures in the top left corners of one tensor; what lies outside of a picture's own size says nothing.

    **Shapes**: pixels float64 [B, C, H, W], high and wide int64 [B]. The tensor's size is that of the largest picture there can be, not
    of the largest one in the batch, so that what is computed of a picture does not depend on its neighbours.
    """

    pixels: Tensor
    high: Tensor
    wide: Tensor

    def __getitem__(self, index: Tensor) -> Canvas:
        return Canvas(self.pixels[index], self.high[index], self.wide[index])

    def clamped(self) -> Canvas:
        return Canvas(self.pixels.clamp(0, 1), self.high, self.wide)


def whole(images: Tensor) -> Canvas:
    """Pictures of one size [B, C, H, W] as they are."""
    high, wide = (torch.full((len(images),), n, dtype=torch.int64, device=images.device) for n in images.shape[2:])
    return Canvas(images, high, wide)


def merged(parts: list[tuple[Tensor, Canvas]]) -> Canvas:
    """Canvases of one size as one, each at the rows of its index."""
    order = torch.cat([index for index, _ in parts]).argsort()
    return Canvas(*(torch.cat([getattr(part, name) for _, part in parts])[order] for name in ("pixels", "high", "wide")))


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = `CUBIC`."""
    a, x = CUBIC, x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _taps(at: Tensor, old: Tensor, columns: int, count: int) -> Tensor:
    """Interpolation at the places `at` [B, N] of rows of `old` [B] pixels by the two or four around, indices clamped: [B, N, columns]."""
    base, found = at.floor(), torch.zeros(*at.shape, columns, dtype=at.dtype, device=at.device)
    for k in range(1 - count // 2, 1 + count // 2):
        weight = _cubic(at - base - k) if count == 4 else 1 - (at - base - k).abs()
        index = (base + k).clamp(min=0).minimum(old[:, None] - 1).long()
        found.scatter_add_(2, index[..., None], weight[..., None])
    return found


def resizing(old: Tensor, new: Tensor, step: Tensor, mode: Tensor, size: tuple[int, int]) -> Tensor:
    """Matrices that resize rows of `old` pixels to `new` ones, [B, size[1], size[0]], zero outside of both.

    Pixel i of the new row is at (i + 1/2) step - 1/2 of the old; area averages from floor(i old / new) to before ceil((i + 1) old / new).
    **Shapes**: old, new, mode (an index of `MODES`) int64 [B], step float64 [B]. **Source**: the rules of torch's `interpolate`.
    """
    i = torch.arange(size[1], dtype=torch.float64, device=old.device)[None]
    j = torch.arange(size[0], device=old.device)
    at = (i + 0.5) * step[:, None] - 0.5
    first = torch.div(i.long() * old[:, None], new[:, None], rounding_mode="floor")
    last = -torch.div(-(i.long() + 1) * old[:, None], new[:, None], rounding_mode="floor")
    inside = ((j >= first[..., None]) & (j < last[..., None])).double() / (last - first).clamp(min=1)[..., None]
    linear, cubic = _taps(at.clamp(min=0), old, size[0], 2), _taps(at, old, size[0], 4)
    found = torch.where((mode == 0)[:, None, None], inside, torch.where((mode == 1)[:, None, None], linear, cubic))
    return found * (i[..., None] < new[:, None, None])


def resized_to(of: Canvas, high: Tensor, wide: Tensor, mode: Tensor, size: tuple[int, int], scale: Tensor | None = None) -> Canvas:
    """Pictures at sizes of their own [B] on a canvas of another size. With `scale` [B] a step is 1 / scale, else the ratio of the sizes."""
    steps = [old / new if scale is None else 1 / scale for old, new in ((of.high, high), (of.wide, wide))]
    rows = resizing(of.high, high, steps[0], mode, (of.pixels.shape[2], size[0]))
    columns = resizing(of.wide, wide, steps[1], mode, (of.pixels.shape[3], size[1]))
    return Canvas(rows[:, None] @ of.pixels @ columns[:, None].transpose(2, 3), high, wide)


def _reflected(size: int, pad: int, own: Tensor) -> Tensor:
    """Where a row of `own` pixels [B] continues by mirroring at its ends without repeating them: indices [B, size + 2 pad]."""
    at = torch.arange(-pad, size + pad, device=own.device)[None]
    period = (2 * (own - 1)).clamp(min=1)[:, None]
    folded = at.remainder(period)
    return torch.minimum(folded, period - folded).minimum(own[:, None] - 1)


def gathered(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """pixels [B, C, H, W] at rows [B, M] and columns [B, N]."""
    b, c, _, w = pixels.shape
    tall = pixels.gather(2, rows[:, None, :, None].expand(b, c, -1, w))
    return tall.gather(3, columns[:, None, None, :].expand(b, c, tall.shape[2], -1))


def filtered(of: Canvas, kernels: Tensor) -> Canvas:
    """Each picture filtered by its own kernel [B, K, K], mirrored at its edges; by FFT, to which all sizes are alike."""
    pad, (h, w) = kernels.shape[-1] // 2, of.pixels.shape[2:]
    wide = gathered(of.pixels, _reflected(h, pad, of.high), _reflected(w, pad, of.wide))
    size = wide.shape[2:]
    gains = torch.fft.rfft2(kernels.flip(1, 2), s=size)[:, None]  # a filter is a correlation; the FFT convolves
    out = torch.fft.irfft2(torch.fft.rfft2(wide) * gains, s=size)
    return Canvas(out[:, :, 2 * pad :, 2 * pad :], of.high, of.wide)
