"""EfficientNet-Lite0 up to its 1,280 pooled features: a small network of features for machines without a GPU."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.errors import UsageError
from fewstep.nets.folding import fold

SIDE, FEATURES, CLASSES = 224, 1280, 1000
EPS = 1e-3
# repeats, kernel, stride, expansion, channels out: of seven stages.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
STEM = 32
PAIRS = tuple(
    (f"_{conv}", f"_bn{i}")
    for conv, i in (("conv_stem", 0), ("conv_head", 1), ("expand_conv", 0), ("depthwise_conv", 1), ("project_conv", 2))
)


class SameConv(nn.Conv2d):
    """A convolution without bias whose output has ceil(side / stride) pixels: where zeros cannot be the same on both sides, the
    additional one is on the right and below, as in TensorFlow."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        (high, wide), kernel, stride = input.shape[2:], self.kernel_size[0], self.stride[0]
        down, right = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (high, wide))
        even = down == right and down % 2 == 0
        padded = input if even else F.pad(input, (right // 2, right - right // 2, down // 2, down - down // 2))
        return F.conv2d(padded, self.weight, self.bias, self.stride, down // 2 if even else 0, self.dilation, self.groups)


class Block(nn.Module):
    """An inverted residual: expansion, depthwise convolution, projection; the input is added where shapes are the same."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expands, self.adds = expansion != 1, stride == 1 and channels == out
        if self.expands:
            self._expand_conv, self._bn0 = SameConv(channels, inner, 1), nn.BatchNorm2d(inner, EPS)
        self._depthwise_conv, self._bn1 = SameConv(inner, inner, kernel, stride, inner), nn.BatchNorm2d(inner, EPS)
        self._project_conv, self._bn2 = SameConv(inner, out, 1), nn.BatchNorm2d(out, EPS)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu6(self._bn0(self._expand_conv(x)), True) if self.expands else x
        found = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(inner)), True)))
        return found.add_(x) if self.adds else found


class EfficientNetLite0(nn.Module):
    """EfficientNet without squeeze-and-excitation and with ReLU6 in place of swish; its tensors have the names of the published file.

    **Shapes**: [N, 3, 224, 224] -> [N, 1280]. **Units**: (level - 127) / 128. **Source**: arXiv 1905.11946; the Lite0 stages as in the
    package efficientnet-lite-pytorch 0.1.0.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, STEM, 3, 2), nn.BatchNorm2d(STEM, EPS)
        blocks, channels = list[nn.Module](), STEM
        for repeats, kernel, stride, expansion, out in STAGES:
            for i in range(repeats):
                blocks.append(Block(channels, out, kernel, stride if i == 0 else 1, expansion))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv(channels, FEATURES, 1), nn.BatchNorm2d(FEATURES, EPS)
        self._fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(x)), True)
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x)), True).mean((2, 3))

    def levels(self, x: Tensor) -> list[Tensor]:
        """The maps [N, C, h, w] after each block that is followed by a smaller one, and the last: of five resolutions."""
        x, found = F.relu6(self._bn0(self._conv_stem(x)), True), list[Tensor]()
        for block in self._blocks:
            smaller = block(x)
            if smaller.shape[-1] < x.shape[-1]:
                found.append(x)
            x = smaller
        return [*found, x]

    def classes(self, features: Tensor) -> Tensor:
        """The logits [N, 1000] of the classes of ImageNet."""
        return self._fc(features)


def efficientnet_lite0(state: Mapping[str, Tensor]) -> EfficientNetLite0:
    """The frozen network with published weights, normalisations made part of the convolutions, channels last.

    **Raises**: UsageError, in one line, for the weights of another network.
    """
    with torch.random.fork_rng(devices=[]):
        network = EfficientNetLite0()
    try:
        network.load_state_dict(dict(state), strict=True)
    except RuntimeError as err:
        what = str(err).splitlines()[1:2] or [str(err)]
        raise UsageError(what[0].strip()) from None
    network = network.eval().requires_grad_(False)
    for owner in [m for m in network.modules() if isinstance(m, Block | EfficientNetLite0)]:
        for conv, bn in PAIRS:
            if conv in owner._modules:
                fold(owner, conv, bn)
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
