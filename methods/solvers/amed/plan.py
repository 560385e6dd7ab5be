"""The plan of AMED: two sub-steps of a base solver an interval, with levels and coefficients that a predictor names when it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.grid import TimeGrid
from fewstep.sampling.plan import Apply, Combine, Eval, Op, Plan, prediction, state
from fewstep.schedule import Array
from methods.claims import Claims
from methods.solvers.amed.bases import BASES, Point, SubStep
from methods.solvers.euler import euler_terms

Predictor = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]  # (features, sigma, sigma') -> (r, c, a)


@dataclass(frozen=True, eq=False)
class BoundAMED:
    """AMED with its predictor. A plan for other levels than it was fitted for is refused; `levels` None allows any."""

    base: str
    predictor: Predictor
    features: int
    levels: Array | None = None
    deviations: tuple[str, ...] = ()
    version: int = 1

    @property
    def claims(self) -> Claims:
        own = BASES[self.base].claims
        return replace(own, deviations=(*own.deviations, *self.deviations))

    def plan(self, grid: TimeGrid) -> Plan:
        if self.levels is not None and (self.levels.shape != grid.sigmas.shape or not np.allclose(self.levels, grid.sigmas, rtol=1e-6)):
            wanted, given = (" ".join(f"{v:.6g}" for v in levels) for levels in (self.levels, grid.sigmas))
            raise UsageError(f"this predictor was fitted for the levels {wanted}, not {given}; fit it to this grid")
        s, ops, points = grid.sigmas, list[Op](), list[Point]()
        last = grid.steps - 1 if grid.at_zero(grid.steps) else grid.steps
        for i in range(grid.steps):
            ops.append(Eval(prediction(i), state(i), s[i], features=f"h[{i}]" if self.features and i < last else None))
            if i == last:
                ops.append(Combine(state(i + 1), euler_terms(state(i), prediction(i), s[i], s[i + 1])))
                continue
            points = [Point(state(i), prediction(i), s[i]), *points]
            inserted = Point(f"xs[{i}]", f"Ds[{i}]", f"s[{i}]")
            first, second = BASES[self.base].sub_steps(2 * i, 2 * last + grid.steps - last)
            ops.append(self._predicted(i, (s[i], s[i + 1]), points, (first, second)))
            ops.append(Combine(inserted.x, _named(first.names(points), f"k[{i}]")))
            points = [inserted, *points]
            ops.append(Eval(inserted.d, inserted.x, f"as[{i}]"))
            ops.append(Combine(state(i + 1), _named(second.names(points), f"q[{i}]")))
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))

    def _predicted(self, i: int, ends: tuple[Array, Array], points: list[Point], parts: tuple[SubStep, SubStep]) -> Apply:
        """The op that writes the inserted level s, the level a s that D is asked for, and the coefficients of both sub-steps."""
        first, second = parts
        used = points[: max(first.points, second.points - 1)]
        slots = [p.level for p in used if isinstance(p.level, str)]
        source = [f"h[{i}]"] if self.features else []

        def fn(x: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
            def tensor(level: Array) -> Tensor:
                return torch.tensor(level, dtype=torch.float64, device=x.device).expand(len(x))

            features, earlier = (given[0], given[1:]) if source else (x.new_zeros(len(x), 0), given)
            known = dict(zip(slots, earlier, strict=True))
            levels = [known[p.level] if isinstance(p.level, str) else tensor(p.level) for p in used]
            at, to = (tensor(end) for end in ends)
            r, c, a = self.predictor(features, at, to)
            s = to**r * at ** (1 - r)
            return s, a * s, *first.values(levels, s, r), *second.values([s, *levels], to, r, c)

        counts = len(first.names(points)), len(second.names([points[0], *points]))
        outs = [f"s[{i}]", f"as[{i}]", *(f"k[{i}]{j}" for j in range(counts[0])), *(f"q[{i}]{j}" for j in range(counts[1]))]
        return Apply(tuple(outs), fn, (state(i), *source, *slots))


def _named(slots: list[str], prefix: str) -> tuple[tuple[str, str], ...]:
    return tuple((slot, f"{prefix}{j}") for j, slot in enumerate(slots))


def fixed(values: Tensor) -> Predictor:
    """The predictor that always gives these (r, c, a)."""

    def predict(features: Tensor, sigma: Tensor, sigma_to: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r, c, a = values.to(features.device, torch.float64).unbind()
        return r.expand(len(features)), c.expand(len(features)), a.expand(len(features))

    return predict
