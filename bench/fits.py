"""Fits: what must be trained before it can sample. A student is a content-addressed artefact that sweeps share."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from bench.curves import training_curves
from bench.engine import Engine, Settings
from bench.models import Model
from bench.store import Store, digest
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.files import file_digest, write_atomic
from fewstep.nets.checkpoint import load_strict
from methods.distiller import Distiller, student_net
from methods.registry import get

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Fit:
    """One student to train: a distiller, its non-default options, and the seed."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def distiller(self) -> Distiller:
        return get("distiller", self.method).make(**self.options)

    @property
    def label(self) -> str:
        shown = ", ".join(f"{k}={v}" for k, v in self.options.items())
        return f"{self.method}({shown})"

    def spec(self, model: Model) -> dict[str, Any]:
        """Everything that can change the weights: non-default options, versions, teacher and data digests, seed."""
        entry = get("distiller", self.method)
        options = {k: v for k, v in self.options.items() if entry.fields[k] != v}
        return {
            "method": self.method,
            "options": options,
            "version": self.distiller().version,
            "teacher": model.digest,
            "data": model.data.digest(),
            "seed": self.seed,
        }

    def key(self, model: Model) -> str:
        return digest(self.spec(model))


def cost(fit: Fit, seconds_per_batch: float) -> str:
    """What training will cost, in one line for the user."""
    phases = fit.distiller().phases()
    batches = sum(p.batches for p in phases)
    images = sum(p.batches * p.batch_size for p in phases)
    return f"{fit.label}: {batches} batches in {len(phases)} phase(s), {images:,} images, about {batches * seconds_per_batch:.0f} s"


def probe_seconds(fit: Fit, model: Model, device: str) -> float:
    """Seconds of one training batch, measured on a throw-away engine."""
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(fit.distiller(), model.teacher, model.data, Path(folder), Settings(device=device, progress=False))
        engine.run(stop_after=1)
        started = time.monotonic()
        engine.run(stop_after=3)
        return (time.monotonic() - started) / 2


def ensure_fit(fit: Fit, model: Model, store: Store, device: str, say: Callable[[str], None]) -> dict[str, Any]:
    """The record of a trained student: from the store, or trained now (resuming a checkpoint), while other processes wait."""
    key = fit.key(model)
    work = store.root / "training" / key

    def fill(folder: Path) -> dict[str, Any]:
        say(f"training {cost(fit, probe_seconds(fit, model, device))}")
        engine = Engine(fit.distiller(), model.teacher, model.data, work, Settings(fit.seed, device))
        result = engine.run()
        tensors = {f"{phase}/{k}": v for phase, weights in result.exports.items() for k, v in weights.items()}
        write_atomic(folder / WEIGHTS, save(tensors))
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in result.log))
        training_curves(result.log, folder / "curves.png")
        last = next(iter(result.exports.values()))
        return {
            "spec": fit.spec(model),
            "train_seconds": result.seconds,  # by phase, from the start: a student of an early phase needs no later one
            "samples": result.samples,
            "params": sum(v.numel() for v in last.values()),
            "sha256": file_digest(folder / WEIGHTS),
        }

    record = store.ensure("fit", key, fill, say)
    shutil.rmtree(work, ignore_errors=True)
    return record


def seconds_of(record: Mapping[str, Any], fit: Fit, steps: int) -> float:
    """Training seconds that the student for this many steps needed."""
    return float(record["train_seconds"][fit.distiller().phase_for(steps)])


def load_student(fit: Fit, model: Model, store: Store, steps: int, device: str = "cpu") -> Denoiser:
    """The trained student for a number of steps, as a denoiser. **Raises**: UsageError when it was not trained yet."""
    key = fit.key(model)
    if not store.has("fit", key):
        raise UsageError(f"{fit.label} is not trained in {store.root}; run the sweep, or python -m bench.train method={fit.method}")
    method = fit.distiller()
    phase = method.phase_for(steps) + "/"
    tensors = load_file(store.path("fit", key) / WEIGHTS, device=device)
    own = {k.removeprefix(phase): v for k, v in tensors.items() if k.startswith(phase)}
    net = load_strict(student_net(model.teacher, fit.method), own, f"{fit.label} weights").to(device)
    return method.student(net.requires_grad_(False), model.teacher)
