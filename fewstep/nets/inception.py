"""The Inception network of 2015 that FID is defined by, up to its 2,048 pooled features, from any of the files that it is published in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fewstep.errors import UsageError
from fewstep.nets.folding import fold

SIDE, FEATURES = 299, 2048

# Where the tensors of a TorchScript archive belong: its blocks are named as in TensorFlow's graph, ours as in torchvision.
_STEM = {
    "conv": "Conv2d_1a_3x3",
    "conv_1": "Conv2d_2a_3x3",
    "conv_2": "Conv2d_2b_3x3",
    "conv_3": "Conv2d_3b_1x1",
    "conv_4": "Conv2d_4a_3x3",
}
_A = {
    "conv": "branch1x1",
    **{f"tower.conv{tail}": f"branch5x5_{i}" for i, tail in enumerate(("", "_1"), 1)},
    **{f"tower_1.conv{tail}": f"branch3x3dbl_{i}" for i, tail in enumerate(("", "_1", "_2"), 1)},
    "tower_2.conv": "branch_pool",
}
_B = {"conv": "branch3x3", **{f"tower.conv{tail}": f"branch3x3dbl_{i}" for i, tail in enumerate(("", "_1", "_2"), 1)}}
_C = {
    "conv": "branch1x1",
    **{f"tower.conv{tail}": f"branch7x7_{i}" for i, tail in enumerate(("", "_1", "_2"), 1)},
    **{f"tower_1.conv{tail}": f"branch7x7dbl_{i}" for i, tail in enumerate(("", "_1", "_2", "_3", "_4"), 1)},
    "tower_2.conv": "branch_pool",
}
_D = {
    **{f"tower.conv{tail}": f"branch3x3_{i}" for i, tail in enumerate(("", "_1"), 1)},
    **{f"tower_1.conv{tail}": f"branch7x7x3_{i}" for i, tail in enumerate(("", "_1", "_2", "_3"), 1)},
}
_E = {
    "conv": "branch1x1",
    "tower_conv": "branch3x3_1",
    "tower_mixed_conv": "branch3x3_2a",
    "tower_mixed_conv_1": "branch3x3_2b",
    "tower_1_conv": "branch3x3dbl_1",
    "tower_1_conv_1": "branch3x3dbl_2",
    "tower_1_mixed_conv": "branch3x3dbl_3a",
    "tower_1_mixed_conv_1": "branch3x3dbl_3b",
    "tower_2_conv": "branch_pool",
}
_BLOCKS = (
    ("5b", _A),
    ("5c", _A),
    ("5d", _A),
    ("6a", _B),
    ("6b", _C),
    ("6c", _C),
    ("6d", _C),
    ("6e", _C),
    ("7a", _D),
    ("7b", _E),
    ("7c", _E),
)
PLACES = _STEM | {
    f"mixed{'' if i == 0 else f'_{i}'}.{theirs}": f"Mixed_{block}.{ours}"
    for i, (block, names) in enumerate(_BLOCKS)
    for theirs, ours in names.items()
}
_TENSORS = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}
_HEAD, _COUNTER = ("fc.weight", "fc.bias"), "num_batches_tracked"


def from_torchscript(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive under the names of `inception-v3-compat`, those of the classifier left out.

    The archives' batch normalisation has no scale: it is 1. What lies outside of their `layers` is no part of the features.
    **Raises**: UsageError for a tensor that has no place, or for a place without one.
    """
    roots = {name[: name.index("layers.")] for name in tensors if "layers." in name}
    if len(roots) != 1:
        raise UsageError("it holds no 'layers' of the Inception network of 2015")
    start, found = f"{roots.pop()}layers.", dict[str, Tensor]()
    for name, value in tensors.items():
        if not name.startswith(start):
            continue
        theirs, _, kind = name.removeprefix(start).rpartition(".")
        if theirs not in PLACES or kind not in _TENSORS:
            raise UsageError(f"its tensor {name} is none of the Inception network of 2015")
        found[f"{PLACES[theirs]}.{_TENSORS[kind]}"] = value
        if kind == "beta":
            found[f"{PLACES[theirs]}.bn.weight"] = torch.ones_like(value)
    return found


def layers() -> nn.Sequential:
    """torch-fidelity's `inception-v3-compat` from the resized image to its pooled features, with the names of its own tensors.

    **Shapes**: [N, 3, 299, 299] -> [N, 2048]. **Units**: (level - 128) / 128. **Source**: arXiv 1512.00567; package torch-fidelity 0.4.
    """
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    conv = theirs.BasicConv2d
    parts: dict[str, nn.Module] = {
        "Conv2d_1a_3x3": conv(3, 32, kernel_size=3, stride=2),
        "Conv2d_2a_3x3": conv(32, 32, kernel_size=3),
        "Conv2d_2b_3x3": conv(32, 64, kernel_size=3, padding=1),
        "MaxPool_1": nn.MaxPool2d(3, 2),
        "Conv2d_3b_1x1": conv(64, 80, kernel_size=1),
        "Conv2d_4a_3x3": conv(80, 192, kernel_size=3),
        "MaxPool_2": nn.MaxPool2d(3, 2),
        "Mixed_5b": theirs.InceptionA(192, 32),
        "Mixed_5c": theirs.InceptionA(256, 64),
        "Mixed_5d": theirs.InceptionA(288, 64),
        "Mixed_6a": theirs.InceptionB(288),
        **{f"Mixed_6{k}": theirs.InceptionC(768, width) for k, width in (("b", 128), ("c", 160), ("d", 160), ("e", 192))},
        "Mixed_7a": theirs.InceptionD(768),
        "Mixed_7b": theirs.InceptionE_1(1280),
        "Mixed_7c": theirs.InceptionE_2(2048),
        "AvgPool": nn.AdaptiveAvgPool2d(1),
        "Flat": nn.Flatten(),
    }
    network = nn.Sequential()
    for name, part in parts.items():
        network.add_module(name, part)
    return network


def tensors_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that the features are made with, from any of the published files: those of the classifier and counters left out.

    **Raises**: UsageError for what is none of these files.
    """
    own = dict(state) if "Conv2d_1a_3x3.conv.weight" in state else from_torchscript(state)
    for name, shape in zip(_HEAD, ((1008, FEATURES), (1008,))):
        if name in own and tuple(own[name].shape) != shape:
            raise UsageError(f"size mismatch for {name}: {list(own[name].shape)} where {list(shape)} belongs")
    return {name: value for name, value in own.items() if name not in _HEAD and not name.endswith(_COUNTER)}


def inception_network(state: Mapping[str, Tensor], folded: bool = True) -> nn.Module:
    """The frozen network with the weights of a published file: a state dict as torch-fidelity and pytorch-fid publish it, or the tensors
    of a TorchScript archive. Channels last; `folded` makes each normalisation part of its convolution, a fifth faster on a CPU.

    **Raises**: UsageError, in one line, for tensors that are not those of this network.
    """
    own = tensors_of(state)
    with torch.random.fork_rng(devices=[]):
        network = layers()
    counters = {name: value for name, value in network.state_dict().items() if name.endswith(_COUNTER)}
    try:
        network.load_state_dict(counters | own, strict=True)
    except RuntimeError as err:
        what = str(err).splitlines()[1:2] or [str(err)]
        raise UsageError(what[0].strip()) from None
    network = network.eval().requires_grad_(False)
    for block in [m for m in network.modules() if type(m).__name__ == "BasicConv2d"] if folded else []:
        fold(block, "conv", "bn")
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
