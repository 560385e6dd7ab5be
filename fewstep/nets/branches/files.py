"""Adapters as files: what a branch brought, without the network that it is of, and a card that names both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fewstep.denoiser import Denoiser, Preconditioned, with_leaves
from fewstep.errors import UsageError
from fewstep.files import file_digest, write_atomic
from fewstep.nets.branches.adapted import Adapted, with_branch
from fewstep.nets.loading import load_strict
from fewstep.nets.partial import Partial, whole_of
from fewstep.nets.readers.opened import check_file
from fewstep.plugins import get, known

FIELDS = {"branch": str, "version": int, "channels": int, "options": dict, "backbone": str, "sha256": str}
LAYER = ".base_layer."  # what peft calls a layer that it put matrices beside


def backbone_digest(net: nn.Module) -> str:
    """SHA-256 of a network's weights and their names, without what a branch brought."""
    whole = whole_of(net)
    base = whole.base if isinstance(whole, Adapted) else whole
    assert isinstance(base, nn.Module)
    own = whole.own if isinstance(whole, Adapted) else ()
    seen = hashlib.sha256()
    state = {name.replace(LAYER, "."): value for name, value in base.state_dict().items() if f"base.{name}" not in own}
    for name, value in sorted(state.items()):
        flat: Any = value.detach().cpu().contiguous()
        seen.update(f"{name} {list(flat.shape)} {flat.dtype}".encode() + flat.view(-1).view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()


def own_part(net: Adapted) -> Partial:
    """The network as one whose branch alone is trained."""
    return Partial(net, net.own)


def _adapted(net: nn.Module) -> Adapted:
    whole = whole_of(net)
    if not isinstance(whole, Adapted):
        raise UsageError(f"a {type(whole).__name__} has no branch to keep as an adapter; make one by with_branch(net, 'control', 3)")
    return whole


def save_adapter(path: str | Path, net: nn.Module, notes: Mapping[str, Any] | None = None) -> str:
    """Write a branch's parameters alone to `path` (safetensors), and its card beside it with `notes`; the digest of the file.

    **Raises**: UsageError for a network without branch, and a path of another suffix.
    """
    whole, path = _adapted(net), Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"an adapter is kept as safetensors, got {path.name}; use {path.stem}.safetensors")
    state = whole.state_dict()
    tensors = {k: v for k, v in state.items() if any(k == own or k.startswith(f"{own}.") for own in whole.own)}
    write_atomic(path, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))
    card = {
        "branch": whole.name,
        "version": get("branch", whole.name).version,
        "channels": whole.channels,
        "options": whole.options,
        "backbone": backbone_digest(whole),
        "sha256": file_digest(path),
    }
    write_atomic(path.with_suffix(".json"), json.dumps({**card, "notes": dict(notes or {})}, indent=2).encode() + b"\n")
    return card["sha256"]


def adapter_card(path: Path) -> dict[str, Any]:
    """What an adapter's card says. **Raises**: UsageError where it is missing, no JSON, or not that of an adapter."""
    card = path.with_suffix(".json")
    again = "restore it, or save the adapter again"
    try:
        found = json.loads(card.read_text(encoding="utf-8"))
    except OSError as err:
        raise UsageError(f"adapter {path} has no card {card.name} that can be read ({err.strerror or err}); {again}") from None
    except (ValueError, RecursionError) as err:
        raise UsageError(f"card {card} is not valid JSON ({err}); {again}") from None
    for key, kind in FIELDS.items():
        if not isinstance(found, dict) or not isinstance(found.get(key), kind):
            raise UsageError(f"card {card} is none of an adapter: it has no valid '{key}' (a {kind.__name__}); {again}")
    if not known("branch", found["branch"]):
        raise UsageError(f"adapter {path} needs the branch '{found['branch']}', which is not installed here; install what brings it")
    if (here := get("branch", found["branch"]).version) != found["version"]:
        raise UsageError(
            f"adapter {path} has version {found['version']} of branch {found['branch']}, here is version {here}; train it again"
        )
    return found


def _tensors(path: Path, card: Mapping[str, Any]) -> dict[str, Tensor]:
    """**Raises**: UsageError for a file that is missing, truncated or another than its card's."""
    check_file(path)
    try:
        with safe_open(path, framework="pt") as f:
            found = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as err:
        raise UsageError(f"adapter {path} is truncated or not safetensors ({err}); restore the file") from None
    if (digest := file_digest(path)) != card["sha256"]:
        both = f"sha256 {digest[:12]}..., card says {card['sha256'][:12]}..."
        raise UsageError(f"adapter {path} does not match its card ({both}); restore the file")
    return found


def load_adapter(path: str | Path, net: nn.Module, other: bool = False) -> Adapted:
    """A copy of a network with the branch in a file; with `other` also of a network with other weights (a student of its backbone).

    **Raises**: UsageError for a broken file, and for an adapter of another backbone: always where its sizes differ, and without `other`
    where its weights do.
    """
    path = Path(path)
    card = adapter_card(path)
    tensors = _tensors(path, card)
    if not other and (digest := backbone_digest(net)) != card["backbone"]:
        both = f"its weights are {card['backbone'][:12]}..., this one's {digest[:12]}..."
        raise UsageError(f"adapter {path} belongs to another backbone ({both}); load that one, or say other=True to put it on this one")
    with torch.random.fork_rng():
        made = with_branch(net, card["branch"], card["channels"], card["options"])
    load_strict(own_part(made), tensors, f"adapter {path}")
    return made


def with_adapter(denoiser: Denoiser, path: str | Path, other: bool = False) -> Denoiser:
    """The same denoiser, wrappers and all, with the adapter of a file on every network in it. **Raises**: as `load_adapter`."""

    def own(leaf: Denoiser) -> Denoiser:
        if not isinstance(leaf, Preconditioned):
            raise UsageError(f"adapter {path} is for a network, and a {type(leaf).__name__} has none; distil it first")
        made = load_adapter(path, leaf.net, other)
        return replace(leaf, net=made.requires_grad_(False).eval())

    return with_leaves(denoiser, own)
