"""Structural similarity to the true images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from fewstep.checks import check_count
from fewstep.plugins import register
from metrics.families.restoration.signal import PEAK, hidden_in
from metrics.families.restoration.view import View, levels_of, over_conditions, together
from metrics.metric import Evidence, Measurement, Shown

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
SOURCE = "Wang, Bovik, Sheikh and Simoncelli 2004"


@lru_cache(maxsize=16)
def _smoothing(size: int, window: int) -> np.ndarray:
    """The matrix [size - window + 1, size] that weighs the pixels of each whole window along one side, a Gaussian of `SIGMA` pixels."""
    weights = np.exp(-((np.arange(window) - (window - 1) / 2) ** 2) / (2 * SIGMA**2))
    found = np.zeros((size - window + 1, size))
    for i, row in enumerate(found):
        row[i : i + window] = weights / weights.sum()
    return found


def ssim_map(a: np.ndarray, b: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """(2 m_a m_b + C1)(2 s_ab + C2) / ((m_a^2 + m_b^2 + C1)(s_a^2 + s_b^2 + C2)) of every whole window, C = (K 255)^2, mean over channels.

    **Shapes**: levels [B, C, H, W] -> [B, H - window + 1, W - window + 1]. **Source**: Wang et al. 2004, equation 13, with its Gaussian
    weights and constants; moments are weighted means, without a correction of their number.
    """
    down, right = (_smoothing(n, window) for n in a.shape[2:])

    def mean(x: np.ndarray) -> np.ndarray:
        return down @ x @ right.T

    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    m_a, m_b = mean(a), mean(b)
    s_a, s_b, s_ab = mean(a * a) - m_a**2, mean(b * b) - m_b**2, mean(a * b) - m_a * m_b
    found = (2 * m_a * m_b + c1) * (2 * s_ab + c2) / ((m_a**2 + m_b**2 + c1) * (s_a + s_b + c2))
    return found.mean(axis=1)


def hidden_mean(found: np.ndarray, hidden: np.ndarray, window: int) -> np.ndarray:
    """The mean of maps [B, h, w] over the windows whose middle pixel is hidden [B, 1, H, W]; masked where it is of none."""
    first = window // 2
    middle = hidden[:, 0, first : first + found.shape[1], first : first + found.shape[2]]
    counts = middle.sum(axis=(1, 2))
    return np.ma.array((found * middle).sum(axis=(1, 2)) / np.maximum(counts, 1), mask=counts == 0)


@register("metric", "ssim", SOURCE, shown=Shown(place=86, error=True, published="SSIM"))
@register("metric", "ssim_y", SOURCE, channels="y", shown=Shown(place=86, error=True, published="SSIM"))
@register("metric", "ssim_hidden", SOURCE, of="hidden", shown=Shown(place=86, error=True))
@dataclass(frozen=True)
class SSIM:
    """Structural similarity (`ssim_map`) of 8-bit levels to the true image, mean over windows, then over images: 1 of equal ones.

    Windows of 11 pixels lie whole inside of what is compared (`View`); `of` `hidden`: those whose middle the mask hides, of the
    images that have such windows (`left_out` says how many have none).
    **Source**: Wang et al. 2004; of colours the mean over channels. **Raises**: Unavailable for images smaller than a window.
    """

    name: str
    shown: Shown
    channels: str = "rgb"
    border: int = 0
    crop: int = 0
    rounded: bool = False
    of: str = ""
    window: int = WINDOW
    version: int = 1
    unit: str = "SSIM"
    higher_is_better: bool = True
    needs_target: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("the window of SSIM", self.window, 3, "e.g. window=11")

    def __call__(self, evidence: Evidence) -> Measurement:
        view, found = View(self.channels, self.border, self.crop, self.rounded), list[np.ndarray]()
        rows = [evidence.images, evidence.target_of(self.name)]
        rows += [evidence.condition_of(self.name, "mask")] if self.of else []
        for ours, true, *mask in together(*rows):
            each = ssim_map(view(levels_of(ours), self.window), view(levels_of(true), self.window), self.window)
            found.append(hidden_mean(each, view.cut(hidden_in(mask[0])), self.window) if mask else each.mean(axis=(1, 2)))
        result = over_conditions(values := np.ma.concatenate(found), evidence)
        told = {
            "metric_version": self.version,
            **view.told(),
            "window": self.window,
            "sigma": SIGMA,
            **({"of": self.of} if self.of else {}),
        }
        return Measurement(result.value, result.std_error, int(np.ma.count(values)), {**told, **result.told()})
