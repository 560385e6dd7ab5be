"""Single-step DPM-Solver and DPM-Solver++ in sigma, where the noise-prediction form loses all exponentials."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.elementary import expm1, log
from fewstep.errors import UsageError
from fewstep.grid import TimeGrid
from fewstep.plugins import register
from fewstep.sampling.plan import Combine, Eval, Op, Plan, prediction, state
from fewstep.schedule import Array
from methods.claims import Claims
from methods.solver import check_predicts
from methods.solvers.euler import euler_terms, single_step_plan

R1, R2 = 1 / 3, 2 / 3


def check_inner(r: float) -> None:
    """**Raises**: UsageError for an inner level sigma'^r sigma^(1-r) that is not inside of the step."""
    if not 0 < r < 1:
        raise UsageError(f"r must be in (0, 1), got {r}; 0.5 is the geometric midpoint, and r = 1 would be heun")


@register("solver", "dpm_2s", "arXiv 2206.00927 (DPM-Solver-2)")
@register("solver", "dpmpp_2s", "arXiv 2211.01095 (algorithm 1, DPM-Solver++(2S))", predicts="x0")
@dataclass(frozen=True)
class DPM2S:
    """Single-step DPM-Solver and DPM-Solver++ of order 2, two evaluations a step, the second at sigma_mid = sigma'^r sigma^(1-r).

    eps: x' = x + h (d_mid / (2 r) + (1 - 1 / (2 r)) d), d the slopes. x0: x' = (sigma' / sigma) x + (1 - sigma' / sigma) (D_mid / (2 r) +
    (1 - 1 / (2 r)) D). Both from the Euler point at sigma_mid; Euler where sigma' = 0. r = 1/2 is the geometric midpoint.
    **Source**: arXiv 2206.00927 algorithm 4 and 2211.01095 algorithm 1, in x = x0 + sigma n.
    """

    r: float = 0.5
    predicts: str = "eps"
    version: int = 1

    def __post_init__(self) -> None:
        check_inner(self.r)
        check_predicts(self.predicts)

    @property
    def claims(self) -> Claims:
        return Claims(order=2)

    def _last(self, x: str, i: int, sigma: Array, mid: Array, sigma_to: Array) -> tuple[tuple[str, Array], ...]:
        share = 1 / (2 * self.r)
        if self.predicts == "x0":
            ratio = sigma_to / sigma
            return (x, ratio), (prediction(i), (1 - ratio) * (1 - share)), (f"Dm[{i}]", (1 - ratio) * share)
        # d = (x - D) / s; d_mid = (q x + (1 - q) D - D_mid) / mid with q = mid / s, so q / mid = 1 / s.
        q, a, b = mid / sigma, (sigma_to - sigma) * share, (sigma_to - sigma) * (1 - share)
        return (x, 1 + (a + b) / sigma), (prediction(i), a * (1 - q) / mid - b / sigma), (f"Dm[{i}]", -a / mid)

    def plan(self, grid: TimeGrid) -> Plan:
        def ops_of(i: int) -> list[Op]:
            sigma, to, inner = grid.sigmas[i], grid.sigmas[i + 1], f"xm[{i}]"
            mid = to**self.r * sigma ** (1 - self.r)
            first = Combine(inner, euler_terms(state(i), prediction(i), sigma, mid))
            return [first, Eval(f"Dm[{i}]", inner, mid), Combine(state(i + 1), self._last(state(i), i, sigma, mid, to))]

        return single_step_plan(grid, ops_of)


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
        s = grid.sigmas

        def ops_of(i: int) -> list[Op]:
            x, d, d1, d2 = state(i), prediction(i), f"D1[{i}]", f"D2[{i}]"
            h = log(s[i]) - log(s[i + 1])
            s1, s2 = (s[i + 1] ** r * s[i] ** (1 - r) for r in (R1, R2))
            b = s2 / s1 * (R2 / R1) * (expm1(R2 * h) / (R2 * h) - 1)  # u_2's weight of D_1 - D_0
            c = s[i + 1] / s2 / R2 * (expm1(h) / h - 1)  # x''s weight of D_2 - D_0 - b (D_1 - D_0)
            return [
                Combine(f"u1[{i}]", euler_terms(x, d, s[i], s1)),
                Eval(d1, f"u1[{i}]", s1),
                Combine(f"u2[{i}]", ((x, s2 / s[i]), (d, 1 - s2 / s[i] - b), (d1, b))),
                Eval(d2, f"u2[{i}]", s2),
                Combine(state(i + 1), ((x, s[i + 1] / s[i]), (d, 1 - s[i + 1] / s[i] - c * (1 - b)), (d1, -c * b), (d2, c))),
            ]

        return single_step_plan(grid, ops_of)
