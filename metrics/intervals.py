"""Standard errors of labelled sets, for new draws of the same labels: over the samples of each class, or by resampling them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fewstep.errors import UsageError

# Values that agree to this share of their size vary by rounding alone: the roots of vanishing eigenvalues carry 1e-8.
ROUNDING = 1e-7


def resample_index(labels: np.ndarray, seed: int, per_class: int | None = None) -> np.ndarray:
    """Indices drawn with replacement inside each class, classes in ascending order: `per_class` of each, or as many as it has.

    Samples are drawn class by class (the labels are pinned), so their resamples must be too. RandomState: its stream is frozen
    across NumPy versions. **Raises**: UsageError for no labels or a `per_class` below 1.
    """
    return _drawn(labels, per_class, np.random.RandomState(seed), lambda members, count: False)


def drawn_index(labels: np.ndarray, seed: int, per_class: int) -> np.ndarray:
    """As `resample_index`, but no image twice of a class that has `per_class` of them: with repeats a set of real images is less varied
    than one of as many others."""
    return _drawn(labels, per_class, np.random.RandomState(seed), lambda members, count: len(members) >= count)


def _drawn(labels: np.ndarray, per_class: int | None, rng: np.random.RandomState, once: Callable[[np.ndarray, int], bool]) -> np.ndarray:
    if len(labels) == 0 or (per_class is not None and per_class < 1):
        raise UsageError(f"cannot draw {per_class} per class from {len(labels)} labelled images; ask for at least 1 of a non-empty set")
    drawn = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = per_class or len(members)
        drawn.append(members[rng.permutation(len(members))[:count] if once(members, count) else rng.randint(len(members), size=count)])
    return np.concatenate(drawn)


def varied(error: float, values: np.ndarray) -> float | None:
    """A standard error, or None where the values it comes from are all alike: what has not been seen to vary has no known error."""
    return error if np.std(values) > ROUNDING * np.abs(values).max() else None


def single(labels: np.ndarray) -> bool:
    """Whether a class has one sample, whose spread nobody knows."""
    return bool((np.unique(labels, return_counts=True)[1] == 1).any())


def bootstrap(labels: np.ndarray, resamples: int, value: Callable[[np.ndarray], float]) -> tuple[float | None, dict[str, object]]:
    """The standard error of `value(index)` over resamples within classes, by the pinned seeds 0, 1, ..., and what the protocol says of it.

    Samples of the same labels have the same resamples, so `resampled` (six digits) gives the error of a difference of two of them.
    None, and no `resampled`, where a class has one sample (all its resamples are that one) or all samples of each class are alike.
    From classes of n samples it is too small by sqrt((n - 1) / n) where the value is linear in them; a distance near the least it can
    be is not, and its error is up to twice too large (`docs/protocol.md`).
    """
    if single(labels):
        return None, {"std_error": "none: a class has one sample, and its resamples are all the same"}
    found = np.array([value(resample_index(labels, seed)) for seed in range(resamples)])
    error = varied(float(np.std(found, ddof=1)), found)
    if error is None:
        return None, {"std_error": "none: all resamples have the same value"}
    said = {"std_error": f"bootstrap, {resamples} resamples within classes", "resampled": [float(f"{v:.6g}") for v in found]}
    return error, said


def mean_and_error(values: np.ndarray, labels: np.ndarray | None = None) -> tuple[float, float | None]:
    """Mean of independent values [N] and its standard error: s / sqrt(N), or with labels [N] sqrt(sum_c n_c s_c^2) / N.

    The spread between classes moves no mean whose labels are given, so it is no part of its error. Where a class has one sample s is
    taken over all classes: too large rather than unknown. None where all values (of each class) are alike.
    """
    if labels is None or single(labels):
        return float(values.mean()), varied(float(values.std(ddof=1) / np.sqrt(len(values))), values)
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    apart = values - (np.bincount(place, values) / counts)[place]
    error = np.sqrt((np.bincount(place, apart**2) * counts / (counts - 1)).sum()) / len(values)
    return float(values.mean()), float(error) if np.abs(apart).max() > ROUNDING * np.abs(values).max() else None
