"""The exact probability flow on a fine grid, by a method that is no contestant, with an estimate of its own error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewstep.analytic import Gaussian
from fewstep.cond import NULL, Cond
from fewstep.denoiser import Denoiser
from fewstep.grid import TimeGrid, make_grid
from fewstep.sampling.plan import Combine, Eval, Op, Plan, state
from fewstep.sampling.runner import end_of
from metrics.families.endpoint import rms

VERSION = 1


@dataclass(frozen=True, eq=False)
class Solution:
    """States at sigma_min [N, *shape], float64, and an estimate of their error: RMS over elements, data units."""

    images: Tensor
    error: float
    steps: int


def runge_kutta(grid: TimeGrid) -> Plan:
    """The classical fourth-order method in u = log sigma, where dx / du = x - D(x, e^u); four evaluations a step, order 4.

    With a = (u' - u) / 2: y = x + a (x - D_1), z = x + a (y - D_2), w = x + 2 a (z - D_3) and
    x' = x + a / 3 ((x - D_1) + 2 (y - D_2) + 2 (z - D_3) + (w - D_4)).
    """
    ops: list[Op] = []
    for i in range(grid.steps):
        here, there = grid.sigmas[i], grid.sigmas[i + 1]
        a, middle = np.log(there / here) / 2, np.sqrt(here * there)
        x, y, z, w = state(i), f"y[{i}]", f"z[{i}]", f"w[{i}]"
        d1, d2, d3, d4 = (f"D{k}[{i}]" for k in (1, 2, 3, 4))
        ops += [
            Eval(d1, x, here),
            Combine(y, ((x, 1 + a), (d1, -a))),
            Eval(d2, y, middle),
            Combine(z, ((x, 1.0), (y, a), (d2, -a))),
            Eval(d3, z, middle),
            Combine(w, ((x, 1.0), (z, 2 * a), (d3, -2 * a))),
            Eval(d4, w, there),
        ]
        third = a / 3
        slopes = ((d1, -third), (y, 2 * third), (d2, -2 * third), (z, 2 * third), (d3, -2 * third), (w, third), (d4, -third))
        ops.append(Combine(state(i + 1), ((x, 1 + third), *slopes)))
    return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))


def in_closed_form(denoiser: Denoiser) -> bool:
    """Whether the flow is known without solving it."""
    return isinstance(denoiser, Gaussian)


@torch.inference_mode()
def solve(denoiser: Denoiser, x: Tensor, cond: Cond = NULL, steps: int = 200) -> Solution:
    """The flow from x at sigma_max to sigma_min: closed form for a Gaussian, else `runge_kutta` on the logsnr grid with a float64 state.

    The estimate is the RMS difference between `steps` and 2 `steps` steps; the finer one is kept. Where the method shows its order the
    true error is a fifteenth of that.
    """
    lo, hi = denoiser.sigma_range
    x = x.double()
    if in_closed_form(denoiser):
        assert isinstance(denoiser, Gaussian)
        images = denoiser.flow(x, hi, lo)
        return Solution(images, float(np.finfo(np.float64).eps * rms(images.cpu().numpy())), 0)
    coarse, fine = (run_fine(denoiser, x, cond, n) for n in (steps, 2 * steps))
    return Solution(fine, rms((fine - coarse).cpu().numpy()), 2 * steps)


def run_fine(denoiser: Denoiser, x: Tensor, cond: Cond, steps: int) -> Tensor:
    """The state at sigma_min after `steps` Runge-Kutta steps on the logsnr grid."""
    plan = runge_kutta(make_grid("logsnr", steps, denoiser.sigma_range))
    return end_of(plan, denoiser, x, cond=cond)
