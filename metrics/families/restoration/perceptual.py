"""Perceptual distances to the true images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fewstep.nets.perceptual_files import EFFICIENTNET, ST_LPIPS
from fewstep.nets.readers.torch_pt import WeightsFile
from fewstep.plugins import register
from metrics.families.restoration.view import over_conditions
from metrics.metric import Evidence, Measurement, Shown
from metrics.perceptual import (
    ALEXNET,
    Between,
    efficientnet_between,
    lpips_between,
    st_lpips_between,
    st_lpips_enlarged_between,
    st_lpips_vgg_between,
)

# What a `Perceptual` metric asks, by the name of its distance.
BETWEEN: dict[str, Between] = {
    "lpips": lpips_between,
    "st_lpips": st_lpips_between,
    "st_lpips_128": st_lpips_enlarged_between,
    "st_lpips_vgg": st_lpips_vgg_between,
    "efficientnet": efficientnet_between,
}
ASIDE = Shown(place=103, error=True)
LIKENESS = Shown(place=102, error=True, role="likeness")
ENLARGED = Shown(place=82, headline=True, error=True, role="likeness")


def asked(distance: str, files: tuple[WeightsFile, ...], ours: Evidence, name: str) -> Measurement:
    """The mean distance to the true images. **Raises**: Unavailable without the weights, before anything is computed."""
    for file in files:
        file.path()
    values, told = BETWEEN[distance](ours.images, ours.target_of(name))
    found = over_conditions(values, ours)
    return Measurement(found.value, found.std_error, len(values), {**told, **found.told()})


@register(
    "metric",
    "lpips",
    "arXiv 1801.03924",
    distance="lpips",
    files=(ALEXNET,),
    unit="LPIPS",
    shown=Shown(101, error=True, role="likeness", published="LPIPS"),
)
@register(
    "metric",
    "st_lpips",
    "arXiv 2207.13686",
    distance="st_lpips",
    files=(ST_LPIPS["alex"],),
    unit="ST-LPIPS",
    shown=ASIDE,
    on_request=True,
)
@register(
    "metric",
    "st_lpips_128",
    "arXiv 2207.13686",
    distance="st_lpips_128",
    files=(ST_LPIPS["alex"],),
    unit="ST-LPIPS (enlarged to 128)",
    shown=ENLARGED,
)
@register(
    "metric",
    "st_lpips_vgg",
    "arXiv 2207.13686",
    distance="st_lpips_vgg",
    files=(ST_LPIPS["vgg"],),
    unit="ST-LPIPS (VGG)",
    shown=ASIDE,
    on_request=True,
)
@register(
    "metric",
    "efficientnet_distance",
    "arXiv 1905.11946 (the network)",
    distance="efficientnet",
    files=(EFFICIENTNET,),
    unit="squared unit features",
    shown=LIKENESS,
)
@dataclass(frozen=True)
class Perceptual:
    """The mean of a perceptual distance to the true image: LPIPS 0.1 with AlexNet, ST-LPIPS with AlexNet or VGG16, or
    `efficientnet_distance`. Each is comparable with nothing but itself; images go in at their own size, and `size` says at which.

    ST-LPIPS of images of 32 pixels finds blur worse than another image (docs/paired-metrics.md): `st_lpips_128` enlarges them first.

    **Source**: arXiv 1801.03924 with the package lpips 0.1.4; arXiv 2207.13686 with the weights of stlpips-pytorch 0.0.2.
    **Raises**: Unavailable without the weights.
    """

    name: str
    distance: str
    files: tuple[WeightsFile, ...]
    shown: Shown
    unit: str
    on_request: bool = False
    version: int = 1
    higher_is_better: bool = False
    needs_target: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> Measurement:
        found = asked(self.distance, self.files, evidence, self.name)
        return Measurement(found.value, found.std_error, found.samples, {"metric_version": self.version, **found.protocol})
