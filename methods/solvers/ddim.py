"""DDIM with fresh noise: the family between the probability flow (eta 0) and the ancestral sampler (eta 1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewstep.errors import UsageError
from fewstep.grid import TimeGrid
from fewstep.noise import Slot
from fewstep.plugins import register
from fewstep.sampling.plan import Combine, Eval, Op, Plan, Ref, prediction, state
from fewstep.schedule import Array
from methods.claims import Claims
from methods.solvers.euler import euler_terms


def ancestral_levels(sigma: Array, sigma_to: Array, eta: float = 1.0) -> tuple[Array, Array]:
    """(s_down, s_up): a step to sigma' is an Euler step to s_down and fresh noise s_up, s_down^2 + s_up^2 = sigma'^2.

    s_up = eta (sigma' / sigma) sqrt(sigma^2 - sigma'^2), s_down = sigma' sqrt(1 - eta^2 (1 - sigma'^2 / sigma^2)).
    """
    gone = (sigma - sigma_to) * (sigma + sigma_to) / sigma**2  # 1 - (sigma' / sigma)^2 without cancellation
    return sigma_to * np.sqrt(1 - eta**2 * gone), eta * sigma_to * np.sqrt(gone)


def renoised(terms: tuple[tuple[Ref, Array], ...], slot: Slot, level: Array) -> tuple[tuple[Ref, Array], ...]:
    """The terms and `level` times the noise of `slot`, which is drawn only if a sample wants any."""
    return (*terms, (slot, level)) if np.any(level > 0) else terms


@register("solver", "ddim_eta", "arXiv 2010.02502 (equations 12 and 16)")
@dataclass(frozen=True)
class DDIM:
    """DDIM with eta, one evaluation a step.

    x' = D + (s_down / sigma) (x - D) + s_up z with the levels of `ancestral_levels`; eta 0 is Euler, eta 1 DDPM's small variance. No noise
    where sigma' = 0. **Raises**: UsageError for eta outside [0, 1]. **Source**: arXiv 2010.02502 equations 12 and 16, in x = x0 + sigma n.
    """

    eta: float = 0.5
    version: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UsageError(f"eta must lie in [0, 1], got {self.eta}; 0 is deterministic, 1 is DDPM")

    @property
    def claims(self) -> Claims:
        return Claims(order=1)

    def plan(self, grid: TimeGrid) -> Plan:
        s, ops = grid.sigmas, list[Op]()
        for i in range(grid.steps):
            x, d = state(i), prediction(i)
            down, up = ancestral_levels(s[i], s[i + 1], self.eta)
            ops.append(Eval(d, x, s[i]))
            ops.append(Combine(state(i + 1), renoised(euler_terms(x, d, s[i], down), Slot(i + 1), up)))
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))
