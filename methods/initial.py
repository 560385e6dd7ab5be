"""Weights that a training starts from: those of a former run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.files import file_digest
from fewstep.nets.loading import read
from fewstep.nets.readers.card import SUFFIX, resolve

HINT = "give weights with a card, an exported student, or the folder or checkpoint of a training"


def file_of(name: str) -> Path:
    """The weights file that is meant: by path, in a training's folder (its only one), or by the name of shipped weights.

    **Raises**: UsageError where there is none, or several.
    """
    folder = Path(name)
    if not folder.is_dir():
        return resolve(name)
    found = sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))
    if len(found) != 1:
        held = ", ".join(path.name for path in found) or "no weights"
        raise UsageError(f"init={name} holds {held}, and one file is needed; {HINT}")
    return found[0]


def initial_tensors(name: str) -> dict[str, Tensor]:
    """The tensors of a former run's network: those of a weights file with its card, or what the last finished phase of a training left, in
    its checkpoint or in the store.

    **Raises**: UsageError for a file that is missing, broken or none of these.
    """
    path = file_of(name)
    if path.suffix != SUFFIX or path.with_suffix(".json").exists():
        return dict(read(path)[0])
    try:
        with safe_open(path, framework="pt") as f:
            metadata = f.metadata() or {}
            tensors = {key.removeprefix("export/"): f.get_tensor(key) for key in f.keys() if _kept(key, metadata)}  # noqa: SIM118
        phase = _last_phase(path, metadata, tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as err:
        raise UsageError(f"init={name} cannot be read ({err}); {HINT}") from None
    found = {key.removeprefix(f"{phase}/"): value for key, value in tensors.items() if key.startswith(f"{phase}/")}
    if not phase or not found:
        raise UsageError(f"init={name} is not what a finished phase of a training left; {HINT}")
    return found


def _kept(key: str, metadata: Mapping[str, str]) -> bool:
    return "progress" not in metadata or key.startswith("export/")


def _last_phase(path: Path, metadata: Mapping[str, str], keys: Iterable[str]) -> str:
    """The phase that ended last, of a checkpoint or of a training in the store; empty where none has."""
    if "progress" in metadata:
        return next(reversed(json.loads(metadata["progress"])["finished"]), "")
    record = path.with_name("record.json")
    seconds: dict[str, Any] = json.loads(record.read_text()).get("train_seconds", {}) if record.exists() else {}
    return max(seconds, key=lambda name: seconds[name], default="") if any("/" in key for key in keys) else ""


def digest_of(name: str) -> str:
    """SHA-256 over the names, types, shapes and values of `initial_tensors`: wherever they lie, and whatever is beside them."""
    path = file_of(name)
    told = path.stat()
    return _digest(name, path, told.st_mtime_ns, told.st_size)


@lru_cache(maxsize=64)
def _digest(name: str, path: Path, changed: int, size: int) -> str:
    whole = hashlib.sha256()
    for key, value in sorted(initial_tensors(name).items()):
        whole.update(json.dumps([key, str(value.dtype), list(value.shape)]).encode())
        whole.update(save({"value": value.detach().cpu().contiguous()}))
    return whole.hexdigest()


def digest_of_file(name: str) -> str:
    """SHA-256 of a weights file as it is, computed once while nobody touches it."""
    path = resolve(name)
    told = path.stat()
    return _digest_of_file(path, told.st_mtime_ns, told.st_size)


@lru_cache(maxsize=64)
def _digest_of_file(path: Path, changed: int, size: int) -> str:
    return file_digest(path)
