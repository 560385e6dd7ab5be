"""The base solvers that AMED inserts an evaluation into, as sub-steps between levels that may be predicted tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fewstep.elementary import log
from fewstep.schedule import Array
from methods.claims import UNEVEN, Claims
from methods.solvers.dpm_multistep import PUBLISHED, multistep_order, multistep_terms, noise_multistep_weights
from methods.solvers.ipndm import ipndm_weights

Weights = Callable[[Sequence[Tensor], Tensor, Tensor], list[Any]]


@dataclass(frozen=True)
class Point:
    """An evaluation: the slots of its state and prediction, and its noise level (a slot's name where it is predicted)."""

    x: str
    d: str
    level: Array | str


@dataclass(frozen=True)
class SubStep:
    """x' = carry + c sum of weights(levels, to, r) over the newest `points`, of their slopes d = (x - D) / level, or with `data` of D.

    What is carried is x of the newest point but `base` ones, and with `data` sigma' / sigma times it.
    """

    points: int
    weights: Weights
    base: int = 0
    data: bool = False

    def names(self, points: Sequence[Point]) -> list[str]:
        """The slots that are combined, for `values`."""
        used = points[: self.points]
        return [used[0].x, *(p.d for p in used)] if self.data else [*(p.x for p in used), *(p.d for p in used)]

    def values(self, levels: Sequence[Tensor], to: Tensor, r: Tensor, c: Tensor | float = 1.0) -> list[Tensor]:
        """The coefficients of `names`, from the points' levels, newest first."""
        weights = [c * w for w in self.weights(levels[: self.points], to, r)]
        if self.data:
            return [to / levels[0], *weights]
        slopes = [w / level for w, level in zip(weights, levels)]
        return [*(w + (k == self.base) for k, w in enumerate(slopes)), *(-w for w in slopes)]


@dataclass(frozen=True)
class Base:
    """A base solver: its sub-steps of one interval (number of the first one, number of all), and whether they reach into earlier ones."""

    sub_steps: Callable[[int, int], tuple[SubStep, SubStep]]
    claims: Claims
    multistep: bool = False


def _adams(points: int) -> SubStep:
    return SubStep(points, lambda levels, to, r: ipndm_weights(points, to - levels[0]))


def _noise(points: int) -> SubStep:
    return SubStep(points, lambda levels, to, r: noise_multistep_weights(points, [to, *levels], PUBLISHED))


def _data(points: int) -> SubStep:
    def weights(levels: Sequence[Tensor], to: Tensor, r: Tensor) -> list[Any]:
        return multistep_terms(points, [-log(to), *(-log(level) for level in levels)], PUBLISHED)

    return SubStep(points, weights, data=True)


def _multistep(of_order: Callable[[int], SubStep], order: int, claims: Claims) -> Base:
    lowered = of_order is not _adams

    def sub_steps(first: int, total: int) -> tuple[SubStep, SubStep]:
        return of_order(multistep_order(first, total, order, lowered)), of_order(multistep_order(first + 1, total, order, lowered))

    return Base(sub_steps, claims, multistep=True)


def _single(second: SubStep, order: int) -> Base:
    return Base(lambda first, total: (_adams(1), second), Claims(order=order))


def _midpoint(levels: Sequence[Tensor], to: Tensor, r: Tensor) -> list[Any]:
    return [to - levels[1], 0 * to]


def _two_slopes(levels: Sequence[Tensor], to: Tensor, r: Tensor) -> list[Any]:
    h = to - levels[1]
    return [h / (2 * r), h * (1 - 1 / (2 * r))]


# The claims are those of geometric midpoints. Fixed Adams weights are right to first order only where neighbouring steps differ.
BASES = {
    "amed": _single(SubStep(2, _midpoint, base=1), order=2),
    "euler": _single(_adams(1), order=1),
    "dpm_2s": _single(SubStep(2, _two_slopes, base=1), order=2),
    **{f"ipndm_{p}": _multistep(_adams, p, Claims(order=2, order_on={UNEVEN: 1})) for p in (2, 3, 4)},
    **{f"dpm_{p}m": _multistep(_noise, p, Claims(order=2)) for p in (2, 3)},
    **{f"dpmpp_{p}m": _multistep(_data, p, Claims(order=2)) for p in (2, 3)},
}
