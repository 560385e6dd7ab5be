"""Samples and what they were asked by: whether an output agrees with its condition, and how outputs of one condition differ."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import ClassVar

import numpy as np

from fewstep.errors import Unavailable
from fewstep.nets.perceptual_files import ST_LPIPS
from fewstep.nets.readers.torch_pt import WeightsFile
from fewstep.plugins import register
from metrics.families.restoration.perceptual import BETWEEN
from metrics.families.restoration.signal import ROUNDING, decibels, hidden_in, squares
from metrics.families.restoration.view import levels_of, over_conditions
from metrics.metric import Evidence, Measurement, Shown
from metrics.streaming import block_size


@register("metric", "consistency", "arXiv 2310.01407 (the task; an error of its own)")
@dataclass(frozen=True)
class Consistency:
    """How well the outputs agree with their conditions: the picture that the task makes of an output, with the sample's own seed, against
    the one that it makes of the true image, 10 log10(255^2 / MSE), mean over images. Of pictures that were made smaller and enlarged again
    the small ones are compared (the low-resolution PSNR of the field), of a mask the known pixels.

    Needs no opinion about what the output should be: an output that is degraded to exactly its condition scores 58.92 dB, the rounding to
    8 bits. **Units**: dB.
    """

    name: str = "consistency"
    version: int = 2
    unit: str = "dB"
    higher_is_better: bool = True
    needs_target: ClassVar[bool] = True
    streams: ClassVar[bool] = True
    shown: ClassVar[Shown] = Shown(place=88, error=True)

    def __call__(self, evidence: Evidence) -> Measurement:
        true = evidence.target_of(self.name)
        if evidence.asked is None:
            raise Unavailable(
                f"{self.name} makes the condition of each output again, and nobody has said how; name the task of the samples"
            )
        mask, size, found = evidence.condition.get("mask"), block_size(evidence.images), list[np.ndarray]()
        for first in range(0, len(true), size):
            rows = np.arange(first, min(first + size, len(true)))
            again, told = (evidence.asked(images[rows], rows) for images in (evidence.images, true))
            known = None if mask is None else ~hidden_in(mask[rows])
            found.append(squares(levels_of(again), levels_of(told), known))
        mse = np.ma.concatenate(found)
        result = over_conditions(decibels(mse), evidence)
        size_of = " x ".join(map(str, told.shape[2:]))
        protocol = {"metric_version": self.version, "of": "all pixels" if mask is None else "known pixels", "pictures": size_of}
        return Measurement(
            result.value, result.std_error, int(np.ma.count(mse)), {**protocol, "saturated": int((mse <= ROUNDING).sum()), **result.told()}
        )


def alike(evidence: Evidence, name: str) -> Iterator[np.ndarray]:
    """The rows of each true image whose samples were asked by the same condition, two or more of them.

    **Raises**: Unavailable where there is none: a task draws several samples of each condition with `each` above 1.
    """
    pictures, groups, found = evidence.condition_of(name, "image"), evidence.groups, 0
    mask = evidence.condition.get("mask")
    order = np.arange(0) if groups is None else np.argsort(groups, kind="stable")
    for rows in () if groups is None else np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        if len(rows) < 2:
            continue
        own = pictures[rows] if mask is None else np.concatenate([pictures[rows], mask[rows]], axis=1)
        told = [hashlib.sha256(np.ascontiguousarray(picture).tobytes()).digest() for picture in own]
        for condition in dict.fromkeys(told):
            same = rows[[picture == condition for picture in told]]
            if len(same) > 1:
                found += 1
                yield same
    if not found:
        raise Unavailable(f"{name} compares samples of one condition, and each condition has one sample; draw several: each=4 of the task")


def pixel_rms(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The root mean square difference of each pair of images [B], in levels."""
    return np.sqrt(squares(levels_of(a), levels_of(b)))


@register("metric", "diversity_condition", "arXiv 2310.01407 (the task; a spread of its own)", shown=Shown(place=97, error=True))
@register(
    "metric",
    "diversity_condition_st_lpips",
    "arXiv 2207.13686",
    distance="st_lpips",
    files=(ST_LPIPS["alex"],),
    unit="ST-LPIPS",
    shown=Shown(place=98, error=True),
)
@dataclass(frozen=True)
class ConditionDiversity:
    """How much the samples of one condition differ: the mean distance of two of them, over all pairs, then over conditions.

    `distance` empty: the root mean square difference of pixels, in levels of 0 to 255; else a perceptual one. 0 of a model that gives one
    answer whatever the noise. Read it beside an error: noise is diverse, too. Conditions with one sample are left out.
    **Raises**: Unavailable where all are so: the task's `each` says how many samples a condition has.
    """

    name: str
    shown: Shown
    distance: str = ""
    files: tuple[WeightsFile, ...] = ()
    unit: str = "levels (RMS)"
    version: int = 1
    higher_is_better: bool = True
    needs_target: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> Measurement:
        for file in self.files:
            file.path()
        images, values, told, samples = evidence.images, list[float](), dict[str, object](), 0
        for rows in alike(evidence, self.name):
            own = images[rows]
            a, b = (own[list(side)] for side in zip(*combinations(range(len(rows)), 2)))
            found, told = BETWEEN[self.distance](a, b) if self.distance else (pixel_rms(a, b), {})
            values.append(float(found.mean()))
            samples += len(rows)
        result = over_conditions(np.array(values), replace(evidence, groups=None))
        return Measurement(result.value, result.std_error, samples, {"metric_version": self.version, **told, **result.told()})
