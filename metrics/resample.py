"""Resampling with replacement inside each class, by a pinned generator."""

from __future__ import annotations

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
