"""EDM's checkpoints (`.pkl`): pickled networks, of which the tensors are taken and the source code that they embed is never run.

A file is a dictionary whose `ema` (of SFD's snapshots: `model`) is the preconditioned network. Its classes are records here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.nets.readers.card import identity
from fewstep.nets.readers.layouts import check_layout, edm_config
from fewstep.nets.readers.opened import opened
from fewstep.nets.readers.pickled_numpy import NUMPY
from fewstep.nets.readers.pickled_torch import TORCH
from fewstep.nets.readers.safe_pickle import PLAIN, Make, Record, Refused, as_dict, inert, loads
from fewstep.plugins import register
from fewstep.precond import IDDPMPrecond

DEEPEST = 16  # modules within modules
CLASSES = ("VPPrecond", "VEPrecond", "iDDPMPrecond", "EDMPrecond", "SongUNet", "DhariwalUNet", "UNetBlock")
LAYERS = ("Linear", "Conv2d", "GroupNorm", "PositionalEmbedding", "FourierEmbedding")
PLACES = ("training.networks", "models.networks_edm")  # where they were defined
DATA = {"cifar10": "cifar10", "ffhq": "ffhq64", "afhqv2": "afhqv2", "imagenet": "imagenet64"}


def persistent_object(meta: Any) -> Record:
    """`_reconstruct_persistent_obj`, which would run the source in `module_src`: the class's name and the object's state."""
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
        raise Refused("it has an object without a class")
    return Record(meta["class_name"], state=meta.get("state"))


ALLOWED: dict[str, Make] = {
    **PLAIN,
    **NUMPY,
    **TORCH,
    "torch_utils.persistence._reconstruct_persistent_obj": persistent_object,
    "dnnlib.util.EasyDict": as_dict,
    **{f"torch.nn.modules.container.{name}": inert(name) for name in ("ModuleDict", "ModuleList", "Sequential")},
    **{f"{place}.{name}": inert(name) for place in PLACES for name in (*CLASSES, *LAYERS)},
}


def _part(record: Record, name: str) -> Mapping[str, Any]:
    state = record.state if isinstance(record.state, dict) else {}
    found = state.get(name)
    return found if isinstance(found, dict) else {}


def _named(record: Any, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """The parameters and persistent buffers of a module and of those in it, by their full names, in the order of a state dict."""
    if not isinstance(record, Record) or depth > DEEPEST:
        raise Refused("it has something else where a module belongs")
    state = record.state if isinstance(record.state, dict) else {}
    fleeting = state.get("_non_persistent_buffers_set") or ()
    own = {**_part(record, "_parameters"), **{k: v for k, v in _part(record, "_buffers").items() if k not in fleeting}}
    for name, value in own.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif value is not None:
            raise Refused(f"its {prefix}{name} is no tensor")
    for name, module in _part(record, "_modules").items():
        if module is not None:
            yield from _named(module, f"{prefix}{name}.", depth + 1)


def _number(record: Record, name: str, otherwise: float) -> float:
    """A number that the network's wrapper has as an attribute."""
    value = (record.state if isinstance(record.state, dict) else {}).get(name, otherwise)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else otherwise


def precond_card(record: Record, levels: np.ndarray | None) -> dict[str, Any]:
    """What a card says of the preconditioning, by the class of the network's wrapper."""
    if record.name == "EDMPrecond":
        return {"sigma_range": [0.002, 80.0], "sigma_data": _number(record, "sigma_data", 0.5)}
    if record.name == "VPPrecond":
        kind: dict[str, Any] = {"kind": "vp", "beta_d": _number(record, "beta_d", 19.9), "beta_min": _number(record, "beta_min", 0.1)}
        return {"precond": {**kind, "steps": int(_number(record, "M", 1000))}, "sigma_range": [0.002, 80.0], "sigma_data": 0.5}
    if record.name == "VEPrecond":
        return {"precond": {"kind": "ve"}, "sigma_range": [0.02, 80.0], "sigma_data": 0.5}
    if record.name == "iDDPMPrecond" and levels is not None:
        kind = {"kind": "iddpm", "steps": len(levels) - 1, "c_1": _number(record, "C_1", 0.001), "c_2": _number(record, "C_2", 0.008)}
        lowest = float(IDDPMPrecond(kind["steps"], kind["c_1"], kind["c_2"]).table[-2])
        return {"precond": kind, "sigma_range": [lowest, 80.0], "sigma_data": 0.5}
    raise UsageError(f"it is preconditioned by {record.name}, which is none of EDMPrecond, VPPrecond, VEPrecond and iDDPMPrecond")


def data_named(path: Path) -> dict[str, str]:
    """The data set that a published file's name begins with, as a card has it; nothing for another name."""
    word = re.match(r"(?:baseline-|edm-)?([a-z0-9]+)-", path.name)
    return {"data": DATA[word[1]]} if word and word[1] in DATA else {}


@register("reader", "edm_pickle", suffixes=(".pkl",))
def read_edm(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card of a pickled network of EDM, or of a student that SFD's code saved.

    **Raises**: UsageError for a file that is damaged, names anything beyond these networks, or holds another architecture.
    """
    raw = opened(path)
    found = loads(raw, ALLOWED.get, f"weights {path}")
    student = isinstance(found, dict) and "ema" not in found and "model" in found
    root = found.get("model" if student else "ema") if isinstance(found, dict) else None
    if not isinstance(root, Record):
        raise UsageError(f"weights {path} hold no network under 'ema' or 'model'; give a checkpoint of EDM, or register a reader")
    try:
        tensors = dict(_named(root, "", 0))
        inner = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        levels = tensors.get("u")
        precond = precond_card(root, None if levels is None else levels.numpy())
        told = _part(root, "_init_kwargs") or {}
        net = _part(root, "_modules").get("model")
        card = {**edm_config(getattr(net, "name", ""), inner, told), **precond, **data_named(path)}
    except (Refused, UsageError) as err:
        raise UsageError(f"weights {path} hold another network than EDM's: {err}; give a checkpoint of EDM, or register a reader") from None
    check_layout(card, inner, f"weights {path}")
    if student:
        card["student"] = {"published": True, "method": "sfd"}  # of which SFD-v has the same layers: a suite says which one it is
    card |= {"sha256": hashlib.sha256(raw).hexdigest(), "source": path.name}
    return inner, {**card, "identity": identity(card)}
