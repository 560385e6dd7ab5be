"""Precision, recall, density and coverage: who lies among whose nearest neighbours in feature space. One pass for all four."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from fewstep.data.arrays import Images, Picked
from fewstep.errors import Unavailable
from fewstep.plugins import register
from metrics.intervals import mean_and_error
from metrics.metric import Evidence, Measurement, Shown, measured_in
from metrics.reference import FeatureSpace
from metrics.streaming import block_size, finite, flat

MANIFOLD, DENSITY = 3, 5  # neighbours: of precision and recall, and of density and coverage


def squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|x - y|^2 of rows [n, d] and [m, d] -> [n, m], float64, rounding below 0 cut off."""
    found = x @ y.T
    found *= -2
    found += (x**2).sum(axis=1)[:, None]
    found += (y**2).sum(axis=1)[None]
    return np.maximum(found, 0, out=found)


def _block(rows: Images, first: int, size: int) -> np.ndarray:
    return flat(finite(rows[first : first + size]))


def radii(rows: Images, ks: tuple[int, ...]) -> np.ndarray:
    """The squared distance of each row to its k-th nearest other one: [N, len(ks)]. A block of pairs at a time."""
    n, size, most = len(rows), block_size(rows), max(ks)
    found = []
    for a in range(0, n, size):
        x = _block(rows, a, size)
        near = np.empty((len(x), 0))
        for b in range(0, n, size):
            apart = squared(x, x if a == b else _block(rows, b, size))
            if a == b:
                np.fill_diagonal(apart, np.inf)
            near = np.concatenate([near, apart], axis=1)
            if near.shape[1] > most:
                near = np.partition(near, most - 1, axis=1)[:, :most]
        found.append(np.sort(near, axis=1)[:, [k - 1 for k in ks]])
    return np.concatenate(found)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Of each sample: is it in the ball of a real image (3 neighbours), in how many (5 neighbours). Of each real image: is it in the ball
    of a sample (3), is a sample in its own (5).

    **Shapes**: realistic, counts [N] of samples; recalled, covered [M] of real images.
    """

    realistic: np.ndarray
    counts: np.ndarray
    recalled: np.ndarray
    covered: np.ndarray


def real_radii(real: Images) -> np.ndarray:
    """The radii of real images [M, 2], to the third and to the fifth neighbour: all of them that does not depend on samples."""
    return radii(real, (MANIFOLD, DENSITY))


def neighbours(samples: Images, real: Images, theirs: np.ndarray) -> Neighbours:
    """Who lies in whose ball, from features [N, d] and [M, d]: a ball reaches to the k-th nearest other image of its own set, and holds it.

    `theirs` are the `real_radii`. Two passes over pairs: of samples, and of both.
    """
    ours = radii(samples, (MANIFOLD,))[:, 0]
    n, m = len(samples), len(real)
    realistic, counts, recalled, covered = np.zeros(n, bool), np.zeros(n, np.int64), np.zeros(m, bool), np.zeros(m, bool)
    here, there = block_size(samples), block_size(real)
    for a in range(0, n, here):
        x, own = _block(samples, a, here), slice(a, a + here)
        for b in range(0, m, there):
            apart, other = squared(x, _block(real, b, there)), slice(b, b + there)
            inside = apart <= theirs[other, 1]
            realistic[own] |= (apart <= theirs[other, 0]).any(axis=1)
            counts[own] += inside.sum(axis=1)
            covered[other] |= inside.any(axis=0)
            recalled[other] |= (apart <= ours[own, None]).any(axis=0)
    return Neighbours(realistic, counts, recalled, covered)


def _picked(real: Images, count: int) -> Images:
    """As many real images as there are samples, evenly spaced through the split; all where there are no more."""
    return real if len(real) <= count else Picked(real, np.arange(count) * len(real) // count)


@register(
    "metric",
    "precision",
    "arXiv 1904.06991",
    of="realistic",
    neighbours=MANIFOLD,
    shown=Shown(place=92, published="precision"),
)
@register("metric", "recall", "arXiv 1904.06991", of="recalled", neighbours=MANIFOLD, shown=Shown(place=93, published="recall"))
@register("metric", "density", "arXiv 2002.09797", of="counts", neighbours=DENSITY, shown=Shown(place=94, published="density"))
@register("metric", "coverage", "arXiv 2002.09797", of="covered", neighbours=DENSITY, shown=Shown(place=94, published="coverage"))
@dataclass(frozen=True)
class Manifold:
    """Precision: the share of samples in the ball of a real image. Recall: the share of real images in the ball of a sample. Density: in
    how many balls of real images a sample lies, over k. Coverage: the share of real images with a sample in their own ball.

    A ball reaches to the k-th nearest other image of its set (k = 3, and 5 for the last two). Values depend on the numbers of both: there
    are as many real images as samples, evenly spaced through the training split, or all of it. **Units**: shares; density may exceed 1.
    Standard errors are those of means over samples within classes; recall and coverage have none.
    **Source**: arXiv 1904.06991, equations 1 and 2; 2002.09797, equations 3 and 4.
    """

    name: str
    of: str
    neighbours: int
    shown: Shown
    version: int = 1
    unit: str = "share"
    higher_is_better: bool = True
    extractor: str = "inception"
    needs_teacher: bool = False
    streams: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> Measurement:
        features, space = evidence.features_of(self.extractor), evidence.reference.spaces[self.extractor]
        real = _picked(space.features(self.name), len(features))
        if min(len(features), len(real)) <= DENSITY:
            few = f"{len(features)} samples and {len(real)} real images"
            raise Unavailable(f"{self.name} needs more than {DENSITY} samples and real images, got {few}; take more")
        found = evidence.once(f"neighbours {self.extractor}", partial(self._found, features, real, space))
        each = {"realistic": found.realistic, "counts": found.counts / DENSITY, "recalled": found.recalled, "covered": found.covered}[
            self.of
        ]
        over_samples = len(each) == len(features) and self.of in ("realistic", "counts")
        value, error = mean_and_error(each.astype(np.float64), evidence.labels if over_samples else None)
        protocol = {
            **measured_in(evidence, self.extractor, self.version, len(real)),
            "neighbours": self.neighbours,
            "dimensions": features.shape[1],
            "std_error": "over samples, within classes" if over_samples else "none: a share of real images",
        }
        return Measurement(value, error if over_samples else None, len(features), protocol)

    @staticmethod
    def _found(features: Images, real: Images, space: FeatureSpace) -> Neighbours:
        """With the radii of the real images, which are computed once for all samples of that number."""
        theirs = space.facts.array(f"radii 1 of {len(real)}", partial(real_radii, real))
        return neighbours(features, real, theirs)
