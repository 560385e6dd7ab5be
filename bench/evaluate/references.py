"""Features of the real images in the store: computed once for all processes and sweeps that measure against them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from bench.store.addresses import digest
from bench.store.artefacts import Store
from fewstep.data.arrays import parts
from fewstep.files import write_atomic
from fewstep.progress import say
from metrics.extractors import Extractor
from metrics.moments import Moments
from metrics.reference import CHUNK, FeatureSpace, Reference, feature_space, features_of, merged

KIND = "reference"
FEATURES = "features.npy"
MOMENTS = "moments.safetensors"
VERSION = 1  # raised when other features or moments come out of the same images and network
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


def ensure_features(reference: Reference, extractor: Extractor, store: Store) -> np.ndarray:
    """The features [N, d] of the training split, mapped from the store, where they are computed if they are not there yet."""
    spec = spec_of(reference, extractor, "features")

    def fill(folder: Path) -> dict[str, Any]:
        with open(folder / FEATURES, "wb") as file:
            for i, part in enumerate(features_of(extractor, reference.train_x)):
                if i == 0:
                    header = {"descr": "<f8", "fortran_order": False, "shape": (len(reference.train_x), part.shape[1])}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(np.ascontiguousarray(part, "<f8").data)
        return {"spec": spec}

    key = digest(spec)
    store.ensure(KIND, key, fill, say)
    return np.load(store.path(KIND, key) / FEATURES, mmap_mode="r", allow_pickle=False)


def ensure_space(reference: Reference, extractor: Extractor, store: Store) -> FeatureSpace:
    """The moments of the training split in an extractor's features, from the store or computed now."""
    spec = spec_of(reference, extractor, "moments")

    def fill(folder: Path) -> dict[str, Any]:
        size = extractor(reference.train_x[:1])[0].nbytes * len(reference.train_x)
        if size <= KEPT or store.has(KIND, digest(spec_of(reference, extractor, "features"))):
            found = merged(parts(ensure_features(reference, extractor, store), CHUNK))
        else:
            found = feature_space(extractor, reference.train_x).moments
        write_atomic(folder / MOMENTS, save({"mean": found.mean, "scatter": found.scatter}))
        return {"spec": spec, "count": found.count}

    key = digest(spec)
    record = store.ensure(KIND, key, fill, say)
    arrays = load_file(store.path(KIND, key) / MOMENTS)
    moments = Moments(record["count"], arrays["mean"], arrays["scatter"])
    return FeatureSpace(extractor.name, extractor.version, extractor.digest, moments)
