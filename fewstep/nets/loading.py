"""From a card to its network: the architecture that it names, its preconditioning, and its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from fewstep.checks import check_range
from fewstep.denoiser import Preconditioned
from fewstep.discrete import Discrete
from fewstep.errors import UsageError, near_misses
from fewstep.nets.features import DigitClassifier
from fewstep.nets.readers.card import read_weights, resolve
from fewstep.nets.readers.hub import FOLDER, pipeline_of
from fewstep.nets.readers.layouts import UNFIT, same_layout
from fewstep.plugins import Entry, entries, get
from fewstep.precond import ConsistencyPrecond, EDMPrecond, IDDPMPrecond, Precond, ProcessPrecond, VEPrecond
from fewstep.schedule import VP

FORMS = ("x0", "eps", "v", "x0_eps")


def network_version(card: Mapping[str, Any]) -> dict[str, int]:
    """What an address holds of the version of a card's architecture: nothing of the first, so that older addresses stay valid.

    An architecture's `version` is raised whenever the same weights compute something else.
    """
    version = architecture(card).version
    return {} if version == 1 else {"network_version": version}


def load_strict(net: nn.Module, tensors: Mapping[str, Tensor], what: str) -> nn.Module:
    """The network with exactly these weights, in eval mode.

    **Raises**: UsageError naming the first key or shape that differs, and the first tensor that is not dense, not of floats where the
    network's are, or not finite.
    """
    same_layout(net, tensors, what)
    for key, own in net.state_dict().items():
        value = tensors[key]
        if value.layout is not torch.strided or value.is_meta:
            raise UsageError(f"{what}: '{key}' is {'without values' if value.is_meta else value.layout}; only dense tensors are loaded")
        if value.is_floating_point() != own.is_floating_point() or value.is_complex():
            raise UsageError(f"{what}: '{key}' is {value.dtype}, the network needs {own.dtype}")
        if not value.isfinite().all():
            raise UsageError(f"{what}: '{key}' holds NaN or infinity; restore the file, or train again with a lower lr")
    net.load_state_dict(dict(tensors))
    return net.eval()


def formats() -> dict[str, str]:
    """The suffixes of weights files that can be read, and the reader of each."""
    return {suffix: name for name, entry in entries("reader").items() for suffix in entry.preset["suffixes"]}


def _reader(path: Path) -> Entry:
    """The reader of a file's format. **Raises**: UsageError for a suffix that none has."""
    readers = formats()
    suffix = FOLDER if pipeline_of(path) else path.suffix
    if suffix not in readers:
        known = ", ".join(readers)
        raise UsageError(f"no reader for weights {path} ('{path.suffix}' is none of {known}); register one with @register('reader', NAME)")
    return get("reader", readers[suffix])


def read(path: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """Tensors and card of a weights file, by the reader of its format.

    **Raises**: UsageError for a suffix that no reader has, and whatever the reader says of the file.
    """
    return _reader(path).make(path=path)


def described(path: Path) -> Mapping[str, Any]:
    """What a card says of a weights file as far as it takes no reading of the weights (a reader's `told`); all where a reader has none."""
    reader = _reader(path)
    return reader.preset["told"](path) if "told" in reader.preset else reader.make(path=path)[1]


class Architecture(Protocol):
    """A network's class: what makes it from a card's `config`, and the version of what it computes."""

    @property
    def version(self) -> int: ...

    def __call__(self, *args: Any, **config: Any) -> nn.Module: ...


def architecture(card: Mapping[str, Any]) -> Architecture:
    """The class of a card's network. **Raises**: UsageError with near misses."""
    return cast("Architecture", get("network", str(card.get("arch"))).target)


def build(card: Mapping[str, Any]) -> nn.Module:
    """The untrained network a card describes, by its `arch` and `config`."""
    made = architecture(card)
    try:
        return made(**card["config"])
    except UNFIT as err:
        raise UsageError(f"the config of architecture '{card['arch']}' does not fit ({err}); restore the card") from None


def _published(sigma_data: float, told: Mapping[str, Any]) -> Precond:
    """The preconditioning of a published network, by its `kind` and numbers. **Raises**: UsageError for an unknown one, and bad numbers."""
    kinds: dict[str, Callable[..., Precond]] = {
        "vp": lambda beta_d=19.9, beta_min=0.1, steps=1000: ProcessPrecond(VP(beta_d, beta_min), "eps", float(steps - 1)),
        "ve": VEPrecond,
        "iddpm": IDDPMPrecond,
        "consistency": lambda sigma_min: ConsistencyPrecond(sigma_data, sigma_min),
        "betas": lambda form, **schedule: ProcessPrecond(Discrete(**schedule), _form(form)),
    }
    kind = str(told["kind"])
    if kind not in kinds:
        raise UsageError(f"unknown kind '{kind}' of precond{near_misses(kind, list(kinds))}")
    try:
        return kinds[kind](**{name: value for name, value in told.items() if name != "kind"})
    except (TypeError, ValueError, ArithmeticError) as err:
        raise UsageError(f"precond {dict(told)} does not fit ({err}); restore the card") from None


def _form(form: str) -> str:
    if form not in FORMS:
        raise UsageError(f"unknown form '{form}' of precond{near_misses(form, FORMS)}")
    return form


def precond_of(card: Mapping[str, Any]) -> Precond:
    """EDM's preconditioning, that of a native process where the card has `precond`: {"schedule": "cosine", "form": "v"}, or a published one
    by its `kind`: {"kind": "ve"}.

    **Raises**: UsageError for an unknown schedule or form, and for a form that the architecture does not have.
    """
    if "precond" not in card:
        return EDMPrecond(card["sigma_data"])
    told = card["precond"]
    if isinstance(told, Mapping) and "kind" in told:
        return _published(card["sigma_data"], told)
    if not isinstance(told, Mapping) or set(told) != {"schedule", "form"}:
        raise UsageError(f"precond has a schedule and a form, got {told}; e.g. {{schedule: cosine, form: v}}")
    schedule, form = str(told["schedule"]), _form(str(told["form"]))
    if (form == "x0_eps") != (card["arch"] == "x0_eps"):
        raise UsageError(f"form '{form}' does not go with arch '{card['arch']}'; form x0_eps needs arch x0_eps, the others another arch")
    return ProcessPrecond(get("schedule", schedule).make(), form)


def as_denoiser(net: nn.Module, card: Mapping[str, Any]) -> Preconditioned:
    """A network under the preconditioning its card states (`precond_of`; shape, classes, sigma_range); `null: false` in a card says that it
    was never trained without a label."""
    levels = check_range(card["sigma_range"], zero=True)
    return Preconditioned(net, precond_of(card), tuple(card["shape"]), card["classes"], levels, card.get("null") is not False)


def load_denoiser(name: str | Path, device: torch.device | str = "cpu") -> tuple[Preconditioned, str]:
    """A trained denoiser and its identity (weights and card), by shipped name or path. **Raises**: UsageError when it is no denoiser."""
    return load_weights(name, device)[:2]


def load_weights(name: str | Path, device: torch.device | str = "cpu") -> tuple[Preconditioned, str, str]:
    """As `load_denoiser`, with the SHA-256 of the weights' file."""
    path = resolve(name)
    tensors, card = read(path)
    if card["arch"] == "digit_classifier":
        raise UsageError(f"weights {path} are a classifier, not a denoiser; use model=digits")
    if "student" in card:
        raise UsageError(f"weights {path} are a student of {card['student']['method']}; load it with fewstep.load_student")
    net = load_strict(build(card), tensors, f"weights {path}").to(device)
    own = network_version(card)
    found = card["identity"] if not own else hashlib.sha256(json.dumps([card["identity"], own]).encode()).hexdigest()
    return as_denoiser(net.requires_grad_(False), card), found, str(card["sha256"])


def load_digit_classifier(device: torch.device | str = "cpu", name: str | Path = "digits_classifier") -> tuple[DigitClassifier, str]:
    """The recorded digit classifier (or another, by path) and the digest of its weights."""
    path = resolve(name)
    tensors, card = read_weights(path)
    if card["arch"] != "digit_classifier":
        raise UsageError(f"weights {path} are a {card['arch']}, not a classifier; use digits_classifier, or load_denoiser for these")
    net = load_strict(build(card), tensors, f"weights {path}").to(device).requires_grad_(False)
    assert isinstance(net, DigitClassifier)
    return net, card["sha256"]
