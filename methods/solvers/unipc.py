"""UniPC: a multistep predictor in lambda = -log sigma, and a corrector that costs no further evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fewstep.elementary import log
from fewstep.errors import UsageError
from fewstep.grid import TimeGrid
from fewstep.plan import Combine, Eval, Op, Plan, prediction, state
from fewstep.schedule import Array
from methods.registry import register
from methods.solver import Claims
from methods.solvers.adams import check_order, lagrange
from methods.solvers.dpmpp import multistep_order

FORMS = ("x0", "eps")
SCALES = ("bh1", "bh2")
GAUSS = np.polynomial.legendre.leggauss(32)


def unipc_weights(scale: str, hh: Array, ratios: Sequence[Array]) -> list[Array]:
    """Weights of M_0, M_-1, ... (and M_t last in the corrector) in W = expm1(hh) M_0 + B sum of rho_k (M_k - M_0) / r_k.

    ratios r_k = (lambda_k - lambda_0) / h, 1 for M_t; B = hh (bh1) or expm1(hh) (bh2). A single rho is 1/2; several solve a linear system
    that makes W the integral of hh e^((1 - v) hh) M(v) over v = 0..1 for the polynomial M through all values, whatever B. That integral is
    taken as such, by 32 Gauss points (to rounding for |hh| < 50): the published recurrence cancels at small steps.
    """
    first = np.expm1(hh)
    if len(ratios) == 1:
        shares = [0.5 * (hh if scale == "bh1" else first) / ratios[0]]
    else:
        points, weights = (values.reshape(-1, *[1] * np.ndim(hh)) for values in GAUSS)
        v = (1 + points) / 2
        kernel = weights / 2 * hh * np.exp((1 - v) * hh)
        shares = [np.sum(kernel * value, axis=0) for value in lagrange(v, [0 * hh, *ratios])[1:]] if ratios else []
    return [first - sum(shares), *shares]


@register("solver", "unipc_bh1_1", "arXiv 2302.04867 (UniPC-1, B1)", order=1, scale="bh1")
@register("solver", "unipc_bh1_2", "arXiv 2302.04867 (UniPC-2, B1)", order=2, scale="bh1")
@register("solver", "unipc_bh1_3", "arXiv 2302.04867 (UniPC-3, B1)", order=3, scale="bh1")
@register("solver", "unipc_bh2_1", "arXiv 2302.04867 (UniPC-1, B2)", order=1, scale="bh2")
@register("solver", "unipc_bh2_2", "arXiv 2302.04867 (UniPC-2, B2)", order=2, scale="bh2")
@register("solver", "unipc_bh2_3", "arXiv 2302.04867 (UniPC-3, B2)", order=3, scale="bh2")
@dataclass(frozen=True)
class UniPC:
    """Unified predictor (order p) and corrector (order p + 1), one evaluation a step.

    x0: x = (sigma' / sigma) x - W, hh = -h; eps: x = x - sigma' W, hh = h; W of `unipc_weights`. D is evaluated at the predicted state
    xp[i]; x[i] is the corrected one. The last step has no corrector, unless it still raises the order: then one evaluation more.
    A step to sigma' = 0 is of order 1. **Source**: arXiv 2302.04867, UniP and UniC (multistep); order rule of the released code.
    """

    order: int = 3
    scale: str = "bh2"
    predicts: str = "x0"
    lower_order_final: bool = True
    version: int = 1

    def __post_init__(self) -> None:
        check_order(self.order, 3)
        for name, value, known in (("scale", self.scale, SCALES), ("predicts", self.predicts, FORMS)):
            if value not in known:
                raise UsageError(f"{name} must be {' or '.join(known)}, got '{value}'")

    @property
    def claims(self) -> Claims:
        return Claims(order=self.order + 1)

    def plan(self, grid: TimeGrid) -> Plan:
        s, steps = grid.sigmas, grid.steps
        ops = self._evaluation(0, state(0), s[0])
        for i in range(steps):
            order = 1 if np.all(s[i + 1] == 0) else multistep_order(i, steps, self.order, self.lower_order_final)
            corrected = np.all(s[i + 1] > 0) and (i + 1 < steps or i + 1 < self.order)
            predicted = f"xp[{i + 1}]" if corrected else state(i + 1)
            history = list(range(i, i - order, -1))
            ops.append(Combine(predicted, self._terms(s, i, history)))
            if corrected:
                ops += self._evaluation(i + 1, predicted, s[i + 1])
                ops.append(Combine(state(i + 1), self._terms(s, i, [*history, i + 1])))
            elif i + 1 < steps:
                ops += self._evaluation(i + 1, predicted, s[i + 1])
        return Plan(tuple(ops), tuple(state(i) for i in range(steps + 1)))

    def _evaluation(self, i: int, x: str, sigma: Array) -> list[Op]:
        call = Eval(prediction(i), x, sigma)
        return [call] if self.predicts == "x0" else [call, Combine(f"eps[{i}]", ((x, 1 / sigma), (prediction(i), -1 / sigma)))]

    def _terms(self, s: Array, i: int, nodes: Sequence[int]) -> tuple[tuple[str, Array], ...]:
        """The update of step i from the predictions at `nodes`, of which the first is i."""
        x0, scaled = self.predicts == "x0", s[i + 1] / s[i]
        if np.all(s[i + 1] == 0):  # the limit of -expm1(-h), or of -sigma' expm1(h)
            weights = [np.ones_like(s[i]) if x0 else -s[i]]
        else:
            lam = -log(s)
            h = lam[i + 1] - lam[i]
            ratios = [(lam[j] - lam[i]) / h for j in nodes[1:]]
            weights = [-w * (1 if x0 else s[i + 1]) for w in unipc_weights(self.scale, -h if x0 else h, ratios)]
        slots = [prediction(j) if x0 else f"eps[{j}]" for j in nodes]
        return ((state(i), scaled if x0 else np.ones_like(scaled)), *zip(slots, weights))
