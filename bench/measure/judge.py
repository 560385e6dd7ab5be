"""From the samples of a cell to its rows: features, metrics and timings, each once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from bench.jobs.models import Model
from bench.jobs.suite import Cell, Suite
from bench.measure import timing
from bench.store.artefacts import Store, digest
from fewstep.analytic import Analytic
from fewstep.denoiser import Denoiser
from fewstep.errors import Unavailable, UsageError
from fewstep.files import write_atomic
from metrics import METRICS, Evidence, Measurement, quantise
from metrics.extractors import Extractor, load_extractor
from metrics.frechet import Frechet
from metrics.paired import ALEXNET
from metrics.ranges import check_range
from metrics.reference import Reference, build_reference, floor, real_resample

FEATURES = "features.safetensors"
TIMING = "timing"  # the suites' name for all of timing.METRICS
COUNTED = "nfe_counted"


class Failure(str):
    """Why a metric that should have worked has no number."""


@dataclass(frozen=True, eq=False)
class Judge:
    """Extractors, reference statistics and their absences, loaded once for a sweep."""

    reference: Reference
    extractors: Mapping[str, Extractor]
    missing: Mapping[str, str] = field(default_factory=dict)

    def evidence(self, samples: Mapping[str, np.ndarray], range_known: bool = False) -> Evidence:
        """Evidence from samples alone: features computed here, nothing stored, no teacher to compare with.

        **Raises**: UsageError for images that are no floats, or (unless `range_known`) look like ones of another range than the data's.
        """
        if not range_known:
            check_range(samples["images"], self.reference.train_x, self.reference.name)
        images = quantise(samples["images"])
        found = {name: extractor(images) for name, extractor in self.extractors.items()}
        logits = {name: classes for name, (_, classes) in found.items() if classes is not None}
        features = {name: f for name, (f, _) in found.items()}
        return Evidence(images, samples["labels"], features, logits, None, self.reference, samples["images"], range_known=True)

    def absence(self, metric: str) -> str:
        """Why a metric cannot be computed here; empty when it can."""
        return self.missing.get(metric, "")


def make_judge(model: Model, metrics: set[str]) -> Judge:
    """Load what these metrics need; weights that are not here become reasons."""
    extractors: dict[str, Extractor] = {}
    missing: dict[str, str] = {}
    for name in sorted(metrics & set(METRICS)):
        wanted = METRICS[name].extractor
        try:
            if wanted is not None and wanted not in extractors:
                extractors[wanted] = load_extractor(wanted)
            if name == "lpips_teacher":
                ALEXNET.path()
        except Unavailable as err:
            missing[name] = str(err)
    return Judge(build_reference(model.data, extractors.values(), exact_moments_of(model.teacher)), extractors, missing)


def exact_moments_of(teacher: Denoiser) -> tuple[np.ndarray, np.ndarray] | None:
    """The exact mean and covariance of what a closed-form teacher generates; None for a network."""
    if not isinstance(teacher, Analytic):
        return None
    mean, cov = teacher.moments()
    return mean.cpu().numpy(), cov.cpu().numpy()


def metric_names(cell: Cell) -> list[str]:
    """The cell's metrics with `timing` and the counted NFE spelled out."""
    names: list[str] = []
    for name in cell.metrics:
        names.extend(timing.METRICS if name == TIMING else [name])
    return names if cell.method == "naive" else [*names, COUNTED]


def work_of(name: str, samples_key: str, teacher_key: str, judge: Judge, device: str) -> str:
    """The address of one metric's work: everything that can change its number, and for timings the machine."""
    spec: dict[str, Any] = {"samples": samples_key, "metric": name}
    if name in timing.METRICS:
        spec |= {"machine": timing.machine(device), "version": timing.VERSION}
    elif name != COUNTED:
        metric = METRICS[name]
        extractor = judge.extractors.get(metric.extractor or "")
        spec |= {
            "version": metric.version,
            "reference": judge.reference.digest,
            "extractor": extractor.digest if extractor else None,
            "teacher": teacher_key if metric.needs_teacher else None,
            "absent": bool(judge.absence(name)),
        }
    return digest(spec)


def features_of(images: np.ndarray, samples_key: str, wanted: set[str], judge: Judge, store: Store, say: Callable[[str], None]):
    """Features and logits of the wanted extractors for one set of samples, from the store or computed now."""
    features: dict[str, np.ndarray] = {}
    logits: dict[str, np.ndarray] = {}
    for name in wanted:
        extractor = judge.extractors[name]
        spec = {"samples": samples_key, "extractor": name, "version": extractor.version, "digest": extractor.digest}

        def fill(folder: Path, extractor=extractor, spec=spec) -> dict[str, Any]:
            values, classes = extractor(images)
            write_atomic(folder / FEATURES, save({"features": values} | ({} if classes is None else {"logits": classes})))
            return {"spec": spec}

        key = digest(spec)
        store.ensure("features", key, fill, say)
        loaded = load_file(store.path("features", key) / FEATURES)
        features[name] = loaded["features"]
        if "logits" in loaded:
            logits[name] = loaded["logits"]
    return features, logits


def measure_all(
    names: list[str],
    samples: Mapping[str, np.ndarray],
    teacher: np.ndarray | None,
    key: str,
    judge: Judge,
    store: Store,
    say: Callable[[str], None],
    teacher_error: float | None = None,
) -> dict[str, Measurement | str]:
    """The metrics of one set of samples by name; a string is the reason why one is unavailable.

    `teacher` are the unquantised fine-grid solutions, `teacher_error` is their own RMS error where it is known.
    """
    images = quantise(samples["images"])
    wanted = {METRICS[name].extractor for name in names} & set(judge.extractors)
    features, logits = features_of(images, key, {e for e in wanted if e}, judge, store, say)
    paired = None if teacher is None else quantise(teacher)
    raw = samples["images"]
    evidence = Evidence(images, samples["labels"], features, logits, paired, judge.reference, raw, teacher, teacher_error, range_known=True)
    results: dict[str, Measurement | str] = {}
    for name in names:
        reason = judge.absence(name)
        try:
            results[name] = reason or METRICS[name](evidence)
        except Unavailable as err:
            results[name] = str(err)
        except (UsageError, FloatingPointError, ValueError) as err:
            results[name] = Failure(f"{type(err).__name__}: {err}")
    return results


def few_of_each(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """counts[c] images of each class c, at random (seed 0: the digits come ordered by writer, so the first would be of few hands)."""
    rng = np.random.RandomState(0)
    index = np.concatenate([rng.permutation(np.flatnonzero(y == c))[:n] for c, n in enumerate(counts)])
    return x[index], y[index]


def naive_samples(kind: str, model: Model, suite: Suite, judge: Judge) -> dict[str, np.ndarray]:
    """What the reference rows are measured on: class means (without classes the mean), or a class-balanced resample of real images."""
    classes = max(1, model.data.classes)
    per_class = suite.samples // classes
    if kind == "class_means":
        labels = np.arange(suite.samples, dtype=np.int64) % classes
        return {"images": model.data.class_means()[labels], "labels": labels}
    ref = judge.reference
    sources = {
        "real_train": (ref.train_x, ref.train_y),
        "real_heldout": (ref.heldout_x, ref.heldout_y),
        # As many training images of each class as there are held-out ones: what being few costs, apart from being unseen.
        "real_train_subset": few_of_each(ref.train_x, ref.train_y, np.bincount(ref.heldout_y)),
    }
    x, y = sources[kind]
    images, labels = real_resample(x, y, per_class, suite.seed)
    return {"images": images, "labels": labels}


def naive_floor(kind: str, name: str, judge: Judge, suite: Suite, model: Model) -> Measurement | None:
    """The floor replaces the single resample's Frechet distance in the `real_train` row: a mean over 20."""
    extractor = judge.extractors.get(METRICS[name].extractor or "")
    if kind != "real_train" or extractor is None or not isinstance(METRICS[name], Frechet):
        return None
    return floor(judge.reference, extractor, suite.samples // max(1, model.data.classes))
