"""Samplers of students: the N-step stochastic sampler and CTM's gamma-sampling, as published."""

import numpy as np
import torch
from numpy.testing import assert_allclose

from fewstep.analytic import Gaussian
from fewstep.cond import NULL
from fewstep.grid import TimeGrid
from fewstep.noise import Slot
from fewstep.plugins import get
from fewstep.sampling.plan import Combine, Eval, prediction, state
from fewstep.sampling.runner import run
from fewstep.schedule import Cosine
from support.each import each
from support.leaves import Leaves

RANGE = (0.002, 80.0)


def plan(name, grid, **options):
    return get("solver", name).make(**options).plan(grid)


def _cosine_grid(steps):
    """Native times 1, 1 - 1/N, ..., 0 of the clipped cosine schedule, whose last level is e^-10."""
    return TimeGrid(Cosine().sigma(np.linspace(1, 0, steps + 1)))


QUARTER = Gaussian(torch.zeros(1, dtype=torch.float64), torch.tensor([0.5]), (1,))


class Distilled:
    """A denoiser whose Euler step from any level of a grid to the level it is asked to reach is the exact flow of N(0, 1/4)."""

    shape, classes, sigma_range = (1,), 0, RANGE

    def __init__(self, grid):
        levels = grid.sigmas.tolist()
        self.below = {s: levels[min(i + 2, grid.steps)] for i, s in enumerate(levels)}

    def cost(self, sigma):
        return 1

    def __call__(self, x, sigma, cond=NULL):
        to = self.below[sigma]
        return (QUARTER.flow(x, sigma, to) - to / sigma * x) / (1 - to / sigma)


def _variance(model, grid, slot):
    """Of a slot of the stochastic N-step sampler from z_1 ~ N(0, 1), whose x = z / alpha_1 has variance 1 / alpha_1^2 = 1 + sigma_1^2."""
    noise, x = Leaves(), torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    out = run(plan("nstep_stochastic", grid), model, x, noise, keep=[slot])[slot]
    start, *fresh = torch.autograd.grad(out.sum(), [x, *noise.drawn.values()])
    return float(start**2 * (1 + grid.sigmas[0] ** 2) + sum(g**2 for g in fresh))


@each(
    ("steps", "variance"),
    # Data N(0, 1/4), clipped cosine schedule: arXiv 2210.03142's sampler in closed form, printed with eight decimals.
    [(1, 1.29e-10), (2, 0.04000000), (4, 0.07546295), (8, 0.11168995), (16, 0.15917059)],
)
def test_two_steps_forward_one_step_back(steps, variance):
    """The published sampler returns the last prediction. The exact denoiser shows how long the jumps are, a student whose jumps are exact
    that the noise keeps the variance."""
    grid = _cosine_grid(steps)
    tolerance = {"rtol": 0.004, "atol": 0} if steps == 1 else {"rtol": 0, "atol": 5.1e-9}
    assert_allclose(_variance(QUARTER, grid, prediction(steps - 1)), variance, **tolerance)  # three printed digits, else eight decimals
    exact = 0.25 + grid.sigmas[-1] ** 2
    # N(0, 1) at the first level is too wide by (1 - 1/4) e^-20, relatively; an exact sampler hands that on
    assert_allclose(_variance(Distilled(grid), grid, state(steps)), exact, rtol=2e-9)


def test_the_noise_of_the_n_step_sampler_is_the_published_one():
    """sigma_{s|k}^2 = (1 - e^(lambda_s - lambda_k)) s_s^2 in z; in x = z / a_s it is sigma_s^2 - sigma_k^2."""
    grid = _cosine_grid(4)
    s, k = grid.sigmas[1], grid.sigmas[2]
    (gain,) = (c for op in plan("nstep_stochastic", grid).ops if isinstance(op, Combine) for ref, c in op.terms if ref == Slot(1))
    a2, logsnr_s, logsnr_k = 1 / (1 + s**2), -2 * np.log(s), -2 * np.log(k)
    assert_allclose(gain**2 * a2, (1 - np.exp(logsnr_s - logsnr_k)) * (1 - a2))


def test_gamma_sampling_jumps_below_the_next_level():
    evals = plan("ctm_gamma", TimeGrid([80.0, 5.0, 1.0, 0.2]), gamma=0.6).evals
    assert all(isinstance(e, Eval) and e.to is not None for e in evals)
    assert_allclose([float(e.to) for e in evals], [0.8 * 4.8 + 0.2, 0.8 * 0.8 + 0.2, 0.2])  # sqrt(1 - 0.36) (sigma - 0.2) + 0.2
    assert_allclose([float(e.to) for e in plan("ctm_gamma", TimeGrid([80.0, 5.0, 0.2]), gamma=1.0).evals], [0.2, 0.2])
