"""Solvers against the schedulers of diffusers, where the conventions can be matched.

The grid is read from the scheduler, whose levels are cast to float64 first. What remains is the state: some schedulers keep it in
float64 (agreement to 1e-12), others cast it to float32 in every step (agreement to a few float32 roundings of the final state, size 3).
"""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

from fewstep.analytic import GaussianMixture
from fewstep.denoiser import EDMPrecond
from fewstep.grid import TimeGrid, make_grid
from fewstep.plan import run
from methods.registry import get

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: parity with its schedulers was not checked")
DPMPP = [("dpmpp_1s", 1), ("dpmpp_2m", 2), ("dpmpp_3m", 3)]


def model() -> GaussianMixture:
    g = torch.Generator().manual_seed(0)
    means = torch.randn(4, 3, 2, 2, generator=g, dtype=torch.float64)
    return GaussianMixture(means, torch.tensor([0.2, 0.4, 0.6, 0.8]), torch.log(torch.full((4,), 0.25)))


def start(sigma: float) -> torch.Tensor:
    return sigma * torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def ours(name: str, levels: np.ndarray, **options) -> torch.Tensor:
    plan = get("solver", name).make(**options).plan(TimeGrid(levels))
    return run(plan, model(), start(levels[0]))[plan.states[-1]]


def _prepared(scheduler, steps: int) -> tuple[object, np.ndarray]:
    """The scheduler with float64 levels, and those levels."""
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()
    scheduler.is_scale_input_called = True  # the denoiser here scales its own input
    return scheduler, scheduler.sigmas.numpy()


def _drive(scheduler, output_of, x: torch.Tensor) -> torch.Tensor:
    """The scheduler's own loop; `output_of(x, sigma)` is what its network would have predicted at its state."""
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(output_of(x, float(scheduler.sigmas[i])), t, x).prev_sample
    return x


def _edm_output(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """F of a perfect EDM network: D = c_skip x + c_out F, at sigma_data 1/2."""
    c_skip, c_out, _, _ = (float(c) for c in EDMPrecond(0.5).coefficients(np.asarray(sigma)))
    return (model()(x, sigma) - c_skip * x) / c_out


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10])
@pytest.mark.parametrize(("name", "order"), DPMPP)
def test_dpmpp_in_edm_coordinates(name, order, steps):
    scheduler, levels = _prepared(diffusers.EDMDPMSolverMultistepScheduler(solver_order=order), steps)
    assert_allclose(make_grid("polynomial", steps, (0.002, 80.0), "zero").sigmas, levels, rtol=1e-5)  # their levels are float32 powers
    assert_close(_drive(scheduler, _edm_output, start(levels[0])), ours(name, levels), atol=1e-12, rtol=0)  # float64 roundings, size 3


def test_dpmpp_3m_on_long_runs_where_their_final_order_is_not_lowered():
    scheduler, levels = _prepared(diffusers.EDMDPMSolverMultistepScheduler(solver_order=3), 20)  # they lower below 15 steps only
    found = ours("dpmpp_3m", levels, lower_order_final=False)
    assert_close(_drive(scheduler, _edm_output, start(levels[0])), found, atol=1e-12, rtol=0)  # float64 roundings, size 3


@pytest.mark.parametrize("steps", [2, 3, 4, 10])
def test_heun(steps):
    scheduler, levels = _prepared(diffusers.HeunDiscreteScheduler(use_karras_sigmas=True), steps)
    levels = np.unique(levels)[::-1].copy()  # their list names every level but the first and last twice
    assert len(levels) == steps + 1
    out = _drive(scheduler, lambda x, sigma: (x - model()(x, sigma)) / sigma, start(levels[0]))
    assert_close(out, ours("heun", levels), atol=1e-11, rtol=0)  # the slope divides roundings of x by sigma = 0.03


@pytest.mark.parametrize("steps", [2, 3, 4, 10])
def test_euler_in_edm_coordinates(steps):
    scheduler, levels = _prepared(diffusers.EDMEulerScheduler(), steps)
    out = _drive(scheduler, _edm_output, start(levels[0]))
    assert_close(out, ours("euler", levels), atol=3e-6, rtol=0)  # a float32 state: ten roundings of 2e-7 at size 3


@pytest.mark.parametrize("steps", [2, 3, 4, 10])
@pytest.mark.parametrize(("name", "order"), DPMPP)
def test_dpmpp_in_variance_preserving_coordinates(name, order, steps):
    """Their state is z = alpha x with alpha = 1 / sqrt(1 + sigma^2); ours is x. At sigma = 0 the two are the same."""
    made = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True, prediction_type="sample", solver_order=order)
    scheduler, levels = _prepared(made, steps)
    z = _drive(scheduler, lambda z, s: model()(z * (1 + s**2) ** 0.5, s), start(levels[0]) / (1 + levels[0] ** 2) ** 0.5)
    assert_close(z, ours(name, levels), atol=3e-6, rtol=0)  # a float32 state: ten roundings of 2e-7 at size 3


def _driven(scheduler, form: str, levels: np.ndarray) -> torch.Tensor:
    """x at the last level by a variance preserving scheduler on given levels; its network predicts `x0` or `eps`."""
    scheduler.set_timesteps(len(levels) - 1)
    scheduler.sigmas = torch.tensor(levels)

    def output(z: torch.Tensor, sigma: float) -> torch.Tensor:
        x = z * (1 + sigma**2) ** 0.5
        d = model()(x, sigma)
        return d if form == "x0" else (x - d) / sigma

    z = _drive(scheduler, output, start(levels[0]) / (1 + levels[0] ** 2) ** 0.5)
    return z * (1 + levels[-1] ** 2) ** 0.5


@pytest.mark.parametrize("steps", [3, 4, 10])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("scale", ["bh1", "bh2"])
@pytest.mark.parametrize("form", ["x0", "eps"])
def test_unipc(form, scale, order, steps):
    """From three steps on, below which their order is lowered sooner. Their bh1 gives NaN at sigma = 0, so the grid ends above it."""
    prediction_type = {"x0": "sample", "eps": "epsilon"}[form]
    made = diffusers.UniPCMultistepScheduler(
        use_karras_sigmas=True, prediction_type=prediction_type, solver_order=order, solver_type=scale, predict_x0=form == "x0"
    )
    levels = make_grid("polynomial", steps, (0.01, 80.0)).sigmas
    found = ours(f"unipc_{scale}_{order}", levels, predicts=form)
    assert_close(_driven(made, form, levels), found, atol=1e-11, rtol=0)  # slopes divide roundings of x = 80 by sigma = 0.01


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_that_ends_at_zero(order, steps):
    made = diffusers.UniPCMultistepScheduler(use_karras_sigmas=True, prediction_type="sample", solver_order=order, solver_type="bh2")
    levels = make_grid("polynomial", steps, (0.01, 80.0), "zero").sigmas
    assert_close(_driven(made, "x0", levels), ours(f"unipc_bh2_{order}", levels), atol=1e-12, rtol=0)  # float64 roundings, size 3


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(("name", "form", "kind"), [("dpmpp_2s", "x0", "dpmsolver++"), ("dpm_2s", "eps", "dpmsolver")])
def test_single_step_solvers(name, form, kind, steps):
    """Their inner level is a level of their own grid: the geometric midpoint where gaps of log sigma are equal."""
    made = diffusers.DPMSolverSinglestepScheduler(
        use_karras_sigmas=True,
        prediction_type={"x0": "sample", "eps": "epsilon"}[form],
        solver_order=2,
        algorithm_type=kind,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    levels = make_grid("logsnr", 2 * steps, (0.01, 80.0)).sigmas
    found = ours(name, levels[::2])
    assert_close(_driven(made, form, levels), found, atol=1e-10, rtol=0)  # slopes divide roundings of x = 80 by sigma = 0.01, twice


@pytest.mark.parametrize(("name", "order"), [("dpm_1s", 1), ("dpm_2m", 2), ("dpm_3m", 3)])
def test_noise_prediction_multistep(name, order):
    made = diffusers.DPMSolverMultistepScheduler(
        use_karras_sigmas=True,
        prediction_type="epsilon",
        solver_order=order,
        algorithm_type="dpmsolver",
        final_sigmas_type="sigma_min",
    )
    levels = make_grid("polynomial", 10, (0.01, 80.0)).sigmas
    assert_close(_driven(made, "eps", levels), ours(name, levels), atol=3e-6, rtol=0)  # a float32 state: ten roundings of 2e-7 at size 3


def test_what_cannot_be_matched():
    """Third-order single-step takes its inner state by a multistep formula there, and DEIS is a polynomial in log sigma."""
    single = diffusers.DPMSolverSinglestepScheduler(
        use_karras_sigmas=True,
        prediction_type="epsilon",
        solver_order=3,
        algorithm_type="dpmsolver",
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    levels = make_grid("logsnr", 15, (0.01, 80.0)).sigmas
    assert (_driven(single, "eps", levels) - ours("dpm_3s", levels[::3])).abs().max() > 1e-3
    deis = diffusers.DEISMultistepScheduler(use_karras_sigmas=True, prediction_type="epsilon", solver_order=2)
    levels = make_grid("polynomial", 10, (0.01, 80.0)).sigmas
    assert (_driven(deis, "eps", levels) - ours("deis_2", levels)).abs().max() > 1e-3
