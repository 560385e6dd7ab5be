"""Weights on disk: safetensors beside a JSON card that says what they are and pins their SHA-256. Nothing here runs code from a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fewstep.checks import check_range
from fewstep.denoiser import Preconditioned
from fewstep.errors import UsageError, near_misses
from fewstep.files import file_digest, write_atomic
from fewstep.nets.features import DigitClassifier
from fewstep.nets.unet import UNet
from fewstep.nets.x0_eps import X0Eps
from fewstep.precond import EDMPrecond, Precond, ProcessPrecond
from fewstep.schedule import Cosine, NoiseSchedule

SHIPPED = Path(__file__).parents[1] / "weights"
ARCHITECTURES: dict[str, Architecture] = {"unet": UNet, "x0_eps": X0Eps, "digit_classifier": DigitClassifier}
SCHEDULES: dict[str, Callable[[], NoiseSchedule]] = {"cosine": Cosine}
FORMS = ("x0", "eps", "v", "x0_eps")

REQUIRED = {"arch": str, "config": dict, "shape": list, "classes": int, "sigma_data": float, "sigma_range": list, "sha256": str}


def identity(card: Mapping[str, Any]) -> str:
    """SHA-256 over the weights' digest and everything in the card that changes what they compute: the address of the model."""
    named = {k: card[k] for k in (*REQUIRED, "precond", "student") if k in REQUIRED or k in card}
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def save_weights(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> str:
    """Write `path` (safetensors) and its card `path` with suffix .json, which gets the weights' sha256. Returns the digest."""
    write_atomic(path, save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}))
    digest = file_digest(path)
    full = {**card, "sha256": digest}
    write_atomic(path.with_suffix(".json"), json.dumps({**full, "identity": identity(full)}, indent=2).encode() + b"\n")
    return digest


def resolve(name: str | Path) -> Path:
    """A weights file: a path as given, or the name of shipped weights. **Raises**: UsageError naming what is there."""
    path = Path(name)
    if path.suffix != ".safetensors":
        path = SHIPPED / f"{name}.safetensors"
    if not path.exists():
        known = sorted(p.stem for p in SHIPPED.glob("*.safetensors"))
        raise UsageError(f"weights '{name}' not found at {path}{near_misses(str(name), known)}")
    return path


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


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card. **Raises**: UsageError for a truncated file or one whose SHA-256 is not the card's."""
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


def network_version(card: Mapping[str, Any]) -> dict[str, int]:
    """What an address holds of the version of a card's architecture: nothing of the first, so that older addresses stay valid.

    An architecture's `version` is raised whenever the same weights compute something else.
    """
    version = architecture(card).version
    return {} if version == 1 else {"network_version": version}


def load_strict(net: nn.Module, tensors: Mapping[str, Tensor], what: str) -> nn.Module:
    """The network with exactly these weights, in eval mode. **Raises**: UsageError naming the first key or shape that differs."""
    own = net.state_dict()
    for key, value in own.items():
        if key not in tensors:
            raise UsageError(f"{what} lack '{key}'; they belong to another architecture or version")
        if tensors[key].shape != value.shape:
            raise UsageError(f"{what}: '{key}' has shape {list(tensors[key].shape)}, the network needs {list(value.shape)}")
    extra = sorted(set(tensors) - set(own))
    if extra:
        raise UsageError(f"{what} hold unknown keys {extra[:3]}; they belong to another architecture or version")
    net.load_state_dict(dict(tensors))
    return net.eval()


class Architecture(Protocol):
    """A network's class: what makes it from a card's `config`, and the version of what it computes."""

    @property
    def version(self) -> int: ...

    def __call__(self, *args: Any, **config: Any) -> nn.Module: ...


def architecture(card: Mapping[str, Any]) -> Architecture:
    """The class of a card's network. **Raises**: UsageError with near misses."""
    arch = str(card.get("arch"))
    if arch not in ARCHITECTURES:
        raise UsageError(f"unknown architecture '{arch}'{near_misses(arch, list(ARCHITECTURES))}")
    return ARCHITECTURES[arch]


def build(card: Mapping[str, Any]) -> nn.Module:
    """The untrained network a card describes, by its `arch` and `config`."""
    made = architecture(card)
    try:
        return made(**card["config"])
    except (TypeError, ValueError, KeyError, RuntimeError, UsageError) as err:
        raise UsageError(f"the config of architecture '{card['arch']}' does not fit ({err}); restore the card") from None


def precond_of(card: Mapping[str, Any]) -> Precond:
    """EDM's preconditioning, or that of a native process where the card has `precond`: {"schedule": "cosine", "form": "v"}.

    **Raises**: UsageError for an unknown schedule or form, and for a form that the architecture does not have.
    """
    if "precond" not in card:
        return EDMPrecond(card["sigma_data"])
    told = card["precond"]
    if not isinstance(told, Mapping) or set(told) != {"schedule", "form"}:
        raise UsageError(f"precond has a schedule and a form, got {told}; e.g. {{schedule: cosine, form: v}}")
    schedule, form = str(told["schedule"]), str(told["form"])
    if schedule not in SCHEDULES:
        raise UsageError(f"unknown schedule '{schedule}' of precond{near_misses(schedule, list(SCHEDULES))}")
    if form not in FORMS:
        raise UsageError(f"unknown form '{form}' of precond{near_misses(form, FORMS)}")
    if (form == "x0_eps") != (card["arch"] == "x0_eps"):
        raise UsageError(f"form '{form}' does not go with arch '{card['arch']}'; form x0_eps needs arch x0_eps, the others another arch")
    return ProcessPrecond(SCHEDULES[schedule](), form)


def as_denoiser(net: nn.Module, card: Mapping[str, Any]) -> Preconditioned:
    """A network under the preconditioning its card states (`precond_of`; shape, classes, sigma_range)."""
    return Preconditioned(net, precond_of(card), tuple(card["shape"]), card["classes"], check_range(card["sigma_range"], zero=True))


def load_denoiser(name: str | Path, device: torch.device | str = "cpu") -> tuple[Preconditioned, str]:
    """A trained denoiser and its identity (weights and card), by shipped name or path. **Raises**: UsageError when it is no denoiser."""
    path = resolve(name)
    tensors, card = read_weights(path)
    if card["arch"] == "digit_classifier":
        raise UsageError(f"weights {path} are a classifier, not a denoiser; use model=digits")
    if "student" in card:
        raise UsageError(f"weights {path} are a student of {card['student']['method']}; load it with bench.export.load_student")
    net = load_strict(build(card), tensors, f"weights {path}").to(device)
    own = network_version(card)
    found = card["identity"] if not own else hashlib.sha256(json.dumps([card["identity"], own]).encode()).hexdigest()
    return as_denoiser(net.requires_grad_(False), card), found


def load_digit_classifier(device: torch.device | str = "cpu", name: str | Path = "digits_classifier") -> tuple[DigitClassifier, str]:
    """The recorded digit classifier (or another, by path) and the digest of its weights."""
    path = resolve(name)
    tensors, card = read_weights(path)
    if card["arch"] != "digit_classifier":
        raise UsageError(f"weights {path} are a {card['arch']}, not a classifier; use digits_classifier, or load_denoiser for these")
    net = load_strict(build(card), tensors, f"weights {path}").to(device).requires_grad_(False)
    assert isinstance(net, DigitClassifier)
    return net, card["sha256"]
