"""Super-resolution of pictures as the world spoils them: blur, resizing, noise and JPEG, twice over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.checks import check_count
from fewstep.data.degradation import Told
from fewstep.data.degradations.bicubic import resized_levels, shrunk
from fewstep.data.degradations.canvas import Canvas, filtered, merged, resized_to, whole
from fewstep.data.degradations.draws import Draws
from fewstep.data.degradations.jpeg import compressed
from fewstep.data.degradations.kernels import Kernels
from fewstep.data.degradations.noise import noise
from fewstep.data.degradations.sharpening import sharpened
from fewstep.errors import UsageError
from fewstep.plugins import register

QUALITY = (30.0, 95.0)
MODES = (1 / 3, 1 / 3, 1 / 3)  # area, bilinear, bicubic
GATE, BEFORE = 0.8, 0.5  # the second blur; resizing before the second JPEG rather than after it
PAPER = "arXiv 2107.10833 (second-order degradation)"
# For targets of 32 pixels: kernels of 3 to 7 of them, gentler blurs, at most one halving before the last, edges that JPEG continues, and as
# much light as large pictures have (few pixels have few levels, and the published rule then makes noise alone).
LITTLE = {
    "least": 3,
    "largest": 7,
    "blur": 1.2,
    "blur_again": 0.6,
    "shrink": 0.5,
    "shrink_again": 0.7,
    "sharpen": 7,
    "edge": True,
    "light": 256,
}


@dataclass(frozen=True)
class Stage:
    """What differs between the two rounds: probabilities of enlarging, shrinking and neither, their scales, and noise."""

    ways: tuple[float, float, float]
    scales: tuple[float, float]  # the smallest and the largest
    gaussian: tuple[float, float]
    poisson: tuple[float, float]
    first: int  # number of its first draw


def _scales(stage: Stage, draws: Draws) -> Tensor:
    """The scale of each image [B]: uniform from 1 up or from 1 down, or 1."""
    low, high = stage.scales
    way, u = draws.choice(stage.first, stage.ways), draws.uniform(stage.first + 1)
    return torch.where(way == 0, 1 + (high - 1) * u, torch.where(way == 1, low + (1 - low) * u, torch.ones_like(u)))


def _noisy(of: Canvas, stage: Stage, draws: Draws, light: int) -> Canvas:
    """Gaussian or Poisson noise by a coin of each image, grey by another, clipped to [0, 1]."""
    coin, greyed, u = (draws.uniform(stage.first + k) for k in (3, 4, 5))
    sigma, scale = (low + (high - low) * u for low, high in (stage.gaussian, stage.poisson))
    drawn = noise(of, draws, stage.first + 6, (coin < 0.5, greyed < 0.4), (sigma / 255, scale), light)
    return Canvas(of.pixels + drawn, of.high, of.wide).clamped()


@register("degradation", "realesrgan_x4", PAPER, factor=4)
@register("degradation", "realesrgan_x2", PAPER, factor=2)
@register("degradation", "realesrgan_x4_small", PAPER, factor=4, **LITTLE)
@register("degradation", "realesrgan_x2_small", PAPER, factor=2, **LITTLE)
@dataclass(frozen=True)
class RealESRGAN:
    """Second-order degradation: sharpened, then twice blur, resize, noise and JPEG, with a ringing filter before or after the last.

    `blur` and `blur_again` are the largest standard deviations of the two blurs (from 0.2), `shrink` and `shrink_again` the smallest scales
    (the second of the size / `factor`), `sharpen` the size of the sharpening blur (0: none); `edge` is that of `compressed`, `light` of
    `noise`. What the released code draws once a batch (ways and kinds of resizing, kind of noise, gates, order) is drawn for each image by
    its seed here, and grey noise is its own. Flips and crops are not part of it, and targets stay unsharpened.
    **Source**: arXiv 2107.10833, released code and options of x4plus.
    """

    factor: int = 4
    least: int = 7
    largest: int = 21
    blur: float = 3.0
    blur_again: float = 1.5
    shrink: float = 0.15
    shrink_again: float = 0.3
    sharpen: int = 51
    edge: bool = False
    light: int = 0
    version: int = 1

    def __post_init__(self) -> None:
        check_count("the factor of super-resolution", self.factor, 2, "e.g. factor=4")
        if not (self.least % 2 == self.largest % 2 == 1 and 1 <= self.least <= self.largest):
            raise UsageError(f"kernels have odd sizes from least to largest, got {self.least} and {self.largest}; e.g. 7 and 21")
        if not (self.blur > 0.2 and self.blur_again > 0.2 and 0 < self.shrink <= 1 and 0 < self.shrink_again <= 1):
            raise UsageError(
                "standard deviations of blurs go from 0.2 up, and shrinking scales from above 0 to 1; e.g. blur=3, shrink=0.15"
            )
        if self.light not in (0, *(2**k for k in range(9))):
            raise UsageError(f"light is a power of two up to 256, or 0 for as many as there are levels, got {self.light}; e.g. light=256")
        if self.sharpen and (self.sharpen < 3 or self.sharpen % 2 == 0):
            raise UsageError(f"the sharpening blur has an odd size from 3 on, or 0 for none, got {self.sharpen}; e.g. sharpen=51")

    def _stages(self) -> tuple[Stage, Stage]:
        return (
            Stage((0.2, 0.7, 0.1), (self.shrink, 1.5), (1.0, 30.0), (0.05, 3.0), 100),
            Stage((0.3, 0.4, 0.3), (self.shrink_again, 1.2), (1.0, 25.0), (0.05, 2.5), 200),
        )

    def channels(self, shape: Sequence[int]) -> int:
        if shape[0] not in (1, 3):
            raise UsageError(f"pictures of {shape[0]} channels have no JPEG; this degradation is of grey or RGB ones")
        return shrunk(shape, self.factor)[0]

    def small(self, images: Tensor, seeds: Tensor) -> Tensor:
        """The spoilt pictures [B, C, H / factor, W / factor] in [-1, 1], in 8 bits."""
        _, *least = shrunk(images.shape[1:], self.factor)
        size, draws = (int(least[0]), int(least[1])), Draws(seeds)
        one, two = self._stages()
        clean = ((images.double() + 1) / 2).clamp(0, 1)
        clean = sharpened(clean, self.sharpen) if self.sharpen else clean
        first = Kernels(self.least, self.largest, (0.2, self.blur))
        again = Kernels(self.least, self.largest, (0.2, self.blur_again))
        out = filtered(whole(clean), first.blurs(draws, 10))
        scale = _scales(one, draws)
        high, wide = ((n * scale).floor().clamp(min=1).long() for n in (out.high, out.wide))
        out = resized_to(out, high, wide, draws.choice(one.first + 2, MODES), _most(images.shape[2:], 1.5), scale)
        out = compressed(_noisy(out, one, draws, self.light), draws.uniform(30, *QUALITY), self.edge)
        blurred = filtered(out, again.blurs(draws, 40))
        gate = draws.uniform(50) < GATE
        out = Canvas(torch.where(gate[:, None, None, None], blurred.pixels, out.pixels), out.high, out.wide)
        scale = _scales(two, draws)
        high, wide = ((n / self.factor * scale).floor().clamp(min=1).long() for n in images.shape[2:])
        out = resized_to(out, high, wide, draws.choice(two.first + 2, MODES), _most(size, 1.2))
        return self._ended(_noisy(out, two, draws, self.light), again, draws, size) * 2 - 1

    def _ended(self, of: Canvas, kernels: Kernels, draws: Draws, size: tuple[int, int]) -> Tensor:
        """The last resizing with its filter, and the second JPEG, in the order that each image draws; 8-bit levels in [0, 1]."""
        quality, mode, ringing = draws.uniform(60, *QUALITY), draws.choice(61, MODES), kernels.final(draws, 62)

        def fitted(part: Canvas, own: Tensor) -> Canvas:
            high, wide = (torch.full_like(part.high, n) for n in size)
            return filtered(resized_to(part, high, wide, mode[own], size), ringing[own])

        before, parts = draws.uniform(65) < BEFORE, list[tuple[Tensor, Canvas]]()
        if len(own := before.nonzero()[:, 0]):
            parts.append((own, compressed(fitted(of[own], own).clamped(), quality[own], self.edge)))
        if len(own := (~before).nonzero()[:, 0]):
            parts.append((own, fitted(compressed(of[own].clamped(), quality[own], self.edge), own)))
        return (merged(parts).pixels.clamp(0, 1) * 255).round() / 255

    def __call__(self, images: Tensor, seeds: Tensor) -> Told:
        if not len(images):
            return Told(images)
        small = self.small(images, seeds.to(images.device)).to(images.dtype)
        return Told(resized_levels(small, images.shape[2:]))


def _most(size: Sequence[int], scale: float) -> tuple[int, int]:
    """The canvas of the largest that pictures of a size can become."""
    high, wide = (max(1, int(n * scale)) for n in size)
    return high, wide
