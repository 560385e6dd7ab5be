"""EDM's checkpoints (`.pkl`): pickled networks, of which the tensors are taken and the source code that they embed is never run.

A file is a dictionary whose `ema` (of SFD's snapshots: `model`) is the preconditioned network. Its classes are records here.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.errors import UsageError
from fewstep.nets.readers.card import identity
from fewstep.nets.readers.layouts import MOST, check_layout, edm_config
from fewstep.nets.readers.opened import check_held, opened
from fewstep.nets.readers.pickled_numpy import NUMPY
from fewstep.nets.readers.pickled_torch import TORCH, View, taken
from fewstep.nets.readers.safe_pickle import PLAIN, Make, Record, Refused, as_dict, inert, loads, walk
from fewstep.plugins import register
from fewstep.precond import IDDPMPrecond

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


def _state(record: Record) -> Mapping[str, Any]:
    return record.state if isinstance(record.state, dict) else {}


def _part(record: Record, name: str) -> Mapping[str, Any]:
    found = _state(record).get(name)
    return found if isinstance(found, dict) else {}


def _members(record: Record) -> Iterator[tuple[Any, Any]]:
    """The parameters, persistent buffers and modules of a module, in the order of a state dict; None where there is none of a name."""
    fleeting = _state(record).get("_non_persistent_buffers_set")
    gone = fleeting if isinstance(fleeting, set) else set()
    own = {**_part(record, "_parameters"), **{k: v for k, v in _part(record, "_buffers").items() if k not in gone}}
    for part, kind, what in ((own, View, "tensor"), (_part(record, "_modules"), Record, "module")):
        for name, value in part.items():
            if value is not None and not isinstance(value, kind):
                raise Refused(f"its {str(name)[:80]} is no {what}")
            yield name, value


def _number(record: Record, name: str, otherwise: float) -> float:
    """A number above 0 that the network's wrapper has as an attribute. **Raises**: Refused for another one."""
    value = _state(record).get(name, otherwise)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise Refused(f"its {name} is {str(value)[:80]}, and no number above 0")
    return float(min(value, 1e300))  # an integer may be longer than any float


def _steps(name: str, count: float) -> int:
    if not 2 <= count <= MOST["timesteps"]:
        raise Refused(f"its process has {count:g} steps ({name})")
    return int(count)


def precond_card(record: Record, levels: Tensor | None) -> dict[str, Any]:
    """What a card says of the preconditioning, by the class of the network's wrapper."""
    if record.name == "EDMPrecond":
        return {"sigma_range": [0.002, 80.0], "sigma_data": _number(record, "sigma_data", 0.5)}
    if record.name == "VPPrecond":
        kind: dict[str, Any] = {"kind": "vp", "beta_d": _number(record, "beta_d", 19.9), "beta_min": _number(record, "beta_min", 0.1)}
        return {"precond": {**kind, "steps": _steps("M", _number(record, "M", 1000))}, "sigma_range": [0.002, 80.0], "sigma_data": 0.5}
    if record.name == "VEPrecond":
        return {"precond": {"kind": "ve"}, "sigma_range": [0.02, 80.0], "sigma_data": 0.5}
    if record.name == "iDDPMPrecond" and levels is not None:
        steps = _steps("u", levels.numel() - 1)
        kind = {"kind": "iddpm", "steps": steps, "c_1": _number(record, "C_1", 0.001), "c_2": _number(record, "C_2", 0.008)}
        lowest = float(IDDPMPrecond(kind["steps"], kind["c_1"], kind["c_2"]).table[-2])
        return {"precond": kind, "sigma_range": [lowest, 80.0], "sigma_data": 0.5}
    raise UsageError(f"it is preconditioned by {record.name}, which is none of EDMPrecond, VPPrecond, VEPrecond and iDDPMPrecond")


SETTINGS = {  # of SFD's code, by our names for them, and of which kind they are
    "afs": ("afs", bool),
    "sampler_stu": ("solver", str),
    "solver": ("solver", str),
    "use_step_condition": ("tells_steps", bool),
    "schedule_type": ("grid", str),
    "sigma_min": ("sigma_min", int | float),
    "sigma_max": ("sigma_max", int | float),
}
VARIABLE = [3, 4, 5, 6]  # the steps that the code trains one network of SFD-v for


def trained_for(told: Mapping[str, Any]) -> dict[str, Any]:
    """What `training_kwargs` say a snapshot was trained for: `steps` (that code counts levels, one more; for SFD-v always the same) and
    settings of its sampling by our names, as far as they are there. **Raises**: Refused for values of another kind."""
    found = {}
    for name, (ours, kind) in SETTINGS.items():
        value = told.get(name)
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise Refused(f"its setting {name} is a {type(value).__name__}")
        found |= {} if value is None else {ours: value}
    levels = told.get("num_steps")
    if levels is not None:
        if type(levels) is not int or not 2 <= levels <= MOST["timesteps"]:
            raise Refused("its setting num_steps is no number of levels")
        found["steps"] = VARIABLE if found.get("tells_steps") and levels - 1 in VARIABLE else [levels - 1]
    return found


def data_named(path: Path) -> dict[str, str]:
    """The data set that a published file's name begins with, as a card has it; nothing for another name."""
    word = re.match(r"(?:baseline-|edm-)?([a-z0-9]+)-", path.name)
    return {"data": DATA[word[1]]} if word and word[1] in DATA else {}


@register("reader", "edm_pickle", suffixes=(".pkl",), told=data_named)
def read_edm(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card of a pickled network of EDM, or of a student that SFD's code saved.

    **Raises**: UsageError for a file that is damaged, names anything beyond these networks, or holds another architecture.
    """
    raw = opened(path)
    digest = hashlib.sha256(raw).hexdigest()
    check_held(path.name, digest, f"weights {path}")
    found = loads(raw, ALLOWED.get, f"weights {path}")
    student = isinstance(found, dict) and "ema" not in found and "model" in found
    root = found.get("model" if student else "ema") if isinstance(found, dict) else None
    if not isinstance(root, Record):
        raise UsageError(f"weights {path} hold no network under 'ema' or 'model'; give a checkpoint of EDM, or register a reader")
    try:
        members = walk(root, _members, len(raw))
        tensors = taken(((name, value) for name, value in members if value is not None), len(raw))
        inner = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        precond = precond_card(root, tensors.get("u"))
        told = _part(root, "_init_kwargs")
        net = _part(root, "_modules").get("model")
        card = {**edm_config(getattr(net, "name", ""), inner, told), **precond, **data_named(path)}
        if student:  # SFD-v has the same layers: where the file does not say, a suite says which one it is
            trained = trained_for(_part(root, "training_kwargs"))
            card["student"] = {"published": True, "method": "sfd_v" if trained.get("tells_steps") else "sfd", "trained": trained}
    except (Refused, UsageError) as err:
        raise UsageError(f"weights {path} hold another network than EDM's: {err}; give a checkpoint of EDM, or register a reader") from None
    check_layout(card, inner, f"weights {path}")
    card |= {"sha256": digest, "source": path.name, **({"null": False} if card["classes"] else {})}
    return inner, {**card, "identity": identity(card)}
