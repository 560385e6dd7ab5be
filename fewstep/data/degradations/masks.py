"""Inpainting: parts of an image that a model is not told, by masks that are 1 there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.checks import check_count
from fewstep.data.degradation import Told
from fewstep.data.degradations.draws import Draws
from fewstep.errors import UsageError
from fewstep.plugins import register

TRIES = 8  # of a mask that hides everything or nothing, before the square in the middle takes its place
STRIDE = 1000  # numbers of draws of one try
Make = Callable[[Draws, int, int], Tensor]  # draws and a size -> hidden, bool [B, H, W]


def hidden(images: Tensor, mask: Tensor) -> Told:
    """What a model is told of images [B, C, H, W] under a mask [B, 1, H, W]: grey (0) where it is 1, and the mask beside it."""
    return Told(torch.where(mask > 0.5, torch.zeros_like(images), images), mask)


def check_mask(mask: Tensor, count: int, size: Sequence[int], called: str = "mask") -> None:
    """**Raises**: UsageError for a mask that is no [B, 1, H, W] of zeros and ones, or that hides everything or nothing of an image."""
    wanted = [count, 1, *size]
    if not isinstance(mask, Tensor) or list(mask.shape) != wanted:
        found = list(mask.shape) if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise UsageError(
            f"the {called} is {found}, and images need {wanted}: one channel, 1 where the image is hidden and 0 where it is told"
        )
    if not ((mask == 0) | (mask == 1)).all():
        raise UsageError(
            f"the {called} has values from {float(mask.min()):g} to {float(mask.max()):g}; it is 1 where hidden and 0 where told"
        )
    share = mask.flatten(1).double().mean(1)
    for what, wrong in (("nothing", share == 0), ("everything", share == 1)):
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise UsageError(f"the {called} of image {row} hides {what}; hide a part of it")


def drawn_masks(make: Make, seeds: Tensor, size: Sequence[int]) -> Tensor:
    """Masks [B, 1, H, W] float32 by `make`; one that hides everything or nothing is drawn again, and after `TRIES` the middle is hidden."""
    high, wide = (int(n) for n in size)
    found = make(Draws(seeds), high, wide)
    for k in range(1, TRIES + 1):
        share = found.flatten(1).double().mean(1)
        wrong = (share == 0) | (share == 1)
        if not wrong.any():
            break
        own = Draws(seeds[wrong], k * STRIDE)
        found[wrong] = make(own, high, wide) if k < TRIES else centre(own, high, wide)
    return found[:, None].float()


def centre(draws: Draws, high: int, wide: int, share: float = 0.5) -> Tensor:
    """A rectangle in the middle, of this share of each side."""
    rows, columns = (_middle(n, share, draws.seeds.device) for n in (high, wide))
    return (rows[:, None] & columns[None]).expand(len(draws.seeds), high, wide).clone()


def _middle(n: int, share: float, device: torch.device) -> Tensor:
    own = min(max(1, round(n * share)), max(1, n - 1))
    at = torch.arange(n, device=device) - (n - own) // 2
    return (at >= 0) & (at < own)


def _check_room(shape: Sequence[int]) -> int:
    """The channels of image and mask. **Raises**: UsageError for images of one pixel."""
    if shape[1] * shape[2] < 2:
        raise UsageError(f"images of {shape[1]} x {shape[2]} have no part to hide and another to tell; use larger ones")
    return shape[0] + 1


def _told(make: Make, images: Tensor, seeds: Tensor) -> Told:
    if not len(images):
        return Told(images, images.new_zeros(0, 1, *images.shape[2:]))
    return hidden(images, drawn_masks(make, seeds.to(images.device), images.shape[2:]).to(images.dtype))


@register("degradation", "hidden_centre", "none (the common case)")
@dataclass(frozen=True)
class Centre:
    """The middle hidden: a square of `share` of each side. Seeds change nothing."""

    share: float = 0.5
    version: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UsageError(f"the middle that is hidden is a share of each side between 0 and 1, got {self.share}; e.g. share=0.5")

    def channels(self, shape: Sequence[int]) -> int:
        return _check_room(shape)

    def __call__(self, images: Tensor, seeds: Tensor) -> Told:
        return _told(lambda draws, high, wide: centre(draws, high, wide, self.share), images, seeds)


@register("degradation", "hidden_half", "arXiv 2201.09865 (half masks)")
@dataclass(frozen=True)
class Half:
    """One half hidden: left, right, upper or lower by the seed; of an odd number of rows or columns the smaller part."""

    version: int = 1

    def channels(self, shape: Sequence[int]) -> int:
        return _check_room(shape)

    def _make(self, draws: Draws, high: int, wide: int) -> Tensor:
        device = draws.seeds.device
        rows, columns = (torch.arange(n, device=device) for n in (high, wide))
        halves = [
            (columns < wide // 2).expand(high, wide),
            (columns >= wide - wide // 2).expand(high, wide),
            (rows < high // 2)[:, None].expand(high, wide),
            (rows >= high - high // 2)[:, None].expand(high, wide),
        ]
        return torch.stack(halves)[draws.integer(0, 0, 3)]

    def __call__(self, images: Tensor, seeds: Tensor) -> Told:
        return _told(self._make, images, seeds)


@register("degradation", "hidden_rectangles", "arXiv 2111.05826 (rectangles)")
@dataclass(frozen=True)
class Rectangles:
    """One to `most` rectangles hidden, each side a share of the image's from `least` to `largest`, anywhere inside."""

    most: int = 4
    least: float = 0.15
    largest: float = 0.5
    version: int = 1

    def __post_init__(self) -> None:
        check_count("the number of rectangles", self.most, 1, "e.g. most=4")
        if not 0 < self.least <= self.largest < 1:
            raise UsageError(f"rectangles have sides of shares between 0 and 1, got {self.least} to {self.largest}; e.g. 0.15 and 0.5")

    def channels(self, shape: Sequence[int]) -> int:
        return _check_room(shape)

    def _make(self, draws: Draws, high: int, wide: int) -> Tensor:
        count = draws.integer(0, 1, self.most)
        found = torch.zeros(len(count), high, wide, dtype=torch.bool, device=count.device)
        for k in range(self.most):
            inside = list[Tensor]()
            for axis, n in enumerate((high, wide)):
                number = 1 + 4 * k + 2 * axis
                side = (n * draws.uniform(number, self.least, self.largest)).round().clamp(1, max(1, n - 1)).long()
                first = (draws.uniform(number + 1) * (n - side + 1)).long()
                at = torch.arange(n, device=count.device)[None]
                inside.append((at >= first[:, None]) & (at < (first + side)[:, None]))
            found |= inside[0][:, :, None] & inside[1][:, None] & (k < count)[:, None, None]
        return found

    def __call__(self, images: Tensor, seeds: Tensor) -> Told:
        return _told(self._make, images, seeds)


@register("degradation", "hidden_strokes", "arXiv 1806.03589 (free-form masks)")
@dataclass(frozen=True)
class Strokes:
    """Free-form strokes hidden: one to `most` brushes, each of one to `bends` straight pieces with round ends, turning as it goes.

    Lengths of pieces and widths of brushes are shares of the shorter side; a piece turns from the last by up to 2 pi / 5 to alternating
    sides, and pieces may leave the image. The numbers are ours (the paper's are for 256 pixels), and that turns add up.
    **Source**: arXiv 1806.03589, algorithm 1.
    """

    most: int = 3
    bends: int = 5
    shortest: float = 0.15
    longest: float = 0.45
    thinnest: float = 0.1
    thickest: float = 0.25
    version: int = 1

    def __post_init__(self) -> None:
        check_count("the number of strokes", self.most, 1, "e.g. most=3")
        check_count("the number of a stroke's pieces", self.bends, 1, "e.g. bends=5")
        for what, low, high in (("lengths", self.shortest, self.longest), ("widths", self.thinnest, self.thickest)):
            if not 0 < low <= high:
                raise UsageError(
                    f"{what} of strokes are shares of the side above 0, the smaller first, got {low} and {high}; e.g. 0.1, 0.3"
                )

    def channels(self, shape: Sequence[int]) -> int:
        return _check_room(shape)

    def _make(self, draws: Draws, high: int, wide: int) -> Tensor:
        b, side, device = len(draws.seeds), min(high, wide), draws.seeds.device
        y, x = (torch.arange(n, dtype=torch.float64, device=device) + 0.5 for n in (high, wide))
        count, pieces = draws.integer(0, 1, self.most), (b, self.most, self.bends)
        bends = draws.integer(1, 1, self.bends, (self.most,))
        width = side * draws.uniform(2, self.thinnest, self.thickest, (self.most,))
        length = side * draws.uniform(3, self.shortest, self.longest, pieces[1:])
        turn = draws.uniform(4, 0, 2 * math.pi / 5, pieces[1:])
        heading = draws.uniform(5, 0, 2 * math.pi, (self.most,))
        corner = draws.uniform(6, shape=(self.most, 2)) * torch.tensor([high, wide], dtype=torch.float64, device=device)
        found = torch.zeros(b, high, wide, dtype=torch.bool, device=device)
        for k in range(self.most):
            place = corner[:, k]
            for j in range(self.bends):
                angle = heading[:, k] + turn[:, k, j] * (-1) ** j
                to = place + length[:, k, j, None] * torch.stack([torch.sin(angle), torch.cos(angle)], dim=1)
                drawn = (k < count) & (j < bends[:, k])
                found |= _near(y, x, place, to, width[:, k] / 2) & drawn[:, None, None]
                place, heading[:, k] = to, angle
        return found

    def __call__(self, images: Tensor, seeds: Tensor) -> Told:
        return _told(self._make, images, seeds)


def _near(y: Tensor, x: Tensor, a: Tensor, b: Tensor, reach: Tensor) -> Tensor:
    """Which of the pixels at rows y [H] and columns x [W] are within `reach` [B] of the straight pieces from a to b [B, 2]: [B, H, W]."""
    dy, dx = ((b - a)[:, k, None, None] for k in (0, 1))
    off_y, off_x = y[None, :, None] - a[:, 0, None, None], x[None, None] - a[:, 1, None, None]
    share = (off_y * dy + off_x * dx).div_(dy**2 + dx**2).clamp_(0, 1)
    return (off_y - share * dy).square_().add_((off_x - share * dx).square_()) <= (reach**2)[:, None, None]
