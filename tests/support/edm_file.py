"""Checkpoints with the documented structure of EDM's and of SFD's, pickled by stand-ins of the modules that those files name."""

from __future__ import annotations

import io
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

HOSTILE = "open({trace!r}, 'w').close()\n"  # the source in a file, which makes another when it is run


def _module(name: str, **members: Any) -> None:
    module = types.ModuleType(name)
    for key, value in members.items():
        value.__module__, value.__qualname__ = name, key
        setattr(module, key, value)
    sys.modules[name] = module


@contextmanager
def stand_ins(names: tuple[str, ...]) -> Iterator[dict[str, type]]:
    """Modules of these names while files are pickled: persistence, EasyDict, and a class for each plain module of SFD's."""

    def rebuild(meta):
        raise AssertionError("it was called")

    easy = type("EasyDict", (dict,), {})
    plain = {name: type(name, (nn.Module,), {}) for name in names}
    before = dict(sys.modules)
    try:
        for parent in ("torch_utils", "dnnlib", "models"):
            sys.modules[parent] = types.ModuleType(parent)
        _module("torch_utils.persistence", _reconstruct_persistent_obj=rebuild)
        _module("dnnlib.util", EasyDict=easy)
        _module("models.networks_edm", **plain)
        yield {"EasyDict": easy, **plain}
    finally:
        for name in set(sys.modules) - set(before):
            del sys.modules[name]


class Persistent(nn.Module):
    """A module that is pickled as the call which would rebuild it from its source."""

    def __init__(self, class_name: str, source: str) -> None:
        super().__init__()
        self.class_name, self.source = class_name, source

    def __reduce__(self):
        state = {k: v for k, v in self.__dict__.items() if k not in ("class_name", "source")}
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": self.class_name, "state": state}
        made = sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj
        return made, (sys.modules["dnnlib.util"].EasyDict(meta),)


CLASSES = {"map_noise": "PositionalEmbedding", "map_step": "PositionalEmbedding"}


def class_of(module: nn.Module, name: str) -> str:
    """What the published code calls a module of ours."""
    kind = type(module).__name__
    names = {"Block": "UNetBlock", "Positional": "PositionalEmbedding", "Fourier": "FourierEmbedding"}
    return CLASSES.get(name, names.get(kind, kind)) if kind != "Fourier" else "FourierEmbedding"


def mirrored(module: nn.Module, name: str, make: Any) -> nn.Module:
    """The tree of a network of ours in modules that `make(class name)` makes, with the same tensors."""
    if isinstance(module, nn.ModuleDict):
        made: nn.Module = nn.ModuleDict()
    else:
        made = make(class_of(module, name))
    for key, value in module._parameters.items():
        made.register_parameter(key, value)
    for key, value in module._buffers.items():
        made.register_buffer(key, value)
    for key, child in module._modules.items():
        if key != "embed_scalars" and not isinstance(child, nn.Dropout):  # which the published code calls as a function
            made.add_module(key, None if child is None else mirrored(child, key, make))
    made.skip_scale = np.float64(0.5**0.5)  # a NumPy scalar, as the published blocks have one
    return made.eval().requires_grad_(False)


def edm_checkpoint(
    path: Path, net: nn.Module, kwargs: Mapping[str, Any], precond: str = "EDMPrecond", buffers: Mapping[str, Tensor] | None = None
) -> Path:
    """Write a checkpoint of EDM with this network; its embedded source makes `path` with suffix .trace where somebody runs it."""
    source = HOSTILE.format(trace=str(path.with_suffix(".trace")))
    with stand_ins(()) as known:
        root = Persistent(precond, source)
        root._init_kwargs = known["EasyDict"](kwargs)
        root._init_args = ()
        root.sigma_data, root.use_fp16 = 0.5, False
        for key, value in (buffers or {}).items():
            root.register_buffer(key, value)
        root.register_buffer("scratch", torch.ones(2), persistent=False)
        root.model = mirrored(net, "model", lambda name: Persistent(name, source))
        loss = Persistent("EDMLoss", source)
        loss.P_mean = -1.2
        whole = {"ema": root.eval(), "loss_fn": loss, "augment_pipe": None, "dataset_kwargs": known["EasyDict"](path="cifar10.zip")}
        _write(path, whole)
    return path


def sfd_snapshot(path: Path, net: nn.Module, training: Mapping[str, Any]) -> Path:
    """Write a snapshot of SFD's code, whose modules are pickled as they are."""
    names = (
        "EDMPrecond",
        "SongUNet",
        "DhariwalUNet",
        "UNetBlock",
        "Linear",
        "Conv2d",
        "GroupNorm",
        "PositionalEmbedding",
        "FourierEmbedding",
    )
    with stand_ins(names) as known:
        root = known["EDMPrecond"]()
        root.training_kwargs = dict(training)
        root.model = mirrored(net, "model", lambda name: known[name]())
        _write(path, OrderedDict(model=root))
    return path


def _write(path: Path, value: Any) -> None:
    buffer = io.BytesIO()
    pickle.dump(value, buffer)
    path.write_bytes(buffer.getvalue())
