"""Fits: what must be fitted before a cell can be sampled. Each is a content-addressed artefact that cells and sweeps share."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save
from torch import Tensor

from bench.curves import training_curves
from bench.engine import Engine, Result, Settings
from bench.models import Model
from bench.store import Store, digest
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import UsageError
from fewstep.files import file_digest, write_atomic
from fewstep.nets.checkpoint import load_strict
from methods.distiller import Distiller, Trainable, WarmStarted, student_net
from methods.registry import get

WEIGHTS = "weights.safetensors"
Say = Callable[[str], None]


class Fit(Protocol):
    """A job that comes before sampling. `seconds` are those that sampling in `steps` steps needed, what it requires included."""

    @property
    def label(self) -> str: ...
    def key(self, model: Model) -> str: ...
    def ensure(self, model: Model, store: Store, device: str, say: Say) -> dict[str, Any]: ...
    def seconds(self, record: Mapping[str, Any], steps: int) -> float: ...
    def estimates(self, model: Model, device: str) -> dict[str, tuple[str, float]]:
        """What it will cost, in one line and in seconds, by key: its own work's and that of what it requires."""
        ...


def changed(kind: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from the method's defaults: what its address holds."""
    defaults = get(kind, name).fields
    return {k: v for k, v in options.items() if defaults.get(k) != v}


def shown(name: str, options: Mapping[str, Any]) -> str:
    """A method with its options, for people."""
    return f"{name}({', '.join(f'{k}={v}' for k, v in options.items())})"


def probe_seconds(method: Trainable, teacher: Denoiser, model: Model, device: str) -> float:
    """Seconds of one training batch, measured on a throw-away engine."""
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(method, teacher, model.data, Path(folder), Settings(device=device, progress=False))
        engine.run(stop_after=1)
        started = time.monotonic()
        engine.run(stop_after=3)
        return (time.monotonic() - started) / 2


def cost(label: str, method: Trainable, seconds_per_batch: float) -> tuple[str, float]:
    """What a training will cost, in one line for the user and in seconds."""
    phases = method.phases()
    batches, images = sum(p.batches for p in phases), sum(p.batches * p.batch_size for p in phases)
    seconds = batches * seconds_per_batch
    return f"{label}: {batches} batches in {len(phases)} phase(s), {images:,} images, about {seconds:.0f} s", seconds


def keep(result: Result, folder: Path) -> dict[str, Any]:
    """Write what a training left into an artefact's folder, and return its part of the record."""
    tensors = {f"{phase}/{k}": v for phase, weights in result.exports.items() for k, v in weights.items()}
    write_atomic(folder / WEIGHTS, save(tensors))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in result.log))
    training_curves(result.log, folder / "curves.png")
    return {
        "train_seconds": result.seconds,  # by phase, from the start: a student of an early phase needs no later one
        "samples": result.samples,
        "params": sum(v.numel() for v in next(iter(result.exports.values())).values()),
        "sha256": file_digest(folder / WEIGHTS),
    }


def ensure_fit(store: Store, key: str, fill: Callable[[Path, Path], dict[str, Any]], say: Say) -> dict[str, Any]:
    """The record of a fit: from the store, or made by `fill(folder, work)` now, while other processes wait.

    What an interrupted training needs to go on stays in `work` until the fit is done.
    """
    work = store.root / "training" / key
    record = store.ensure("fit", key, lambda folder: fill(folder, work), say)
    shutil.rmtree(work, ignore_errors=True)
    return record


def phase_weights(store: Store, key: str, phase: str, device: str) -> dict[str, Tensor]:
    """The weights that a training exported at the end of a phase."""
    tensors = load_file(store.path("fit", key) / WEIGHTS, device=device)
    return {k.removeprefix(f"{phase}/"): v for k, v in tensors.items() if k.startswith(f"{phase}/")}


@dataclass(frozen=True)
class Start:
    """The network that students of a closed-form teacher start from: the model's own, fitted to the closed form by its warm start."""

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def method(self) -> Trainable:
        return get("pretrain", "warm_start").make(**self.options)

    @property
    def label(self) -> str:
        return f"{shown('warm_start', self.options)} of {self.model}"

    def key(self, model: Model) -> str:
        spec = {"method": "warm_start", "options": changed("pretrain", "warm_start", self.options), "version": self.method().version}
        return digest({**spec, "teacher": model.digest, "data": model.data.digest(), "card": model.untrained_card(), "seed": 0})

    def _teacher(self, model: Model) -> Denoiser:
        return WarmStarted(model.teacher, model.untrained(0))

    def ensure(self, model: Model, store: Store, device: str, say: Say) -> dict[str, Any]:
        """The record of the warm start (see `ensure_fit`)."""
        key = self.key(model)

        def fill(folder: Path, work: Path) -> dict[str, Any]:
            say(f"training {self.estimates(model, device)[key][0]}")
            return keep(Engine(self.method(), self._teacher(model), model.data, work, Settings(0, device)).run(), folder)

        return ensure_fit(store, key, fill, say)

    def seconds(self, record: Mapping[str, Any], steps: int) -> float:
        return float(max(record["train_seconds"].values()))

    def estimates(self, model: Model, device: str) -> dict[str, tuple[str, float]]:
        return {self.key(model): cost(self.label, self.method(), probe_seconds(self.method(), self._teacher(model), model, device))}

    def load(self, model: Model, store: Store, device: str) -> Preconditioned:
        """The fitted network. **Raises**: UsageError when it was not trained yet."""
        if not store.has("fit", self.key(model)):
            raise UsageError(f"{self.label} is not trained in {store.root}; run the sweep, or python -m bench.train")
        fresh = model.untrained(0)
        weights = phase_weights(store, self.key(model), self.method().phases()[-1].name, device)
        load_strict(fresh.net, weights, f"{self.label} weights").to(device).requires_grad_(False)
        return fresh


@dataclass(frozen=True)
class Student:
    """One student to train: a distiller, its non-default options, and the seed."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def distiller(self) -> Distiller:
        return get("distiller", self.method).make(**self.options)

    @property
    def label(self) -> str:
        return shown(self.method, self.options)

    @staticmethod
    def requires(model: Model) -> Start | None:
        """What has to be fitted first: the start of the students of a closed form."""
        return None if model.start is None else Start(model.name, model.start)

    def spec(self, model: Model) -> dict[str, Any]:
        """Everything that can change the weights: non-default options, versions, teacher and data digests, seed."""
        first = self.requires(model)
        return {
            "method": self.method,
            "options": changed("distiller", self.method, self.options),
            "version": self.distiller().version,
            "teacher": model.digest,
            "data": model.data.digest(),
            "seed": self.seed,
            **({"requires": first.key(model)} if first else {}),
        }

    def key(self, model: Model) -> str:
        return digest(self.spec(model))

    def _teacher(self, model: Model, store: Store, device: str) -> Denoiser:
        first = self.requires(model)
        return model.teacher if first is None else WarmStarted(model.teacher, first.load(model, store, device))

    def ensure(self, model: Model, store: Store, device: str, say: Say) -> dict[str, Any]:
        """The record of a trained student, after what it requires (see `ensure_fit`)."""
        first = self.requires(model)
        before = 0.0 if first is None else first.seconds(first.ensure(model, store, device, say), 0)

        def fill(folder: Path, work: Path) -> dict[str, Any]:
            method, teacher = self.distiller(), self._teacher(model, store, device)
            say(f"training {cost(self.label, method, probe_seconds(method, teacher, model, device))[0]}")
            result = Engine(method, teacher, model.data, work, Settings(self.seed, device)).run()
            return {"spec": self.spec(model), "start_seconds": before, **keep(result, folder)}

        return ensure_fit(store, self.key(model), fill, say)

    def seconds(self, record: Mapping[str, Any], steps: int) -> float:
        return float(
            record.get("start_seconds", 0.0) + record["train_seconds"][self.distiller().phase_for(steps)]
        )  # older records had no start

    def estimates(self, model: Model, device: str) -> dict[str, tuple[str, float]]:
        first, method = self.requires(model), self.distiller()
        teacher = model.teacher if first is None else WarmStarted(model.teacher, model.untrained(0))
        own = cost(self.label, method, probe_seconds(method, teacher, model, device))
        return {**(first.estimates(model, device) if first else {}), self.key(model): own}

    def load(self, model: Model, store: Store, steps: int, device: str = "cpu") -> Denoiser:
        """The trained student for a number of steps, as a denoiser. **Raises**: UsageError when it was not trained yet."""
        key = self.key(model)
        if not store.has("fit", key):
            raise UsageError(f"{self.label} is not trained in {store.root}; run the sweep, or python -m bench.train method={self.method}")
        method, teacher = self.distiller(), self._teacher(model, store, device)
        weights = phase_weights(store, key, method.phase_for(steps), device)
        net = load_strict(student_net(teacher, self.method), weights, f"{self.label} weights").to(device)
        return method.student(net.requires_grad_(False), teacher)
