"""UniPC: a multistep predictor in lambda = -log sigma, and a corrector that costs no further evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fewstep.elementary import log
from fewstep.errors import UsageError
from fewstep.grid import TimeGrid
from fewstep.plugins import register
from fewstep.sampling.plan import Combine, Eval, Op, Plan, prediction, state
from fewstep.schedule import Array
from methods.claims import Claims
from methods.solver import check_order, check_predicts
from methods.solvers.adams import lagrange
from methods.solvers.dpm_multistep import multistep_order

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
        check_predicts(self.predicts)
        if self.scale not in SCALES:
            raise UsageError(f"scale must be {' or '.join(SCALES)}, got '{self.scale}'")

    @property
    def claims(self) -> Claims:
        return Claims(order=self.order + 1)

    def plan(self, grid: TimeGrid) -> Plan:
        s, steps, asked = grid.sigmas, grid.steps, [state(0)]
        ops: list[Op] = [Eval(prediction(0), state(0), s[0])]
        for i in range(steps):
            order = 1 if grid.at_zero(i + 1) else multistep_order(i, steps, self.order, self.lower_order_final)
            corrected = not grid.at_zero(i + 1) and (i + 1 < steps or i + 1 < self.order)
            asked.append(f"xp[{i + 1}]" if corrected else state(i + 1))
            history = list(range(i, i - order, -1))
            ops.append(Combine(asked[-1], self._terms(s, i, history, asked)))
            if corrected or i + 1 < steps:
                ops.append(Eval(prediction(i + 1), asked[-1], s[i + 1]))
            if corrected:
                ops.append(Combine(state(i + 1), self._terms(s, i, [*history, i + 1], asked)))
        return Plan(tuple(ops), tuple(state(i) for i in range(steps + 1)))

    def _weights(self, s: Array, i: int, nodes: Sequence[int]) -> list[Array]:
        """The weights of the predictions at `nodes`, of which the first is i, in the update of step i."""
        x0 = self.predicts == "x0"
        if not s[i + 1].any():  # the limit of -expm1(-h), or of -sigma' expm1(h)
            return [np.ones_like(s[i]) if x0 else -s[i]]
        lam = -log(s)
        h = lam[i + 1] - lam[i]
        ratios = [(lam[j] - lam[i]) / h for j in nodes[1:]]
        return [-w * (1 if x0 else s[i + 1]) for w in unipc_weights(self.scale, -h if x0 else h, ratios)]

    def _terms(self, s: Array, i: int, nodes: Sequence[int], asked: Sequence[str]) -> tuple[tuple[str, Array], ...]:
        """The update of step i from the predictions at `nodes`: D[j] at the state in the slot asked[j].

        eps is written in these, as x + (sigma' - sigma) eps_i + the weights of eps_j - eps_i. In the corrector sigma' (eps_t - eps_i) is
        x - xp_i + D_i - D_t + what the predictor added of the other differences: of its own point, the rounding would count e^h times.
        """
        weights = self._weights(s, i, nodes)
        if self.predicts == "x0":
            return ((state(i), s[i + 1] / s[i]), *((prediction(j), w) for j, w in zip(nodes, weights)))
        x, own, d, one, ratio = state(i), asked[i], prediction(i), np.ones_like(s[i]), s[i + 1] / s[i]
        base = {x: ratio, d: 1 - ratio} if own == x else {x: one, own: ratio - 1, d: 1 - ratio}
        slopes = {j: {asked[j]: 1 / s[j], prediction(j): -1 / s[j]} for j in nodes if j <= i}
        apart = [_summed((one, slopes[j]), (-one, slopes[i])) for j in nodes[1:] if j <= i]
        if nodes[-1] > i:
            step = _summed((one, {x: one}), (-one, {own: one}), (one, {d: one, prediction(i + 1): -one}))
            added = zip(self._weights(s, i, nodes[:-1])[1:], apart)
            apart.append(_summed((1 / s[i + 1], step), *((w / s[i + 1], terms) for w, terms in added)))
        return tuple(_summed((one, base), *zip(weights[1:], apart)).items())


def _summed(*parts: tuple[Array, Mapping[str, Array]]) -> dict[str, Array]:
    """The terms of a weighted sum of sums."""
    total: dict[str, Array] = {}
    for weight, terms in parts:
        for slot, coef in terms.items():
            total[slot] = total.get(slot, 0) + weight * coef
    return total
