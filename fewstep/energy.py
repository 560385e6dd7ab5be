"""Energy distance: a distance of distributions that needs no features, 0 only where they agree. NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fewstep.errors import UsageError
from fewstep.schedule import Array


@dataclass(frozen=True, eq=False)
class Strata:
    """How a set was drawn: `labels` [N], the stratum of each row, and `weights` [N], what it counts (alike inside a stratum, sum 1)."""

    labels: np.ndarray
    weights: Array

    def at(self, index: np.ndarray) -> Strata:
        """Those of the rows `index`, as many of each stratum as there were."""
        return Strata(self.labels[index], self.weights[index])


def strata(labels: np.ndarray, shares: Mapping[int, float] | None = None, what: str = "samples") -> Strata:
    """Rows drawn independently inside each class of labels [N]; a class counts `shares[class]`, by default as much as it has rows.

    One class throughout is an i.i.d. set. With the population's shares, labels that were drawn at random are as good as pinned ones.
    **Raises**: UsageError where a class has a single row: there is no pair of its rows, so no unbiased distance between two of them.
    """
    classes, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if (counts == 1).any():
        single = classes[counts == 1][0]
        raise UsageError(
            f"an unbiased energy distance needs at least two {what} of each class, got one of class {single}; "
            f"take more, at least {2 * len(classes)} for {len(classes)} classes"
        )
    whole = counts / counts.sum() if shares is None else np.array([shares[int(c)] for c in classes], np.float64)
    return Strata(labels, (whole / whole.sum() / counts)[place])


def distances(x: Array, y: Array) -> Array:
    """|x_i - y_j| of rows x [N, d] and y [M, d], as [N, M]."""
    square = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * x @ y.T
    return np.sqrt(np.maximum(square, 0))


def within(apart: Array, rows: Strata) -> float:
    """E|x - x'| from `distances` [N, N] of a set to itself: sum_c p_c^2 E_cc + sum_{c != d} p_c p_d E_cd over strata of weights p.

    E_cc is the mean over pairs of different rows, E_cd over all pairs. An i.i.d. formula would take a pair of one stratum for less
    likely than it is in the distribution: by 1/N of what lies between strata, it finds a balanced set too wide.
    """
    apart, w = apart.copy(), rows.weights
    np.fill_diagonal(apart, 0)
    total = w @ apart @ w
    for c in np.unique(rows.labels):
        own = np.flatnonzero(rows.labels == c)
        total += w[own[0]] ** 2 * apart[np.ix_(own, own)].sum() / (len(own) - 1)
    return float(total)


def energy(across: Array, within_x: Array, within_y: Array, x: Strata, y: Strata) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| from `distances` [N, M], [N, N] and [M, M]: unbiased for the two mixtures of strata.

    **Source**: Szekely and Rizzo, J. Stat. Plan. Inference 143 (2013); the weights of strata are ours.
    """
    return float(2 * (x.weights @ across @ y.weights)) - within(within_x, x) - within(within_y, y)


def energy_distance(x: Array, y: Array, x_labels: np.ndarray | None = None, y_labels: np.ndarray | None = None) -> float:
    """The energy distance of samples x [N, ...] and y [M, ...], flattened, in float64.

    Labels [N], [M] are those of a set that was drawn class by class; its classes count as much as they have rows. Without them a set
    is i.i.d. draws. Between two exact sets the mean is 0 if, and only if, each is said to be what it is.
    """
    x, y = (z.reshape(len(z), -1).astype(np.float64) for z in (x, y))
    drawn = [strata(np.zeros(len(z), np.int64) if labels is None else labels) for z, labels in ((x, x_labels), (y, y_labels))]
    return energy(distances(x, y), distances(x, x), distances(y, y), *drawn)
