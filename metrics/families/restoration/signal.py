"""Squared errors to the true images, in dB and in levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fewstep.errors import UsageError, near_misses
from fewstep.plugins import register
from metrics.families.restoration.view import View, levels_of, over_conditions, together
from metrics.metric import Evidence, Measurement, Shown

PEAK = 255.0
ROUNDING = 1 / 12  # squared levels: the error of rounding to whole ones, below which two files do not tell their originals apart
OVER = ("images", "set")
TEXTBOOK = "peak signal-to-noise ratio (textbook)"


def decibels(mse: np.ndarray | float) -> np.ndarray:
    """10 log10(255^2 / MSE) of squared levels, at most 58.92 dB, that of the rounding to 8 bits."""
    return 10 * np.log10(PEAK**2 / np.maximum(mse, ROUNDING))


def squares(a: np.ndarray, b: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
    """The mean squared difference of each pair [B] over all pixels, or over those that are chosen [B, 1, H, W]; masked where none is."""
    gaps = (a - b) ** 2
    if chosen is None:
        return gaps.mean(axis=(1, 2, 3))
    counts = chosen.sum(axis=(1, 2, 3))
    found = (gaps.mean(axis=1, keepdims=True) * chosen).sum(axis=(1, 2, 3)) / np.maximum(counts, 1)
    return np.ma.array(found, mask=counts == 0)


def hidden_in(mask: np.ndarray) -> np.ndarray:
    """Where a mask [B, 1, H, W] hides the image. **Raises**: UsageError for other values than 0 and 1, and for one that hides all or
    nothing."""
    if not np.isin(mask, (0, 1)).all():
        raise UsageError(f"a mask is 1 where the image is hidden and 0 elsewhere, got values from {mask.min():g} to {mask.max():g}")
    shares = (mask == 1).mean(axis=(1, 2, 3))
    if wrong := int(((shares == 0) | (shares == 1)).sum()):
        raise UsageError(
            f"the mask of {wrong} of {len(mask)} samples leaves no such pixel: all or none are hidden; hide a part of each image"
        )
    return mask == 1


def masked(evidence: Evidence, name: str, view: View, of: str) -> np.ndarray:
    """The mean squared error of each sample to its true image [N], in squared levels: of all pixels, or of the `hidden` or `known` ones."""
    target = evidence.target_of(name)
    if not of:
        return np.concatenate([squares(view(levels_of(a)), view(levels_of(b))) for a, b in together(evidence.images, target)])
    found = []
    for ours, true, mask in together(evidence.images, target, evidence.condition_of(name, "mask")):
        hidden = view.cut(hidden_in(mask))
        found.append(squares(view(levels_of(ours)), view(levels_of(true)), hidden if of == "hidden" else ~hidden))
    return np.ma.concatenate(found)


@register("metric", "psnr", TEXTBOOK, shown=Shown(place=83, headline=True, error=True, published="PSNR"))
@register("metric", "psnr_y", TEXTBOOK, channels="y", shown=Shown(place=84, error=True, published="PSNR"))
@register("metric", "psnr_hidden", TEXTBOOK, of="hidden", shown=Shown(place=85, error=True))
@dataclass(frozen=True)
class PSNR:
    """10 log10(255^2 / MSE) to the true image, of 8-bit levels; `over` images (the mean of each image's own, as super-resolution is
    measured) or over the set (of the mean MSE). `of`: all pixels, or those that the mask has `hidden`; the rest is `View`'s.

    MSE below the rounding to 8 bits, 1 / 12, counts as that: equal images score 58.92 dB, and `saturated` says of how many that is so.
    **Units**: dB.
    """

    name: str
    shown: Shown
    channels: str = "rgb"
    border: int = 0
    crop: int = 0
    rounded: bool = False
    over: str = "images"
    of: str = ""
    version: int = 1
    unit: str = "dB"
    higher_is_better: bool = True
    needs_target: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.over not in OVER:
            raise UsageError(f"PSNR is averaged over {' or '.join(OVER)}, got '{self.over}'{near_misses(self.over, OVER)}")

    def __call__(self, evidence: Evidence) -> Measurement:
        view = View(self.channels, self.border, self.crop, self.rounded)
        mse = masked(evidence, self.name, view, self.of)
        found = over_conditions(decibels(mse) if self.over == "images" else mse, evidence)
        value, error = found.value, found.std_error
        if self.over == "set":
            error = None if error is None or value <= ROUNDING else float(10 / np.log(10) * error / value)
            value = float(decibels(value))
        told = {"metric_version": self.version, "peak": PEAK, **view.told(), "over": self.over, **({"of": self.of} if self.of else {})}
        return Measurement(value, error, int(np.ma.count(mse)), {**told, "saturated": int((mse <= ROUNDING).sum()), **found.told()})


@register("metric", "rmse_known", "root mean square error (textbook)")
@dataclass(frozen=True)
class KnownError:
    """The root mean square difference to the true image over the pixels that the mask leaves known, mean over images: 0 of an inpainting
    that keeps what it was given. **Units**: levels of 0 to 255."""

    name: str = "rmse_known"
    border: int = 0
    crop: int = 0
    version: int = 1
    unit: str = "levels"
    higher_is_better: bool = False
    needs_target: ClassVar[bool] = True
    streams: ClassVar[bool] = True
    shown: ClassVar[Shown] = Shown(place=87, error=True)

    def __call__(self, evidence: Evidence) -> Measurement:
        view = View("rgb", self.border, self.crop)
        found = over_conditions(np.sqrt(values := masked(evidence, self.name, view, "known")), evidence)
        return Measurement(
            found.value, found.std_error, int(np.ma.count(values)), {"metric_version": self.version, **view.told(), **found.told()}
        )
