"""Energy distance: a distance of distributions that needs no features, 0 only where they agree. NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fewstep.data.arrays import Images
from fewstep.errors import UsageError
from fewstep.schedule import Array

BLOCK = 2048  # images that are compared with as many at a time: 32 MiB of distances


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


def spread(rows: Images, drawn: Strata, block: int = BLOCK) -> float:
    """`within` of images to themselves, of which `block` rows by `block` are compared at a time. A set of one block is `within` exactly."""
    if len(rows) <= block:
        x = as_rows(rows[:])
        return within(distances(x, x), drawn)
    classes, place, counts = np.unique(drawn.labels, return_inverse=True, return_counts=True)
    more = np.zeros(len(classes))  # what a pair of a class counts beyond the product of its weights
    more[place] = drawn.weights**2
    more /= counts - 1
    total = 0.0
    for i in range(0, len(rows), block):
        a, x = slice(i, i + block), as_rows(rows[i : i + block])
        for j in range(i, len(rows), block):
            b = slice(j, j + block)
            apart = distances(x, x if i == j else as_rows(rows[j : j + block]))
            if i == j:
                np.fill_diagonal(apart, 0)
            same = apart * (place[a][:, None] == place[b][None])
            found = drawn.weights[a] @ apart @ drawn.weights[b] + more[place[a]] @ same.sum(1)
            total += found if i == j else 2 * found
    return float(total)


def to_data(x: Array, rows: Images, weights: Array, block: int = BLOCK) -> Array:
    """The mean distance of each row of x [N, d] to images of these weights [M], as [N]."""
    starts = range(0, len(rows), block)
    return np.sum([distances(x, as_rows(rows[j : j + block])) @ weights[j : j + block] for j in starts], axis=0)


def as_rows(images: np.ndarray) -> Array:
    """Images [N, C, H, W] as rows [N, C H W] of float64."""
    return images.reshape(len(images), -1).astype(np.float64)


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
