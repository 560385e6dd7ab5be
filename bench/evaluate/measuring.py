"""From the samples of a cell to its measurements: features and metrics, each once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from bench.evaluate import timing
from bench.evaluate.judge import Judge
from bench.store.addresses import digest
from bench.store.artefacts import Store
from bench.store.measures import COUNTED, TIMINGS
from fewstep.errors import Unavailable, UsageError
from fewstep.files import write_atomic
from metrics import Evidence, Measurement, declared, metric_named, quantise
from metrics.extractors import Extractor

FEATURES = "features.safetensors"
TIMING = "timing"  # the suites' name for all of TIMINGS


class Failure(str):
    """Why a metric that should have worked has no number."""


def spelled_out(metrics: Sequence[str], sampled: bool) -> list[str]:
    """A cell's metrics with `timing` spelled out, and with the counted NFE where its images were sampled."""
    names: list[str] = []
    for name in metrics:
        names.extend(TIMINGS if name == TIMING else [name])
    return [*names, COUNTED] if sampled else names


def work_of(name: str, samples_key: str, teacher_key: str, judge: Judge, device: str) -> str:
    """The address of one metric's work: everything that can change its number, and for timings the machine."""
    spec: dict[str, Any] = {"samples": samples_key, "metric": name}
    if name in TIMINGS:
        spec |= {"machine": timing.machine(device), "version": timing.VERSION}
    elif name != COUNTED:
        metric = metric_named(name)
        told = declared(metric)
        extractor = judge.extractors.get(told.extractor or "")
        spec |= {
            "version": metric.version,
            "reference": judge.reference.digest,
            "extractor": extractor.digest if extractor else None,
            "teacher": teacher_key if told.needs_teacher else None,
            "absent": bool(judge.absence(name)),
        }
    return digest(spec)


def features_spec(samples_key: str, extractor: Extractor) -> dict[str, Any]:
    """Everything that can change the features of samples."""
    return {"samples": samples_key, "extractor": extractor.name, "version": extractor.version, "digest": extractor.digest}


def features_of(images: np.ndarray, samples_key: str, wanted: set[str], judge: Judge, store: Store, say: Callable[[str], None]):
    """Features and logits of the wanted extractors for one set of samples, from the store or computed now."""
    features: dict[str, np.ndarray] = {}
    logits: dict[str, np.ndarray] = {}
    for name in wanted:
        extractor = judge.extractors[name]
        spec = features_spec(samples_key, extractor)

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
    features, logits = features_of(images, key, {e.name for e in judge.extractors_of(names)}, judge, store, say)
    paired = None if teacher is None else quantise(teacher)
    raw = samples["images"]
    evidence = Evidence(images, samples["labels"], features, logits, paired, judge.reference, raw, teacher, teacher_error, range_known=True)
    return measured(names, evidence, judge)


def measured(names: Sequence[str], evidence: Evidence, judge: Judge) -> dict[str, Measurement | str]:
    """Each metric of one evidence; a string is the reason why there is none, a `Failure` one that should not be."""
    results: dict[str, Measurement | str] = {}
    for name in names:
        reason = judge.absence(name)
        try:
            results[name] = reason or metric_named(name)(evidence)
        except Unavailable as err:
            results[name] = str(err)
        except (UsageError, FloatingPointError, ValueError) as err:
            results[name] = Failure(f"{type(err).__name__}: {err}")
    return results
