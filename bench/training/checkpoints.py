"""What a checkpoint holds, in one file that is whole or not there, and what it must share with the training that goes on with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fewstep.analytic import Analytic
from fewstep.denoiser import Denoiser, Preconditioned, layers
from fewstep.errors import UsageError
from fewstep.files import write_atomic
from methods.start import starts

FILE = "checkpoint.safetensors"  # in the folder of a training


@dataclass
class Progress:
    """Everything that a checkpoint holds beside tensors."""

    phase: int = 0
    batch: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    passes: dict[str, int] = field(default_factory=dict)
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)  # `Spent` by phase
    log: list[dict[str, float]] = field(default_factory=list)
    scalers: dict[str, dict[str, Any]] = field(default_factory=dict)  # of float16's losses, by net


def own_copy(value: Tensor) -> Tensor:
    """A copy in memory of its own, which a file can hold."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def of_teacher(teacher: Denoiser) -> list[str]:
    """What a checkpoint must share with the teacher it goes on with: its layers' settings, a closed form's numbers, and the network that
    students start from."""

    def said(value: Any) -> str:
        return str(getattr(value, "__qualname__", value.tolist() if isinstance(value, Tensor) else value))

    told, networks = list[str](), starts(teacher)
    for layer in layers(teacher):
        kept = (str, int, float, tuple, dict, Tensor, FunctionType)
        told += [type(layer).__name__, *(f"{k} {said(v)}" for k, v in vars(layer).items() if isinstance(v, kept))]
        if isinstance(layer, Analytic):
            told.append(str(layer.identity()))
        if isinstance(layer, Preconditioned):
            networks.append(layer)
    for own in networks:
        told += [repr(own.precond), hashlib.sha256(save({k: own_copy(v) for k, v in own.net.state_dict().items()})).hexdigest()]
    return told


def pack_optimiser(name: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as tensors."""
    states = optimiser.state_dict()["state"]
    return {f"optim/{name}/{i}/{k}": torch.as_tensor(v).detach().cpu().contiguous() for i, s in states.items() for k, v in s.items()}


def unpack_optimiser(name: str, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give a new optimiser the state that `pack_optimiser` made."""
    packed = optimiser.state_dict()
    for key, value in tensors.items():
        kind, owner, *rest = key.split("/")
        if kind == "optim" and owner == name:
            packed["state"].setdefault(int(rest[0]), {})[rest[1]] = value
    optimiser.load_state_dict(packed)


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def write(file: Path, tensors: Mapping[str, Tensor], progress: Progress, identity: str) -> None:
    """Write a checkpoint, atomically."""
    write_atomic(file, save(dict(tensors), metadata={"progress": json.dumps(vars(progress)), "identity": identity}))


def read(file: Path, identity: str) -> tuple[Progress, dict[str, Tensor]]:
    """A checkpoint's progress and tensors. **Raises**: UsageError for that of another training; KeyError, TypeError, ValueError or
    SafetensorError (`BROKEN`) for a file that is none."""
    with safe_open(file, framework="pt") as f:
        told = f.metadata() or {}
        if told.get("identity") != identity:
            of = "another training (its method, options, seed, data or teacher differ)"
            raise UsageError(f"{file} is the checkpoint of {of}; delete it to train from the start")
        return Progress(**json.loads(told["progress"])), {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (not a dict)


BROKEN = (SafetensorError, KeyError, TypeError, ValueError)  # what reading a file raises that is no checkpoint
