"""The kernel distance of features (KID): unbiased, over all pairs or over pinned subsets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fewstep.data.arrays import Images
from fewstep.errors import Unavailable
from fewstep.plugins import register
from metrics.intervals import mean_and_error, varied
from metrics.metric import Evidence, Measurement, Shown, measured_in
from metrics.reference import FeatureSpace
from metrics.streaming import block_size, blocks, finite, flat

PAPER = "arXiv 1801.01401"


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """k(x, y) = (x.y / d + 1)^3 of rows [n, d] and [m, d] -> [n, m], float64."""
    found = x @ y.T
    found /= x.shape[1]
    found += 1
    return found * found * found


def _finite(rows: np.ndarray) -> np.ndarray:
    return flat(finite(rows))


def sums_with(rows: Images, others: Images) -> np.ndarray:
    """sum_y k(x, y) of each x of `rows`, over all y of `others`: [N]. A block of pairs at a time."""
    return np.concatenate([np.sum([cubic(x, _finite(y)).sum(axis=1) for y in blocks(others)], axis=0) for x in map(_finite, blocks(rows))])


def sums_within(rows: Images) -> np.ndarray:
    """sum_(x' not x) k(x, x') of each x: [N]. Each pair of blocks is computed once."""
    n, size = len(rows), block_size(rows)
    found = np.zeros(n)
    for a in range(0, n, size):
        x = _finite(rows[a : a + size])
        for b in range(a, n, size):
            y = x if a == b else _finite(rows[b : b + size])
            k = cubic(x, y)
            if a == b:
                np.fill_diagonal(k, 0)
            else:
                found[b : b + size] += k.sum(axis=0)
            found[a : a + size] += k.sum(axis=1)
    return found


def spread_of(space: FeatureSpace, metric: str) -> float:
    """E k(y, y') over pairs of different training images, computed once for a reference."""
    real = space.features(metric)
    return space.facts.number("kernel spread 1", lambda: float(sums_within(real).sum() / (len(real) * (len(real) - 1))))


@register("metric", "kid", PAPER)
@dataclass(frozen=True)
class KernelDistance:
    """Unbiased squared MMD with k(x, y) = (x.y / d + 1)^3: E k(x, x') + E k(y, y') - 2 E k(x, y), over all pairs of samples x and of
    training images y, no image with itself. Exact samples score 0 in the mean and below it half of the time.

    The standard error is that of the mean of h(x) = 2 E k(x, x') - 2 E k(x, y) within classes (Hajek's projection; of samples as near as
    they can be it is up to twice too large). **Shapes**: features [N, d]. **Units**: none (features are divided by sqrt(d)).
    **Raises**: Unavailable without features of the real images. **Source**: arXiv 1801.01401, equation 4; no subsets.
    """

    name: str = "kid"
    version: int = 1
    unit: str = "kernel units"
    higher_is_better: bool = False
    extractor: str = "inception"
    needs_teacher: bool = False
    shown: ClassVar[Shown] = Shown(place=91, error=True, published="KID")
    streams: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> Measurement:
        features, space = evidence.features_of(self.extractor), evidence.reference.spaces[self.extractor]
        real, n = space.features(self.name), len(features)
        own = sums_within(features) / (n - 1)
        across = sums_with(features, real) / len(real)
        value = float(own.mean() - 2 * across.mean()) + spread_of(space, self.name)
        _, error = mean_and_error(2 * (own - across), evidence.labels)
        protocol = {
            **measured_in(evidence, self.extractor, self.version, len(real)),
            "dimensions": features.shape[1],
            "pairs": "all",
            "std_error": "projection, within classes",
        }
        return Measurement(value, error, n, protocol)


@register("metric", "kid_subsets", f"{PAPER} (subsets as in the package torch-fidelity)")
@dataclass(frozen=True)
class SubsetKernelDistance:
    """The mean of `kid` over subsets of samples and of as many training images, drawn as torch-fidelity draws them (RandomState(seed), the
    samples' first, without replacement in a subset): the form in which papers report KID. `std` in the protocol is that over subsets,
    which share images: it is no standard error of the mean. **Raises**: Unavailable for fewer images than a subset has.
    """

    name: str = "kid_subsets"
    version: int = 1
    unit: str = "kernel units"
    higher_is_better: bool = False
    extractor: str = "inception"
    needs_teacher: bool = False
    subsets: int = 100
    size: int = 1000
    seed: int = 2020
    shown: ClassVar[Shown] = Shown(place=111, published="KID")
    on_request: ClassVar[bool] = True
    streams: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> Measurement:
        features, space = evidence.features_of(self.extractor), evidence.reference.spaces[self.extractor]
        real = space.features(self.name)
        if min(len(features), len(real)) < self.size:
            few = f"{len(features)} samples and {len(real)} training images"
            raise Unavailable(f"{self.name} draws subsets of {self.size}, and there are {few}; take more, or measure kid")
        rng, values, m = np.random.RandomState(self.seed), [], self.size
        for _ in range(self.subsets):
            x, y = (_finite(rows[rng.choice(len(rows), m, replace=False)]) for rows in (features, real))
            own = sum((k.sum() - np.trace(k)) / (m * (m - 1)) for k in (cubic(x, x), cubic(y, y)))
            values.append(own - 2 * cubic(x, y).mean())
        found = np.array(values)
        protocol = {
            **measured_in(evidence, self.extractor, self.version, len(real)),
            "dimensions": features.shape[1],
            "pairs": f"{self.subsets} subsets of {self.size}, seed {self.seed}",
            "std": varied(float(found.std()), found),
            "std_error": "none: subsets share images",
        }
        return Measurement(float(found.mean()), None, len(features), protocol)
