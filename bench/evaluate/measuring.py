"""From the samples of a cell to its measurements: features and metrics, each once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np

from bench.evaluate import timing
from bench.evaluate.judge import Judge
from bench.store.addresses import digest
from bench.store.artefacts import Store
from bench.store.measures import COUNTED, TIMINGS
from bench.store.parts import Notes, Parted, Samples, ensure_parts, names_in, stored
from fewstep.data.arrays import Images
from fewstep.errors import Unavailable, UsageError
from fewstep.halving import fewest
from metrics import Evidence, Measurement, declared, metric_named
from metrics.features.extractors import Extractor, Looking, at_once, looking
from metrics.metric import Drawn, Pairs
from metrics.pixels import quantised

FEATURES = "features"  # the kind of artefact, and what its files begin with
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
            "extractor": _identity(extractor) if extractor else None,
            "teacher": teacher_key if told.needs_teacher else None,
            "absent": bool(judge.absence(name)),
        }
        if published := judge.published_for(name):  # of others nothing, so that older addresses stay valid
            spec |= {"statistics": published}
    return digest(spec)


def _identity(extractor: Extractor) -> str:
    """What an address holds of an extractor: of the first version its weights alone, so that older addresses stay valid."""
    return extractor.digest if extractor.version == 1 else f"{extractor.version} {extractor.digest}"


def features_spec(samples_key: str, extractor: Extractor) -> dict[str, Any]:
    """What can change the features of samples: the content of their address."""
    return {"samples": samples_key, "extractor": extractor.name, "version": extractor.version, "digest": extractor.digest}


def features_key(samples_key: str, extractor: Extractor) -> str:
    """The address of the features of samples."""
    return digest(features_spec(samples_key, extractor))


class Seen(NamedTuple):
    """What extractors saw in one set of samples, by their names: features, logits of those that give some, and of those that could not be
    shown as many images at once as they asked for, how many they were shown."""

    features: dict[str, Images]
    logits: dict[str, Images]
    batches: dict[str, int]


def features_of(images: Images, samples_key: str, wanted: set[str], judge: Judge, store: Store, say: Callable[[str], None]) -> Seen:
    """What the wanted extractors see in one set of samples, from the store or computed now, part by part."""
    seen = Seen({}, {}, {})
    for name in sorted(wanted):  # in the same order in all processes that share the parts
        extractor = judge.extractors[name]
        spec, shown = features_spec(samples_key, extractor), looking(extractor, say)

        def make(first: int, last: int, look: Looking = shown) -> tuple[dict[str, np.ndarray], Notes]:
            started = time.monotonic()
            values, classes = look(images[first:last])
            notes = {"seconds": round(time.monotonic() - started, 3), **look.halving.notes}
            return {"features": values} | ({} if classes is None else {"logits": classes}), notes

        def record(notes: Sequence[Notes], spec: dict[str, Any] = spec) -> dict[str, Any]:
            return {"spec": spec, "seconds": round(sum(note["seconds"] for note in notes), 3), **fewest(notes)}

        key = digest(spec)
        made = ensure_parts(store, FEATURES, key, Parted(FEATURES, len(images), at_once(images), make, record), say)
        folder = store.path(FEATURES, key)
        seen.features[name] = stored(folder, FEATURES, "features")
        if "logits" in names_in(folder, FEATURES):
            seen.logits[name] = stored(folder, FEATURES, "logits")
        if "batch" in made:
            seen.batches[name] = made["batch"]
    return seen


def measure_all(
    names: list[str],
    samples: Samples,
    teacher: Images | None,
    key: str,
    judge: Judge,
    store: Store,
    say: Callable[[str], None],
    teacher_error: float | None = None,
) -> dict[str, Measurement | str]:
    """The metrics of one set of samples by name; a string is the reason why one is unavailable.

    `teacher` are the unquantised fine-grid solutions, `teacher_error` is their own RMS error where it is known.
    """
    images, raw = quantised(samples.images), samples.images
    seen = features_of(images, key, {e.name for e in judge.extractors_of(names)}, judge, store, say)
    paired = None if teacher is None else quantised(teacher)
    drawn = None if samples.seed is None else Drawn(samples.seed, samples.noise, samples.labelling)
    own = Evidence(images, samples.labels, *seen[:2], paired, judge.reference, raw, teacher, teacher_error, range_known=True, drawn=drawn)
    own = with_pairs(own, samples.pairs)
    return {name: _shown(name, found, seen) for name, found in measured(names, own, judge).items()}


def with_pairs(evidence: Evidence, pairs: Pairs | None) -> Evidence:
    """The evidence with the true images of its samples and the conditions made of them, where there are some."""
    if pairs is None:
        return evidence
    return replace(evidence, target=pairs.target, condition=pairs.condition, groups=pairs.groups, asked=pairs.asked)


def _shown(name: str, found: Measurement | str, seen: Seen) -> Measurement | str:
    """A measurement that says how many images its extractor was shown at once, where that had to be fewer than it asks for."""
    batch = seen.batches.get(declared(metric_named(name)).extractor or "")
    return found if batch is None or isinstance(found, str) else replace(found, protocol={**found.protocol, "features_batch": batch})


def measured(
    names: Sequence[str], evidence: Evidence, judge: Judge, chosen: Mapping[str, Any] | None = None
) -> dict[str, Measurement | str]:
    """Each metric of one evidence, with those of the `chosen` values that are fields of it; a string is the reason why there is none, a
    `Failure` one that should not be."""
    results: dict[str, Measurement | str] = {}
    for name in names:
        reason, metric = judge.absence(name), metric_named(name)
        if own := {field: value for field, value in (chosen or {}).items() if field in vars(metric)}:
            metric = replace(cast("Any", metric), **own)
        try:
            if not reason and declared(metric).needs_target:
                evidence.target_of(name)  # before anything is computed
            results[name] = reason or metric(evidence if declared(metric).streams else evidence.whole())
        except Unavailable as err:
            results[name] = str(err)
        except (UsageError, FloatingPointError, ValueError) as err:
            results[name] = Failure(f"{type(err).__name__}: {err}")
    return results
