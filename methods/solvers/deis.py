"""DEIS: the slope as a polynomial in the time of a VP schedule, integrated against d sigma."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fewstep.grid import TimeGrid
from fewstep.plugins import register
from fewstep.sampling.plan import Plan
from fewstep.schedule import VP, Array
from methods.claims import UNEVEN, Claims, Defect
from methods.solver import check_order
from methods.solvers.adams import lagrange, slope_plan

TIME = VP.fitted(0.002, 80.0)  # the published choice, whatever the range of the grid
POINTS = 10_000
GAUSS = np.polynomial.legendre.leggauss(128)
RULE = "the 10000-point rule gives both ends a full weight, an error of about 1e-4 of a step"
# 6 steps from 80 to 0.002, x_0 = c + 80: the largest distance from c + sigma over 80.
TRANSPORT = {"polynomial": 4.09672e-6, "logsnr": 6.13868e-6, "time_uniform": 2.77444e-6, UNEVEN: 1.2593e-5}


def exact_weights(levels: Sequence[Array]) -> list[Array]:
    """Weights of d_0, d_-1, ... for levels = (sigma', sigma_0, sigma_-1, ...): the integrals of L_j(u(sigma)) d sigma.

    Gauss-Legendre in w = log sigma, where u(e^w) is analytic within pi / 2 of the real axis (its branch points are imaginary in sigma): 128
    points leave less than rounding even for one step from 80 to 0.002.
    """
    (top, bottom), (points, weights) = (np.log(levels[1]), np.log(levels[0])), GAUSS
    column = (-1, *[1] * np.ndim(top))
    half = (bottom - top) / 2
    sigma = np.exp((top + bottom) / 2 + half * points.reshape(column))
    basis = lagrange(TIME.t(sigma), [TIME.t(level) for level in levels[1:]])
    return [half * np.sum(weights.reshape(column) * sigma * value, axis=0) for value in basis]


def tabulated_weights(levels: Sequence[Array]) -> list[Array]:
    """The published rule for the same integrals, over u: 10000 even points with both ends, each of weight 1 / 10000."""
    to, *nodes = (TIME.t(level) for level in levels)
    u = np.linspace(nodes[0], to, POINTS)
    sigma = TIME.sigma(u)
    speed = 0.5 * (TIME.beta_d * u + TIME.beta_min) * (1 + sigma**2) / sigma  # d sigma / du
    return [np.sum(speed * value, axis=0) * (to - nodes[0]) / POINTS for value in lagrange(u, nodes)]


@register("solver", "deis_2", "arXiv 2204.13902 (tAB-DEIS, exact quadrature)", order=2)
@register("solver", "deis_3", "arXiv 2204.13902 (tAB-DEIS, exact quadrature)", order=3)
@register("solver", "deis", "arXiv 2204.13902 (tAB3-DEIS, exact quadrature)", order=4)
@register("solver", "deis_tab_2", "arXiv 2204.13902 (tAB-DEIS, released rule)", order=2, tabulated=True)
@register("solver", "deis_tab_3", "arXiv 2204.13902 (tAB-DEIS, released rule)", order=3, tabulated=True)
@register("solver", "deis_tab", "arXiv 2204.13902 (tAB3-DEIS, released rule)", order=4, tabulated=True)
@dataclass(frozen=True)
class DEIS:
    """Exponential integrator of Adams-Bashforth type in VP time, one evaluation a step.

    x' = x + sum of C_k d_k, C_k the integral of L_k(u) d sigma over the last `order` nodes u(sigma); the first step is Euler's in sigma.
    `tabulated` takes the released code's quadrature. **Source**: arXiv 2204.13902 (tAB-DEIS of polynomial degree order - 1).
    """

    order: int = 4
    tabulated: bool = False
    version: int = 1

    def __post_init__(self) -> None:
        check_order(self.order, 4)

    @property
    def claims(self) -> Claims:
        if not self.tabulated or self.order == 1:
            return Claims(order=self.order)
        sizes = TRANSPORT if self.order < 4 else {**TRANSPORT, "polynomial": 5.17684e-6}
        return Claims(order=self.order, defects=tuple(Defect("transport", grid, size, RULE) for grid, size in sizes.items()))

    def plan(self, grid: TimeGrid) -> Plan:
        s, weights = grid.sigmas, tabulated_weights if self.tabulated else exact_weights
        first = s[1] - s[0]
        return slope_plan(grid, lambda i: weights([s[j] for j in range(i + 1, max(i - self.order, -1), -1)]) if i else [first])
