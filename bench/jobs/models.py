"""Models as the configuration names them: the teacher, its data, and the network a training starts from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.store.addresses import digest
from fewstep.analytic import Analytic
from fewstep.arenas import arena_digits, arena_gaussian, arena_mixture
from fewstep.data.arena import ARENAS
from fewstep.data.cifar10 import cifar10
from fewstep.data.digits import digits, digits_unconditional
from fewstep.data.images import ImageData
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import Unavailable, UsageError, near_misses
from fewstep.files import check_name
from fewstep.nets.loading import ARCHITECTURES, as_denoiser, build, load_denoiser, network_version
from fewstep.plugins import get
from fewstep.sampling.memory import recalling
from fewstep.wrappers import Mapped, clip, dynamic_threshold

DATA: dict[str, Callable[[], ImageData]] = {
    "digits": digits,
    "digits_unconditional": digits_unconditional,
    "cifar10": cifar10,
    **ARENAS,
}
CLOSED_FORMS: dict[str, Callable[[], Analytic]] = {
    "arena_gaussian": arena_gaussian,
    "arena_mixture": arena_mixture,
    "arena_digits": arena_digits,
}

TRAINED = "trained"  # in place of a weights file: the model is trained before its first use, as a fit in the store


@dataclass(frozen=True)
class Wrap:
    """A named function of every D, and the version of what it computes."""

    fn: Callable[[Tensor], Tensor]
    version: int = 1


WRAPS: dict[str, Wrap] = {"clip": Wrap(clip), "dynamic_threshold": Wrap(dynamic_threshold)}


def wrap_version(wrap: str) -> dict[str, int]:
    """What an address holds of a wrapper's version: nothing of the first, so that older addresses stay valid."""
    version = WRAPS[wrap].version if wrap in WRAPS else 1
    return {} if version == 1 else {"wrap_version": version}


def wrapped(denoiser: Denoiser, wrap: str) -> Denoiser:
    """The denoiser with a named function of every D, after guidance; itself for the empty name."""
    return Mapped(denoiser, WRAPS[wrap].fn) if wrap else denoiser


def load_data(name: str) -> ImageData:
    """The data set of a name. **Raises**: UsageError for an unknown one, Unavailable for one whose files are not here."""
    if name not in DATA:
        raise UsageError(f"unknown data set '{name}'{near_misses(name, list(DATA))}")
    return DATA[name]()


@dataclass(frozen=True, eq=False)
class Model:
    """A teacher, the digest of its numbers (weights and card), and its data; `config` is the `model` configuration it comes from.

    A teacher is a trained network, or a closed form, whose students start from the configured network after a warm start. One that is
    `in_store` is addressed by its recipe, and holds untrained weights until `bench.jobs.fits.teachers.with_teacher` has put in the trained
    ones.
    """

    name: str
    teacher: Denoiser
    digest: str
    data: ImageData
    config: Mapping[str, Any]

    @property
    def start(self) -> Mapping[str, Any] | None:
        """The warm start's options for a closed-form teacher, None for one with a network of its own."""
        return self.config["options"] if "closed_form" in self.config else None

    @property
    def in_store(self) -> bool:
        return self.config.get("weights") == TRAINED

    @cached_property
    def recalling(self) -> Denoiser:
        """The teacher with a memory of its calls, for samples; never for latencies."""
        return recalling(self.teacher)

    def untrained_card(self) -> dict[str, Any]:
        return card_of(self.config, self.data)

    def untrained(self, seed: int) -> Preconditioned:
        return untrained(self.config, self.data, seed)


KEYS: dict[str, tuple[type, str]] = {
    "data": (str, "digits"),
    "weights": (str, "digits_edm"),
    "arch": (str, "unet"),
    "config": (dict, "{channels: [32, 64], blocks: 1, emb: 128}"),
    "sigma_range": (list, "[0.002, 80.0]"),
    "options": (dict, "{batches: 4000}"),
    "pretrain": (str, "edm"),
    "precond": (dict, "{schedule: cosine, form: v}"),
}
BUILDING = ("arch", "config", "sigma_range", "options")  # what a network that is not read from a file needs beside its data


def check_config(config: Mapping[str, Any], training: bool = False) -> None:
    """**Raises**: UsageError for a `model` configuration that lacks a key or has a value of another kind, saying what belongs there.

    A closed form has no weights and no pretraining; one that is read from a file needs no more than that and its data.
    """
    check_name("model.name", config.get("name"), "model.name=mine")
    closed, trained = "closed_form" in config, training or config.get("weights") == TRAINED
    needed = {"data", *(() if closed else ("weights",)), *(BUILDING if closed or trained else ()), *(("pretrain",) if trained else ())}
    for key, (kind, example) in KEYS.items():
        if key in needed | set(config) and not isinstance(config.get(key), kind):
            what = {str: "a name", dict: "a mapping", list: "a list"}[kind]
            raise UsageError(f"model {config['name']}: {key} must be {what}, got {config.get(key)!r}; e.g. {key}: {example}")
    for key, known in (("arch", ARCHITECTURES), ("closed_form", CLOSED_FORMS)):
        if key in config and config[key] not in list(known):
            raise UsageError(f"model {config['name']}: unknown {key} '{config[key]}'{near_misses(config[key], list(known))}")
    levels = config.get("sigma_range", [1, 2])
    numbers = all(isinstance(s, int | float) and not isinstance(s, bool) for s in levels)
    if not numbers or len(levels) != 2 or not 0 < levels[0] < levels[1] < math.inf:
        raise UsageError(f"model {config['name']}: sigma_range is two levels, the smaller above 0, got {levels}; e.g. [0.002, 80.0]")


def load_model(config: Mapping[str, Any], device: str) -> Model:
    """The model that a `model` configuration describes. **Raises**: UsageError, Unavailable naming every file that is not here."""
    check_config(config)
    if "closed_form" in config:
        form = CLOSED_FORMS[config["closed_form"]]()
        return Model(config["name"], form, form.identity(), load_data(config["data"]), config)
    absent: list[str] = []
    data = None
    try:
        data = load_data(config["data"])
    except Unavailable as err:
        absent.append(str(err))
    if config["weights"] == TRAINED and data is not None:
        fresh = untrained(config, data, 0)
        fresh.net.to(device).eval().requires_grad_(False)
        return Model(config["name"], fresh, recipe_digest(config, data), data, config)
    if "/" in config["weights"] and not Path(config["weights"]).exists():
        absent.append(f"{config['weights']} with its card (copy them there, or run python -m bench.train model={config['name']})")
    if absent or data is None:
        raise Unavailable(f"model {config['name']} lacks: {'; '.join(absent)}")
    teacher, identity = load_denoiser(config["weights"], device)
    if teacher.classes and not data.classes:  # a conditional network on data without labels: its own unconditional branch
        teacher, identity = replace(teacher, classes=0), digest({"unconditional": identity})
    return Model(config["name"], teacher, identity, data, config)


def card_of(config: Mapping[str, Any], data: ImageData) -> dict[str, Any]:
    """What the weights of this configuration are: enough to build the network and its preconditioning."""
    options = dict(config["config"])
    if config["arch"] in ("unet", "x0_eps"):
        options |= {"shape": list(data.shape), "classes": data.classes}
    return {
        **({"precond": dict(config["precond"])} if "precond" in config else {}),
        "arch": config["arch"],
        "config": options,
        "shape": list(data.shape),
        "classes": data.classes,
        "sigma_data": data.sigma_data,
        "sigma_range": config["sigma_range"],
        "data": data.name,
        "data_digest": data.digest(),
    }


def recipe_digest(config: Mapping[str, Any], data: ImageData) -> str:
    """The address of a model that is trained from scratch: everything that can change its weights."""
    entry = get("pretrain", config["pretrain"])
    options = {k: v for k, v in config["options"].items() if entry.fields.get(k) != v}
    recipe = {"pretrain": config["pretrain"], "options": options, "version": entry.make(**options).version, "seed": 0}
    card = card_of(config, data)
    return digest({**recipe, "card": card, **network_version(card)})


def untrained(config: Mapping[str, Any], data: ImageData, seed: int) -> Preconditioned:
    """The model's network with fresh weights, a function of the seed alone."""
    card = card_of(config, data)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return as_denoiser(build(card), card)
