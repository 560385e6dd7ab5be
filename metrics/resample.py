"""Resampling with replacement inside each class, by a pinned generator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fewstep.errors import UsageError


def resample_index(labels: np.ndarray, seed: int, per_class: int | None = None) -> np.ndarray:
    """Indices drawn with replacement inside each class, classes in ascending order: `per_class` of each, or as many as it has.

    Samples are drawn class by class (the labels are pinned), so their resamples must be too. RandomState: its stream is frozen
    across NumPy versions. **Raises**: UsageError for no labels or a `per_class` below 1.
    """
    if len(labels) == 0 or (per_class is not None and per_class < 1):
        raise UsageError(f"cannot draw {per_class} per class from {len(labels)} labelled images; ask for at least 1 of a non-empty set")
    rng = np.random.RandomState(seed)
    drawn = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        drawn.append(members[rng.randint(len(members), size=per_class or len(members))])
    return np.concatenate(drawn)


def bootstrap(labels: np.ndarray, resamples: int, value: Callable[[np.ndarray], float]) -> tuple[float, dict[str, object]]:
    """The standard error of `value(index)` over resamples within classes, by the pinned seeds 0, 1, ..., and what the protocol says of it.

    Samples of the same labels have the same resamples, so `resampled` (six digits) gives the error of a difference of two of them.
    """
    found = [value(resample_index(labels, seed)) for seed in range(resamples)]
    said = {"std_error": f"bootstrap, {resamples} resamples within classes", "resampled": [float(f"{v:.6g}") for v in found]}
    return float(np.std(found, ddof=1)), said
