"""What a model's own `check` says of its weights: one number, at the cell that it names, and the same of its snapshots."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.evaluate.judge import make_judge
from bench.jobs.models import Model, data_of, load_model
from bench.jobs.resolve import resolve
from bench.jobs.suite import Suite
from bench.store.artefacts import Store
from bench.store.cell import Cell
from fewstep.files import write_atomic
from fewstep.nets.loading import build, load_strict, read
from fewstep.plugins import get
from fewstep.progress import say
from fewstep.sampling.draw import sample
from methods.training import Checked
from metrics import metric_named

SHOWN = 8  # images of each class in a picture


def curve(snapshots: Path, measure: Callable[[Path], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What `measure` says of each snapshot, by the images that it has seen; measured once, and kept beside it."""
    found = []
    for path in sorted(snapshots.glob("*.safetensors")):
        kept = path.with_suffix(".measured")
        if not kept.exists():
            value = measure(path)
            point = {"samples": int(path.stem), "value": value["value"], "std_error": value.get("std_error")}
            write_atomic(kept, json.dumps(point).encode())
            say(f"after {point['samples']:,} images: {value.get('metric', 'quality')} {point['value']:.4g}")
        found.append(json.loads(kept.read_text()))
    return found


def quality(model: dict[str, Any], device: str, store: Store) -> dict[str, Any]:
    """What the model's own `check` measures: its metric at the cell it names, or what its training says of held-out images."""
    check, method = model["check"], get("pretrain", model["pretrain"]).make()
    if isinstance(method, Checked):
        data, (tensors, card) = data_of(model), read(Path(model["weights"]))
        net = load_strict(build(card), tensors, f"weights {model['weights']}")
        return {**check, "samples": len(data.heldout_x), "value": method.heldout(net, data)[check["metric"]]}
    loaded = load_model(model, device)
    judge = make_judge(loaded.data, loaded.teacher, {check["metric"]}, store, device)
    images, labels = _drawn(loaded, check, check["samples"], device)
    evidence = judge.evidence({"images": images, "labels": labels}, range_known=True)
    measured = metric_named(check["metric"])(evidence)
    return {**check, "value": measured.value, "std_error": measured.std_error}


def picture(model: dict[str, Any], device: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Images of the first seeds at the `check`'s cell and their labels: some of each class. None where the check draws none."""
    if isinstance(get("pretrain", model["pretrain"]).make(), Checked):
        return None
    loaded = load_model(model, device)
    return _drawn(loaded, model["check"], SHOWN * max(1, loaded.data.classes), device)


def _drawn(model: Model, check: Mapping[str, Any], count: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [count, C, H, W] of the seeds from 0 and their labels [count], at the cell of a `check`."""
    axes = {k: check[k] for k in ("solver", "grid", "end", "nfe")}
    job = resolve(Cell(**axes), Suite("check", count, 0, "philox", check["solver"], 1, {}, ()), model)
    seeds = torch.arange(count, device=device)
    images, labels = sample(job.solver.plan(job.grid), model.teacher, job.sigma_max, seeds, task=model.task)
    return images.numpy(), labels.numpy()
