"""What stays of samples when their metrics are done, and how artefacts go. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save

from bench.space.claims import changing, claims
from bench.store.artefacts import Store
from bench.store.parts import SAMPLES, TRUTH, Samples, samples_in, stored
from fewstep.data.arrays import Images, Scaled, part_size
from fewstep.errors import UsageError, near_misses
from fewstep.files import making, write_atomic
from metrics.pixels import to_uint8

KEEP = ("samples", "features", "none")
SHOWN = "shown"  # the kind of artefact, and its file: 8-bit images for display
MOST_SHOWN = 300
ASKED = "asked"  # the kind of artefact, and its file: pictures that samples are asked by, and true images
FEW_ASKED = 32


def check_keep(value: object) -> None:
    """**Raises**: UsageError for what is no choice of what to keep."""
    if value not in KEEP:
        raise UsageError(f"keep must be one of {', '.join(KEEP)}, got '{value}'{near_misses(str(value), KEEP)}; e.g. keep=features")


def keep_shown(store: Store, key: str) -> None:
    """Keep the first images of samples for display, as 8-bit levels with their labels."""

    def fill(folder: Path) -> dict[str, Any]:
        found = samples_in(store.path(SAMPLES, key))
        few = part_size(found.images.shape[1:], MOST_SHOWN)
        tensors = {"images": to_uint8(found.images[:few]), "labels": np.asarray(found.labels[:few])}
        write_atomic(folder / f"{SHOWN}.safetensors", save(tensors))
        return {"spec": {"samples": key}}

    store.ensure(SHOWN, key, fill, lambda text: None)


def keep_asked(store: Store, key: str, pictures: Images, targets: Images) -> None:
    """Keep the first pictures that samples are asked by, and the true images, as 8-bit levels for display."""

    def fill(folder: Path) -> dict[str, Any]:
        tensors = {"pictures": to_uint8(pictures[:FEW_ASKED]), "targets": to_uint8(targets[:FEW_ASKED])}
        write_atomic(folder / f"{ASKED}.safetensors", save(tensors))
        return {"spec": {"asked": key}}

    store.ensure(ASKED, key, fill, lambda text: None)


def asked_by(root: Path, key: str) -> tuple[Scaled, Scaled] | None:
    """The first pictures of an address and their true images; None where they are not in the store that lies in `root`."""
    try:
        pictures, targets = (stored(root / ASKED / key, ASKED, name)[:] for name in ("pictures", "targets"))
    except (OSError, SafetensorError, ValueError):
        return None
    return Scaled(pictures), Scaled(targets)


def displayed(root: Path, key: str) -> Samples | None:
    """The samples of an address, or what was kept of them for display; None where neither is in the store that lies in `root`."""
    try:
        return samples_in(root / SAMPLES / key)
    except (OSError, SafetensorError, ValueError):  # absent, or being replaced
        pass
    try:
        levels, labels = (stored(root / SHOWN / key, SHOWN, name)[:] for name in ("images", "labels"))
    except (OSError, SafetensorError, ValueError):
        return None
    return Samples(Scaled(levels), labels)


def remove(store: Store, kind: str, key: str) -> bool:
    """Remove an artefact, whole; False where another process is at it. Called under `bench.space.claims.changing`."""
    lock = store.try_lock(kind, key)
    if lock is None:
        return False
    try:
        with making(store.root) as gone:
            os.replace(store.path(kind, key), gone / key)
    except FileNotFoundError:
        return False
    finally:
        lock.release()
    return True


def let_go(store: Store, key: str, keep: str, features: Iterable[str], own: Path | None = None) -> bool:
    """Leave of the samples `key` what `keep` says: everything, the images for display and `features`, or the images for display alone. Of
    an exact solution nothing but everything stays. False where an unfinished sweep other than `own` needs them, and everything stays.
    """
    if keep == "samples":
        return True
    with changing(store):
        if any(claim.wants(key) for claim in claims(store, own)):
            return False
        if store.has(SAMPLES, key):
            keep_shown(store, key)
            remove(store, SAMPLES, key)
        if store.has(TRUTH, key):
            remove(store, TRUTH, key)
        for other in features if keep == "none" else ():
            remove(store, "features", other)
    return True
