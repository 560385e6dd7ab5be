"""Single-step DPM-Solver in sigma, where its noise-prediction form loses all exponentials."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.elementary import expm1, log
from fewstep.errors import UsageError
from fewstep.grid import TimeGrid
from fewstep.plan import Combine, Eval, Op, Plan, prediction, state
from methods.registry import register
from methods.solver import Claims
from methods.solvers.euler import euler_terms

R1, R2 = 1 / 3, 2 / 3


@register("solver", "dpm_2s", "arXiv 2206.00927 (DPM-Solver-2)")
@dataclass(frozen=True)
class DPM2S:
    """Single-step DPM-Solver of order 2, two evaluations a step.

    x' = x + h (d_mid / (2 r) + (1 - 1 / (2 r)) d), d_mid the slope at sigma_mid = sigma'^r sigma^(1-r); Euler where sigma' = 0.

    r = 1/2 is the geometric midpoint. **Source**: arXiv 2206.00927 algorithm 4, in x = x0 + sigma n.
    """

    r: float = 0.5
    version: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.r <= 1:
            raise UsageError(f"r must be in (0, 1], got {self.r}; 0.5 is the geometric midpoint")

    @property
    def claims(self) -> Claims:
        return Claims(order=2)

    def plan(self, grid: TimeGrid) -> Plan:
        s, ops = grid.sigmas, list[Op]()
        for i in range(grid.steps):
            x, d, to = state(i), prediction(i), state(i + 1)
            ops.append(Eval(d, x, s[i]))
            if grid.at_zero(i + 1):
                ops.append(Combine(to, euler_terms(x, d, s[i], s[i + 1])))
                continue
            mid = s[i + 1] ** self.r * s[i] ** (1 - self.r)
            ops.append(Combine(f"xm[{i}]", euler_terms(x, d, s[i], mid)))
            ops.append(Eval(f"Dm[{i}]", f"xm[{i}]", mid))
            # d = (x - D) / s; d_mid = (q x + (1 - q) D - D_mid) / mid with q = mid / s, so q / mid = 1 / s.
            q, a, b = mid / s[i], (s[i + 1] - s[i]) / (2 * self.r), (s[i + 1] - s[i]) * (1 - 1 / (2 * self.r))
            terms = ((x, 1 + (a + b) / s[i]), (d, a * (1 - q) / mid - b / s[i]), (f"Dm[{i}]", -a / mid))
            ops.append(Combine(to, terms))
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))


@register("solver", "dpm_3s", "arXiv 2206.00927 (DPM-Solver-3)")
@dataclass(frozen=True)
class DPM3S:
    """Single-step DPM-Solver of order 3, three evaluations a step, at sigma_k = sigma'^(r_k) sigma^(1 - r_k) with r = 0, 1/3, 2/3.

    With d_k the slopes and phi(z) = expm1(z) / z - 1: u_1 is Euler's, u_2 = x + (sigma_2 - sigma) d_0 - sigma_2 (r_2 / r_1) phi(r_2 h)
    (d_1 - d_0), x' = x + (sigma' - sigma) d_0 - sigma' phi(h) / r_2 (d_2 - d_0). Euler where sigma' = 0.

    In (x, D): d_1 - d_0 = (D_0 - D_1) / sigma_1, and d_2 - d_0 follows from it. **Source**: arXiv 2206.00927, algorithm 5.
    """

    version: int = 1

    @property
    def claims(self) -> Claims:
        return Claims(order=3)

    def plan(self, grid: TimeGrid) -> Plan:
        s, ops = grid.sigmas, list[Op]()
        for i in range(grid.steps):
            x, d, to = state(i), prediction(i), state(i + 1)
            ops.append(Eval(d, x, s[i]))
            if grid.at_zero(i + 1):
                ops.append(Combine(to, euler_terms(x, d, s[i], s[i + 1])))
                continue
            h = log(s[i]) - log(s[i + 1])
            s1, s2 = (s[i + 1] ** r * s[i] ** (1 - r) for r in (R1, R2))
            b = s2 / s1 * (R2 / R1) * (expm1(R2 * h) / (R2 * h) - 1)  # u_2's weight of D_1 - D_0
            c = s[i + 1] / s2 / R2 * (expm1(h) / h - 1)  # x''s weight of D_2 - D_0 - b (D_1 - D_0)
            d1, d2 = f"D1[{i}]", f"D2[{i}]"
            ops.append(Combine(f"u1[{i}]", euler_terms(x, d, s[i], s1)))
            ops.append(Eval(d1, f"u1[{i}]", s1))
            ops.append(Combine(f"u2[{i}]", ((x, s2 / s[i]), (d, 1 - s2 / s[i] - b), (d1, b))))
            ops.append(Eval(d2, f"u2[{i}]", s2))
            ops.append(Combine(to, ((x, s[i + 1] / s[i]), (d, 1 - s[i + 1] / s[i] - c * (1 - b)), (d1, -c * b), (d2, c))))
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))
