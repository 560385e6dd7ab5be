"""Features of the real images in the store: computed once for all processes and sweeps that measure against them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save
from tqdm import tqdm

from bench.store.addresses import digest
from bench.store.artefacts import Store
from bench.store.parts import Notes, Parted, ensure_parts, stored
from fewstep.data.arrays import Images, let_go, parts
from fewstep.files import write_atomic
from fewstep.halving import fewest
from fewstep.progress import bar_settings, say
from metrics.features.extractors import Extractor, at_once, file_of, looking
from metrics.moments import Moments
from metrics.reference import CHUNK, SPLITS, FeatureSpace, Reference, features_of, merged

KIND = "reference"
FEATURES = "features"
MOMENTS, ARRAY = "moments.safetensors", "array.safetensors"
VERSION = 2  # raised when other features or moments come out of the same images and network
KEPT = 2**31  # bytes of features that are kept beside their moments whether a metric asks for them or not


def spec_of(reference: Reference, extractor: Extractor, what: str) -> dict[str, Any]:
    """Everything that can change them."""
    own = {"extractor": extractor.name, "version": extractor.version, "digest": extractor.digest}
    return {"reference": reference.digest, **own, "what": what, "made": VERSION}


def moments_key(reference: Reference, extractor: Extractor) -> str:
    """The address of the moments of the real images in an extractor's features."""
    return digest(spec_of(reference, extractor, "moments"))


def is_known(reference: Reference, extractor: Extractor, store: Store | None) -> bool:
    """Whether the extractor has seen these images before."""
    return store is not None and store.has(KIND, moments_key(reference, extractor))


def images_of(reference: Reference, split: str) -> Images:
    """The real images of a split."""
    return reference.train_x if split == "train" else reference.heldout_x


def ensure_features(reference: Reference, extractor: Extractor, store: Store, split: str = "train") -> Images:
    """The features [N, d] of a split, read from the store when they are indexed. Missing parts of them are computed now."""
    images = images_of(reference, split)
    spec = spec_of(reference, extractor, FEATURES if split == "train" else f"{FEATURES} {split}")
    key, size, look = digest(spec), at_once(images), looking(extractor, say)
    with tqdm(total=len(images), desc=f"{extractor.name} of {split} images", unit="img", **bar_settings()) as bar:

        def make(first: int, last: int) -> tuple[dict[str, np.ndarray], Notes]:
            bar.update(first - bar.n)
            found = look(images[first:last])[0]
            let_go(images)
            bar.update(last - first)
            return {FEATURES: found}, look.halving.notes

        ensure_parts(store, KIND, key, Parted(FEATURES, len(images), size, make, lambda notes: {"spec": spec, **fewest(notes)}), say)
    return stored(store.path(KIND, key), FEATURES, FEATURES)


@dataclass(frozen=True, eq=False)
class Kept:
    """`metrics.reference.Facts` that are artefacts, of one reference in one extractor's features."""

    reference: Reference
    extractor: Extractor
    store: Store

    def number(self, name: str, compute: Callable[[], float]) -> float:
        spec = spec_of(self.reference, self.extractor, name)
        return self.store.ensure(KIND, digest(spec), lambda folder: {"spec": spec, "value": compute()}, say)["value"]

    def array(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        spec = spec_of(self.reference, self.extractor, name)

        def fill(folder: Path) -> dict[str, Any]:
            write_atomic(folder / ARRAY, save({"array": np.ascontiguousarray(compute())}))
            return {"spec": spec}

        self.store.ensure(KIND, digest(spec), fill, say)
        return load_file(self.store.path(KIND, digest(spec)) / ARRAY)["array"]


def features_in(reference: Reference, extractor: Extractor, store: Store) -> dict[str, Callable[[], Images]]:
    """What gives the features of each split that has images."""
    return {split: partial(ensure_features, reference, extractor, store, split) for split in SPLITS if len(images_of(reference, split))}


def ensure_space(reference: Reference, extractor: Extractor, store: Store) -> FeatureSpace:
    """The moments of the training split in an extractor's features, from the store or computed now; features when they are asked for."""
    spec = spec_of(reference, extractor, "moments")

    def fill(folder: Path) -> dict[str, Any]:
        size = extractor(reference.train_x[:1])[0].nbytes * len(reference.train_x)
        if size <= KEPT or store.has(KIND, digest(spec_of(reference, extractor, FEATURES))):
            found = merged(parts(ensure_features(reference, extractor, store), CHUNK))
        else:
            found = merged(features_of(extractor, reference.train_x))
        write_atomic(folder / MOMENTS, save({"mean": found.mean, "scatter": found.scatter}))
        return {"spec": spec, "count": found.count}

    key = digest(spec)
    record = store.ensure(KIND, key, fill, say)
    arrays = load_file(store.path(KIND, key) / MOMENTS)
    moments = Moments(record["count"], arrays["mean"], arrays["scatter"])
    rows, facts = features_in(reference, extractor, store), Kept(reference, extractor, store)
    return FeatureSpace(extractor.name, extractor.version, extractor.digest, moments, rows, facts, file=file_of(extractor))
