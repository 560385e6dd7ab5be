"""Distances of two images in a published network's features: LPIPS, calibrated on human judgments, and a cheap one. Metrics and losses."""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.errors import UsageError
from fewstep.nets.efficientnet import EfficientNetLite0, efficientnet_lite0
from fewstep.nets.perceptual_files import EFFICIENTNET
from fewstep.nets.readers.torch_pt import WeightsFile

if TYPE_CHECKING:
    from pathlib import Path

VGG16 = WeightsFile("vgg16-397923af.pth", "397923af", "https://download.pytorch.org/models/vgg16-397923af.pth")
TRUNKS = {"alex": "AlexNet", "vgg": "VGG16"}  # as the package calls them, and as torchvision does
SMALL, ENLARGED = 256, 224  # images below 256 pixels are enlarged to 224, the size that VGG was trained on


@functools.lru_cache(maxsize=4)
def _read(trunk: str, file: WeightsFile, path: Path, modified: int, device: torch.device | str) -> tuple[Any, str]:
    """See `lpips_network`; `modified` is the state that the file at `path` is in."""
    state, digest = file.load()
    import lpips

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips 0.1.4 passes torchvision's deprecated `pretrained=False`
        network = lpips.LPIPS(net=trunk, version="0.1", pnet_rand=True, verbose=False)
    # The trunk's slices keep torchvision's numbers: slice2.3.weight is features.3.weight.
    wanted = {name: "features." + name.split(".", 1)[1] for name in network.net.state_dict()}
    try:
        network.net.load_state_dict({name: state[source] for name, source in wanted.items()}, strict=True)
    except (KeyError, RuntimeError) as err:
        what = f"{path} is not torchvision's {TRUNKS[trunk]} ({str(err).splitlines()[-1].strip()})"
        raise UsageError(f"{what}; get it from {file.url}") from err
    return network.eval().requires_grad_(False).to(device), digest


def lpips_network(trunk: str, file: WeightsFile, device: torch.device | str = "cpu") -> tuple[Any, str]:
    """The package's LPIPS 0.1 on `trunk` (`alex`, `vgg`) with its weights from `file`, and the file's SHA-256.

    Read, hashed and checked once per process and device. **Raises**: Unavailable without the file; UsageError for another network's.
    """
    path = file.path()
    return _read(trunk, file, path, path.stat().st_mtime_ns, device)


def _prepared(x: Tensor) -> Tensor:
    """Images as the trunk takes them: three channels, at least as large as it was trained on."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise UsageError(f"lpips takes grey or RGB images, got shape {list(x.shape[1:])}; decode latents to pixels, or use pseudo_huber")
    x = x.expand(-1, 3, -1, -1).float()
    return F.interpolate(x, (ENLARGED, ENLARGED), mode="bilinear", align_corners=False) if min(x.shape[2:]) < SMALL else x


def lpips_vgg(a: Tensor, b: Tensor) -> Tensor:
    """LPIPS with VGG16: sum over layers of the weighted mean squared difference of unit feature vectors. [B, C, H, W] -> [B].

    Images in [-1, 1] (which the package's own scaling expects), grey repeated, enlarged bilinearly to 224 below 256 pixels. A feature
    vector that is all zero counts as zero and has no gradient, where the package's is not a number. **Source**: arXiv 1801.03924;
    enlargement as in 2303.01469's released code, which pools by means (ours by maxima, as the weights were calibrated).
    **Raises**: Unavailable without torchvision's VGG16 file; UsageError for images of other channel counts.
    """
    network, _ = lpips_network("vgg", VGG16, a.device)
    maps = [network.net(network.scaling_layer(_prepared(x))) for x in (a, b)]
    gaps = [(F.normalize(f, eps=1e-10) - F.normalize(g, eps=1e-10)).square() for f, g in zip(*maps)]
    total = torch.stack([layer(gap).mean((1, 2, 3)) for layer, gap in zip(network.lins, gaps)]).sum(0)
    return total.to(a.dtype)


CHEAP = 32  # pixels to which smaller images are enlarged, of the 224 that the network was trained on


@functools.lru_cache(maxsize=4)
def _read_efficientnet(path: Path, modified: int, device: torch.device | str) -> tuple[EfficientNetLite0, str]:
    """See `efficientnet_levels`; `modified` is the state that the file at `path` is in."""
    state, digest = EFFICIENTNET.load()
    try:
        return efficientnet_lite0(state).to(device), digest
    except UsageError as err:
        raise UsageError(f"{path} is not EfficientNet-Lite0 ({err}); get it from {EFFICIENTNET.url}") from err


def efficientnet_network(device: torch.device | str = "cpu") -> tuple[EfficientNetLite0, str]:
    """EfficientNet-Lite0 with its published weights, and their file's SHA-256; read once per process and device.

    **Raises**: Unavailable without the file; UsageError for another network's.
    """
    path = EFFICIENTNET.path()
    return _read_efficientnet(path, path.stat().st_mtime_ns, device)


def efficientnet_distance(a: Tensor, b: Tensor) -> Tensor:
    """Sum over five resolutions of |u(a) - u(b)|^2, unit feature vectors u of EfficientNet-Lite0, mean over positions. [B, C, H, W] -> [B].

    As LPIPS without its calibration; comparable with nothing but itself. Images in [-1, 1], grey repeated, enlarged bilinearly to 32 below
    that, as (level - 127) / 128. **Source**: the form of arXiv 1801.03924, the network of 1905.11946.
    **Raises**: Unavailable without its published weights; UsageError for images of other channel counts.
    """
    network, _ = efficientnet_network(a.device)
    found = a.new_zeros(len(a), dtype=torch.float32)
    for ours, theirs in zip(*(network.levels((127.5 * _at_least(x, CHEAP) + 0.5) / 128) for x in (a, b))):
        found = found + (F.normalize(ours, eps=1e-10) - F.normalize(theirs, eps=1e-10)).square().sum(1).mean((1, 2))
    return found.to(a.dtype)


def _at_least(x: Tensor, side: int) -> Tensor:
    """Grey or RGB images as float32 in three channels, enlarged bilinearly where a side is smaller."""
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise UsageError(f"efficientnet_distance takes grey or RGB images, got shape {list(x.shape[1:])}; decode latents to pixels first")
    x = x.expand(-1, 3, -1, -1).float()
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=False) if min(x.shape[2:]) < side else x
