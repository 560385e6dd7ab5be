"""Fits: what must be fitted before a cell can be sampled. Each is a content-addressed artefact that cells and sweeps share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save
from torch import Tensor

from bench.jobs.fits.costs import Cost
from bench.jobs.models import Model
from bench.store.artefacts import Store
from bench.store.provenance import provenance
from bench.store.world import ALONE
from bench.training.curves import training_curves
from bench.training.engine import Result, Settings
from fewstep.files import file_digest, write_atomic
from fewstep.nets.readers.card import read_card, resolve
from fewstep.plugins import entries, get
from fewstep.sampling.draw import SAMPLER_VERSION
from methods.recipe import DEFAULT, split
from methods.solver import UNNAMED

WEIGHTS = "weights.safetensors"
TRAINED = ("distiller", "pretrain")
BATCH = 250  # images at once, where no command says how many
Say = Callable[[str], None]


class Fit(Protocol):
    """A job that comes before sampling. `seconds` are those that sampling in `steps` steps needed, what it requires included; `batch`
    images are sampled at once by what samples."""

    @property
    def label(self) -> str: ...
    def key(self, model: Model) -> str: ...
    def requires(self, model: Model) -> Mapping[str, Fit]:
        """What has to be fitted first, beside the model's own teacher."""
        ...

    def ensure(self, model: Model, store: Store, device: str, say: Say, batch: int = BATCH) -> dict[str, Any]: ...
    def seconds(self, record: Mapping[str, Any], steps: int) -> float: ...
    def estimates(self, model: Model, device: str) -> dict[str, Cost]:
        """What it will cost, by key: its own work's and that of what it requires."""
        ...


def changed(kind: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from the defaults of the method and of its recipe: what its address holds."""
    own, recipe = split(options) if kind in TRAINED else (options, DEFAULT)
    defaults = get(kind, name).fields
    return dict(sorted(({k: v for k, v in own.items() if defaults.get(k) != v} | recipe.changed()).items()))


def settings_of(options: Mapping[str, Any], model: Model, seed: int, device: str) -> Settings:
    """How the training with these options is run."""
    return Settings(seed, device, split(options)[1], model.task)


def trained_by(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    """The method with its own ones of these options; the others are its recipe's."""
    return get(kind, name).make(**split(options)[0])


def solvers_in(named: Iterable[Any]) -> dict[str, int]:
    """The solvers among a method's values, with their versions."""
    solvers = entries("solver")
    return {name: solvers[name].make().version for name in sorted({str(value) for value in named} & set(solvers))}


def uses(named: Iterable[Any]) -> dict[str, Any]:
    """What a method's results depend on beside its own version: those of the sampler and of the solvers that it names, and the weights of
    a distance that reads features. Part of its address."""
    names = {part for value in named for part in str(value).split("+")}
    found: dict[str, Any] = solvers_in(names)
    found |= {name: version for name in UNNAMED if (version := get("solver", name).make().version) > 1}
    for entry in (e for kind in ("distance", "weight", "branch") for name, e in entries(kind).items() if name in names):
        found |= {f"{entry.kind} {entry.name}": entry.version} if entry.version > 1 else {}
        found |= {what: read_card(resolve(weights))["sha256"] for what, weights in entry.preset.get("weights", {}).items()}
    return {"sampler": SAMPLER_VERSION, **found}


def starts_lower(sigma_range: tuple[float, float], model: Model) -> dict[str, Any]:
    """What an address holds of a range that does not begin at the teacher's highest level; nothing of one that does."""
    return {} if sigma_range[1] == model.teacher.sigma_range[1] else {"sigma_max": sigma_range[1]}


def shown(name: str, options: Mapping[str, Any]) -> str:
    """A method with its options, for people."""
    return f"{name}({', '.join(f'{k}={v}' for k, v in options.items())})"


def keep(result: Result, folder: Path) -> dict[str, Any]:
    """Write what a training left into an artefact's folder, and return its part of the record."""
    tensors = {f"{phase}/{k}": v for phase, weights in result.exports.items() for k, v in weights.items()}
    write_atomic(folder / WEIGHTS, save(tensors))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in result.log))
    training_curves(result.log, folder / "curves.png")
    return {
        "seconds": result.whole.seconds,
        # By phase, from the start: a student of an early phase needs no later one.
        "train_seconds": {phase: spent.seconds for phase, spent in result.spent.items()},
        "samples": {phase: spent.samples for phase, spent in result.spent.items()},
        "passes": {phase: spent.passes for phase, spent in result.spent.items()},
        "peak_bytes": result.peak_bytes,
        "params": sum(v.numel() for v in next(iter(result.exports.values())).values()),
        "sha256": file_digest(folder / WEIGHTS),
        "made_by": provenance(),
    }


def ensure_fit(store: Store, key: str, fill: Callable[[Path, Path], dict[str, Any]], say: Say, alone: str = "") -> dict[str, Any]:
    """The record of a fit: from the store, or made by `fill(folder, work)` now, while other processes wait.

    What an interrupted training needs to go on stays in `work` until the fit is done; of one that diverged after a phase it stays.
    Processes that were started together do it together; where there is a reason why they cannot, the first does it `alone`.
    """
    work = store.root / "training" / key

    def own(folder: Path) -> dict[str, Any]:
        if store.world.size == 1 or not alone:
            return fill(folder, work)
        if not store.world.first:
            return {}
        say(f"the first of {store.world.size} processes does this alone: {alone}")
        with store.shared(ALONE):
            return fill(folder, work)

    record = store.ensure("fit", key, own, say)
    if not record.get("diverged") and store.world.first:
        shutil.rmtree(work, ignore_errors=True)
    return record


def phase_weights(store: Store, key: str, phase: str, device: str) -> dict[str, Tensor]:
    """The weights that a training exported at the end of a phase."""
    tensors = load_file(store.path("fit", key) / WEIGHTS, device=device)
    return {k.removeprefix(f"{phase}/"): v for k, v in tensors.items() if k.startswith(f"{phase}/")}
