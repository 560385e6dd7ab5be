"""Our own weights on disk: safetensors beside a JSON card that says what they are and pins their SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fewstep.assets import located
from fewstep.errors import UsageError, near_misses
from fewstep.files import file_digest, write_atomic
from fewstep.nets.readers.hub import CONFIG, asked_for, is_repository, listed, snapshot
from fewstep.nets.readers.opened import check_file
from fewstep.plugins import register

SHIPPED = Path(__file__).parents[1] / "weights"
SUFFIX = ".safetensors"
REQUIRED = {"arch": str, "config": dict, "shape": list, "classes": int, "sigma_data": float, "sigma_range": list, "sha256": str}


def identity(card: Mapping[str, Any]) -> str:
    """SHA-256 over the weights' digest and everything in the card that changes what they compute: the address of the model."""
    named = {k: card[k] for k in (*REQUIRED, "precond", "student") if k in REQUIRED or k in card}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def save_weights(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> str:
    """Write `path` (safetensors) and its card `path` with suffix .json, which gets the weights' sha256. Returns the digest."""
    write_atomic(path, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))
    digest = file_digest(path)
    write_card(path, {**card, "sha256": digest})
    return digest


def write_card(path: Path, card: Mapping[str, Any]) -> None:
    """The card of weights that are there: more is known of them now."""
    write_atomic(path.with_suffix(".json"), json.dumps({**card, "identity": identity(card)}, indent=2).encode() + b"\n")


def shipped() -> list[str]:
    """The names of the weights that are part of this package."""
    return sorted(p.stem for p in SHIPPED.glob("*.safetensors"))


def here(name: str | Path) -> Path | None:
    """Where weights lie: at a path, among what is shipped, in the hub's own cache, or (`weights/NAME`) among what was fetched."""
    path = Path(name)
    if path.exists():
        return path
    if not path.suffix and (SHIPPED / f"{name}{SUFFIX}").exists():
        return SHIPPED / f"{name}{SUFFIX}"
    file, command = listed(name)
    found = located(str(file)) if command else None
    if command and file.name != CONFIG:
        return found
    if (copy := snapshot(str(name))) is not None:
        return copy
    return None if found is None else found.parent


def how_to_get(name: str | Path) -> str:
    """What to do for weights that are not here."""
    path = Path(name)
    if asked := asked_for(name):
        return f"type {asked}, or put it there"
    if is_repository(str(name)):
        return f"type hf download {name}, if that is a repository of the hub"
    if asked_for(path.name):
        return f"put it there, or say {path.name} alone, which is looked for among what was fetched"
    return f"put it there{near_misses(str(name), shipped())}"


def resolve(name: str | Path) -> Path:
    """A weights file (or a pipeline's folder): `here`. **Raises**: UsageError naming what is there, or how to get it."""
    found = here(name)
    if found is None:
        path = Path(name) if Path(name).suffix or "/" in str(name) else SHIPPED / f"{name}{SUFFIX}"
        raise UsageError(f"weights '{name}' not found at {path}; {how_to_get(name)}")
    return found


def read_card(path: Path) -> dict[str, Any]:
    """The JSON card beside a weights file. **Raises**: UsageError when it is missing or not JSON."""
    card = path.with_suffix(".json")
    again = "restore it or train the model again"
    try:
        found = json.loads(card.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"weights {path} have no card {card.name} beside them; {again}") from None
    except OSError as err:
        raise UsageError(f"card {card} cannot be read ({err.strerror or err}); {again}") from None
    except (ValueError, RecursionError) as err:
        raise UsageError(f"card {card} is not valid JSON ({err}); {again}") from None
    for key, kind in REQUIRED.items():
        if not isinstance(found, dict) or not isinstance(found.get(key), kind):
            raise UsageError(f"card {card} has no valid '{key}' (a {kind.__name__}); {again}")
    for key, count in (("shape", 3), ("sigma_range", 2)):
        if len(found[key]) != count or not all(isinstance(v, int | float) for v in found[key]):
            raise UsageError(f"card {card}: '{key}' must be {count} numbers, got {found[key]}; {again}")
    if found.get("identity") != identity(found):
        raise UsageError(f"card {card} was changed after it was written (its identity does not match); {again}")
    return found


@register("reader", "card", suffixes=(SUFFIX,), told=read_card)
def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card. **Raises**: UsageError for a truncated file or one whose SHA-256 is not the card's."""
    check_file(path)
    card = read_card(path)
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as err:
        raise UsageError(f"weights {path} are truncated or not safetensors ({err}); restore the file or train again") from None
    digest = file_digest(path)
    if digest != card.get("sha256"):
        found, wanted = digest[:12], str(card.get("sha256"))[:12]
        raise UsageError(f"weights {path} do not match their card (sha256 {found}..., card says {wanted}...); restore the file")
    return tensors, card
