"""Perceptual distances of pairs of images, part by part: what metrics of several families read. Imports no torch before it is asked."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version as installed
from typing import TYPE_CHECKING

import numpy as np

from fewstep.data.arrays import Images
from fewstep.nets.readers.torch_pt import WeightsFile
from metrics.features.extractors import three_channels

if TYPE_CHECKING:
    from torch import Tensor

ALEXNET = WeightsFile("alexnet-owt-7be5be79.pth", "7be5be79", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth")
# AlexNet's two stride-2 pools need a first map of 7x7, (H + 4 - 11) / 4 + 1 = 7, so H >= 31; LPIPS was calibrated on 64x64 patches.
ALEXNET_MIN, PATCH = 31, 64
BATCH = 64
Between = Callable[[Images, Images], tuple[np.ndarray, dict[str, object]]]


def _each(a: Images, b: Images, batch: int, distance: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
    """The distance of each pair [N], float64, `batch` pairs at once."""
    import torch

    values = []
    with torch.inference_mode():
        for start in range(0, len(b), batch):
            pair = [torch.from_numpy(three_channels(x[start : start + batch])).float() for x in (a, b)]
            values.append(distance(pair[0], pair[1]).double().flatten().numpy())
    return np.concatenate(values)


def lpips_between(a: Images, b: Images, batch: int = BATCH) -> tuple[np.ndarray, dict[str, object]]:
    """LPIPS 0.1 with AlexNet of each pair [N], and what a protocol says of it; images below 31 pixels are enlarged to 64.

    **Raises**: Unavailable without torchvision's AlexNet file.
    """
    from torch.nn import functional as F

    from fewstep.nets.perceptual import lpips_network

    network, digest = lpips_network("alex", ALEXNET)
    side = tuple(b.shape[2:])
    size = side if min(side) >= ALEXNET_MIN else (PATCH, PATCH)

    def distance(x: Tensor, y: Tensor) -> Tensor:
        if size != side:
            x, y = (F.interpolate(z, size, mode="bilinear", align_corners=False) for z in (x, y))
        return network(x, y)

    told = {"features": f"alexnet-{digest[:16]}", "lpips": installed("lpips"), "size": list(size)}
    return _each(a, b, batch, distance), told


def st_lpips_between(a: Images, b: Images, trunk: str = "alex", side: int = 0) -> tuple[np.ndarray, dict[str, object]]:
    """ST-LPIPS of each pair [N], and what a protocol says of it. **Raises**: Unavailable without its weights."""
    from fewstep.nets.st_lpips import prepared, size_shown, st_lpips_network

    network, digest = st_lpips_network(trunk)
    told = {"features": f"st_lpips-{trunk}-{digest[:16]}", "size": list(size_shown(b.shape, side))}
    return _each(a, b, BATCH, lambda x, y: network(prepared(x, side), prepared(y, side))), told


def st_lpips_vgg_between(a: Images, b: Images) -> tuple[np.ndarray, dict[str, object]]:
    """`st_lpips_between` on VGG16."""
    return st_lpips_between(a, b, "vgg")


def st_lpips_enlarged_between(a: Images, b: Images) -> tuple[np.ndarray, dict[str, object]]:
    """`st_lpips_between` of images that are enlarged to 128 pixels where they are smaller."""
    return st_lpips_between(a, b, side=2 * PATCH)


def efficientnet_between(a: Images, b: Images) -> tuple[np.ndarray, dict[str, object]]:
    """`fewstep.nets.perceptual.efficientnet_distance` of each pair [N], and what a protocol says of it."""
    from fewstep.nets.perceptual import efficientnet_distance, efficientnet_network

    return _each(a, b, BATCH, efficientnet_distance), {"features": f"efficientnet_lite0-{efficientnet_network()[1][:16]}"}
