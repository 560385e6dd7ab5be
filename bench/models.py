"""Models as the configuration names them: the teacher, its data, and the network a training starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep.data.cifar10 import cifar10
from fewstep.data.digits import digits
from fewstep.data.images import ImageData
from fewstep.denoiser import Preconditioned
from fewstep.errors import Unavailable, UsageError, near_misses
from fewstep.nets.checkpoint import as_denoiser, build, load_denoiser

DATA: dict[str, Callable[[], ImageData]] = {"digits": digits, "cifar10": cifar10}


def load_data(name: str) -> ImageData:
    """The data set of a name. **Raises**: UsageError for an unknown one, Unavailable for one whose files are not here."""
    if name not in DATA:
        raise UsageError(f"unknown data set '{name}'{near_misses(name, list(DATA))}")
    return DATA[name]()


@dataclass(frozen=True, eq=False)
class Model:
    """A trained teacher with the digest of its weights and the data it was trained on."""

    name: str
    teacher: Preconditioned
    digest: str
    data: ImageData


def load_model(config: Mapping[str, Any], device: str) -> Model:
    """The model that a `model` configuration describes. **Raises**: Unavailable naming every file that is not here."""
    absent: list[str] = []
    data = None
    try:
        data = load_data(config["data"])
    except Unavailable as err:
        absent.append(str(err))
    if "/" in config["weights"] and not Path(config["weights"]).exists():
        absent.append(f"{config['weights']} with its card (copy them there, or run python -m bench.train model={config['name']})")
    if absent or data is None:
        raise Unavailable(f"model {config['name']} lacks: {'; '.join(absent)}")
    teacher, digest = load_denoiser(config["weights"], device)
    return Model(config["name"], teacher, digest, data)


def card_of(config: Mapping[str, Any], data: ImageData) -> dict[str, Any]:
    """What the weights of this configuration are: enough to build the network and its preconditioning."""
    options = dict(config["config"])
    if config["arch"] == "unet":
        options |= {"shape": list(data.shape), "classes": data.classes}
    return {
        "arch": config["arch"],
        "config": options,
        "shape": list(data.shape),
        "classes": data.classes,
        "sigma_data": data.sigma_data,
        "sigma_range": config["sigma_range"],
        "data": data.name,
        "data_digest": data.digest(),
    }


def untrained(config: Mapping[str, Any], data: ImageData, seed: int) -> Preconditioned:
    """The model's network with fresh weights, a function of the seed alone."""
    card = card_of(config, data)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return as_denoiser(build(card), card)
