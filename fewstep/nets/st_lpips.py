"""ST-LPIPS: a perceptual distance that hardly changes when an image is moved by a pixel. A metric and a loss; its numbers are no LPIPS."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.errors import UsageError
from fewstep.nets.perceptual_files import ST_LPIPS

if TYPE_CHECKING:
    from pathlib import Path

BLURRED, REFLECTED = 3, 2  # taps of the filter below every stride of two, and pixels reflected around the image before it
# Of each level, whose outputs are compared, its layers: (side, padding) of a convolution, "relu", (side,) of a maximum, "half" for a
# filter with a stride of two. Numbers of the published files count these layers through all levels.
LEVELS: dict[str, tuple[tuple[object, ...], ...]] = {
    "alex": (
        ((11, 2), "half", "relu"),
        ((3,), "half", (5, 2), "relu"),
        ((3,), "half", (3, 1), "relu"),
        ((3, 1), "relu"),
        ((3, 1), "relu"),
    ),
    "vgg": (
        ((3, 1), "relu", (3, 1), "relu"),
        *(((2,), "half", *((3, 1), "relu") * repeats) for repeats in (2, 3, 3, 3)),
    ),
}
LEAST, ENLARGED = 32, 64  # images below 32 pixels have no last level in one of the trunks: they are enlarged to 64, of LPIPS's patches


class STLPIPS(nn.Module):
    """Sum over levels of the weighted squared difference of unit feature vectors, mean over positions.

    A trunk of AlexNet's or VGG16's layers whose strides of two come after a binomial filter over reflected edges, and of which no other
    layer has a stride; in AlexNet's the first filter is below the first convolution. **Shapes**: images [B, 3, H, W] in [-1, 1] -> [B].
    **Source**: arXiv 2207.13686; sizes and constants of the published weights (package stlpips-pytorch 0.0.2). A feature vector that is
    all zero has no gradient, where the package's is not a number.
    """

    def __init__(self, trunk: str, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.levels, left = LEVELS[trunk], dict(state)
        self.names, number = list[tuple[str, ...]](), 0
        self.shift, self.scale = (nn.Buffer(self._taken(left, f"scaling_layer.{what}", (1, 3, 1, 1))) for what in ("shift", "scale"))
        channels = 3
        for i, level in enumerate(self.levels):
            names = list[str]()
            for layer in level:
                name = f"net.slice{i + 1}.{number}"
                number += 1
                names.append(name.replace(".", "_"))
                if isinstance(layer, tuple) and len(layer) == 2:
                    weight = left.get(f"{name}.weight")
                    out = 0 if weight is None else len(weight)
                    self._hold(names[-1] + "_weight", self._taken(left, f"{name}.weight", (out, channels, layer[0], layer[0])))
                    self._hold(names[-1] + "_bias", self._taken(left, f"{name}.bias", (out,)))
                    channels = out
                elif layer == "half":
                    kernel = left.get(f"{name}.filt")  # of as many channels as come in, all alike
                    size = 0 if kernel is None else len(kernel)
                    self._hold(names[-1] + "_filter", self._taken(left, f"{name}.filt", (size, 1, BLURRED, BLURRED)))
            self.names.append(tuple(names))
            self._hold(f"head_{i}", self._taken(left, f"lin{i}.model.1.weight", (1, channels, 1, 1)))
        if left:
            raise UsageError(f"it also holds {next(iter(left))}")

    @staticmethod
    def _taken(left: dict[str, Tensor], name: str, shape: tuple[object, ...]) -> Tensor:
        """**Raises**: UsageError for a tensor that is not there, or of another shape."""
        if name not in left:
            raise UsageError(f"it lacks {name}")
        found = left.pop(name)
        if tuple(found.shape) != shape:
            raise UsageError(f"its {name} is of {list(found.shape)}, not of {list(shape)}")
        return found.detach().float()

    def _hold(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.clone())

    def _layer(self, x: Tensor, layer: object, name: str) -> Tensor:
        if layer == "relu":
            return F.relu(x)
        if layer == "half":
            padded = F.pad(x, (REFLECTED,) * 4, mode="reflect")
            return F.conv2d(padded, self.get_buffer(name + "_filter"), stride=2, groups=x.shape[1])
        assert isinstance(layer, tuple)
        if len(layer) == 1:
            return F.max_pool2d(x, layer[0], stride=1)
        return F.conv2d(x, self.get_buffer(name + "_weight"), self.get_buffer(name + "_bias"), padding=layer[1])

    def features(self, x: Tensor) -> list[Tensor]:
        """Unit feature vectors of each level, [B, C, h, w]."""
        x, found = (x - self.shift) / self.scale, list[Tensor]()
        for level, names in zip(self.levels, self.names):
            for layer, name in zip(level, names):
                x = self._layer(x, layer, name)
            found.append(F.normalize(x, eps=1e-10))
        return found

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        found = a.new_zeros(len(a))
        for i, (ours, theirs) in enumerate(zip(self.features(a), self.features(b))):  # apart: of a target no gradient is computed
            found = found + ((ours - theirs).square() * self.get_buffer(f"head_{i}")).sum(1).mean((1, 2))
        return found


@functools.lru_cache(maxsize=4)
def _read(trunk: str, path: Path, modified: int, device: torch.device | str) -> tuple[STLPIPS, str]:
    """See `st_lpips_network`; `modified` is the state that the file at `path` is in."""
    file = ST_LPIPS[trunk]
    state, digest = file.load()
    try:
        network = STLPIPS(trunk, state)
    except UsageError as err:
        raise UsageError(f"{path} is not ST-LPIPS on {trunk}: {err}; get it from {file.url}") from err
    return network.eval().requires_grad_(False).to(device), digest


def st_lpips_network(trunk: str = "alex", device: torch.device | str = "cpu") -> tuple[STLPIPS, str]:
    """ST-LPIPS on `alex` or `vgg` with its published weights, and their file's SHA-256.

    Read, hashed and checked once per process and device. **Raises**: Unavailable without the file; UsageError for another network's.
    """
    path = ST_LPIPS[trunk].path()
    return _read(trunk, path, path.stat().st_mtime_ns, device)


def size_shown(shape: tuple[int, ...] | torch.Size, side: int = 0) -> tuple[int, int]:
    """The height and width at which images [.., H, W] are shown: their own, or 64 x 64 of those below 32; with a `side` those whose shorter
    side is smaller are enlarged to it."""
    high, wide = (int(n) for n in shape[-2:])
    if side and min(high, wide) < side:
        return round(high * side / min(high, wide)), round(wide * side / min(high, wide))
    return (high, wide) if min(high, wide) >= LEAST else (ENLARGED, ENLARGED)


def prepared(x: Tensor, side: int = 0) -> Tensor:
    """Images as the network takes them: three channels, grey repeated, small ones enlarged bilinearly (`size_shown`), float32.

    **Raises**: UsageError for images of other channel counts.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise UsageError(f"st_lpips takes grey or RGB images, got shape {list(x.shape[1:])}; decode latents to pixels, or use pseudo_huber")
    x, size = x.expand(-1, 3, -1, -1).float(), size_shown(x.shape, side)
    return x if size == tuple(x.shape[2:]) else F.interpolate(x, size, mode="bilinear", align_corners=False)


def st_lpips(a: Tensor, b: Tensor) -> Tensor:
    """ST-LPIPS on AlexNet, the cheaper of the two. [B, C, H, W] in [-1, 1] -> [B]. Differentiable in both.

    Images of 32 pixels and more go in at their own size, smaller ones enlarged to 64. **Source**: arXiv 2207.13686.
    **Raises**: Unavailable without its published weights; UsageError for images of other channel counts.
    """
    network, _ = st_lpips_network("alex", a.device)
    return network(prepared(a), prepared(b)).to(a.dtype)
