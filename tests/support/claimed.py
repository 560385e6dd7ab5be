"""Solvers whose claims or weights are not those they are registered with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.certificate.finding import Finding
from fewstep.grid import TimeGrid
from fewstep.plugins import get
from fewstep.sampling.plan import Combine, Plan
from methods.claims import Claims
from methods.solver import Solver, draft


@dataclass(frozen=True)
class Claimed:
    """A solver with other claims."""

    base: Solver
    claims: Claims
    version: int = 1

    def plan(self, grid: TimeGrid) -> Plan:
        return self.base.plan(grid)


def claimed(name: str, **changes) -> Claimed:
    made = draft(get("solver", name).make())
    return Claimed(made, replace(made.claims, **changes))


def failed(found: Sequence[Finding]) -> list[Finding]:
    return [f for f in found if not f.ok]


@dataclass(frozen=True)
class Shifted:
    """Euler with D scaled by 1 + `by`: on x_0 = c + sigma_max the state at sigma is off by `by` (1 - sigma / sigma_max) c."""

    by: float = 1e-3
    claims: Claims = Claims(order=0)  # noqa: RUF009 (frozen)
    version: int = 1

    def plan(self, grid: TimeGrid) -> Plan:
        plan = get("solver", "euler").make().plan(grid)
        ops = (
            replace(o, terms=(o.terms[0], (o.terms[1][0], o.terms[1][1] * (1 + self.by)))) if isinstance(o, Combine) else o
            for o in plan.ops
        )
        return Plan(tuple(ops), plan.states)
