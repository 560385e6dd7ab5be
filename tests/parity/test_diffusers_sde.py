"""Stochastic solvers against the schedulers of diffusers, on the same noise tensors.

Levels are read from the scheduler in float64. Noise is passed in where its `step` takes it, and drawn twice from one seed where it takes
a generator. The networks predict D itself or EDM's F, nothing is clipped, and all schedulers end at sigma = 0, where state and z agree.
"""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fewstep.analytic import GaussianMixture
from fewstep.denoiser import EDMPrecond
from fewstep.grid import TimeGrid
from fewstep.plan import Combine, Plan, prediction, run, state
from methods.registry import get

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: parity with its schedulers was not checked")
SHAPE = (5, 3, 2, 2)
STEPS = [1, 2, 3, 4, 10]


def model() -> GaussianMixture:
    g = torch.Generator().manual_seed(0)
    means = torch.randn(4, 3, 2, 2, generator=g, dtype=torch.float64)
    return GaussianMixture(means, torch.tensor([0.2, 0.4, 0.6, 0.8]), torch.log(torch.full((4,), 0.25)))


def start(sigma: float) -> torch.Tensor:
    return sigma * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def source() -> torch.Generator:
    return torch.Generator().manual_seed(2)


class Drawn:
    """The tensors that a scheduler draws from `source()`, one a step."""

    def __init__(self, steps: int):
        g = source()
        self.tensors = [torch.randn(SHAPE, generator=g, dtype=torch.float64) for _ in range(steps)]

    def normal(self, slot, shape):
        assert slot.role == 0
        return self.tensors[slot.step - 1]

    def labels(self, classes):
        raise AssertionError("no labels here")


def ours(plan: Plan, levels: np.ndarray) -> torch.Tensor:
    return run(plan, model(), start(levels[0]), Drawn(len(levels) - 1))[plan.states[-1]]


def _discrete(made, steps: int) -> np.ndarray:
    """Levels of a scheduler over abar (1 / (1 + sigma^2) here), which then computes in float64."""
    made.alphas_cumprod = made.alphas_cumprod.double()
    made.set_timesteps(steps)
    abar = made.alphas_cumprod[made.timesteps].numpy()
    return np.append(np.sqrt((1 - abar) / abar), 0.0)


SETTINGS = {"prediction_type": "sample", "clip_sample": False}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim(eta, steps):
    made = diffusers.DDIMScheduler(**SETTINGS)  # set_alpha_to_one: its last level is 0
    levels, noise = _discrete(made, steps), Drawn(steps)
    z = start(levels[0]) / (1 + levels[0] ** 2) ** 0.5
    for i, t in enumerate(made.timesteps):
        d = model()(z * (1 + levels[i] ** 2) ** 0.5, levels[i])
        z = made.step(d, t, z, eta=eta, variance_noise=noise.tensors[i]).prev_sample
    assert_close(z, ours(get("solver", "ddim_eta").make(eta=eta).plan(TimeGrid(levels)), levels), atol=1e-12, rtol=0)  # float64, size 3


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("name", "variance"), [("ddpm", "fixed_small"), ("ddpm_large", "fixed_large")])
def test_ddpm(name, variance, steps):
    made = diffusers.DDPMScheduler(variance_type=variance, **SETTINGS)
    levels, noise = _discrete(made, steps), source()
    z = start(levels[0]) / (1 + levels[0] ** 2) ** 0.5
    for i, t in enumerate(made.timesteps):
        d = model()(z * (1 + levels[i] ** 2) ** 0.5, levels[i])
        z = made.step(d, t, z, generator=noise).prev_sample
    assert_close(z, ours(get("solver", name).make().plan(TimeGrid(levels)), levels), atol=1e-12, rtol=0)  # float64 roundings, size 3


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("name", "order"), [("dpmpp_1s_sde", 1), ("dpmpp_2m_sde", 2)])
def test_dpmpp_sde_in_edm_coordinates(name, order, steps):
    made = diffusers.EDMDPMSolverMultistepScheduler(solver_order=order, algorithm_type="sde-dpmsolver++")
    made.set_timesteps(steps)
    made.sigmas = made.sigmas.double()
    made.is_scale_input_called = True  # the network here scales its own input
    levels, noise = made.sigmas.numpy(), source()
    x = start(levels[0])
    for i, t in enumerate(made.timesteps):
        c_skip, c_out, _, _ = (float(c) for c in EDMPrecond(0.5).coefficients(np.asarray(levels[i])))
        x = made.step((model()(x, float(levels[i])) - c_skip * x) / c_out, t, x, generator=noise).prev_sample
    assert_close(x, ours(get("solver", name).make().plan(TimeGrid(levels)), levels), atol=1e-11, rtol=0)  # F divides roundings by c_out


def _as_theirs(grid: TimeGrid) -> Plan:
    """dpmpp_3m_sde with their weight of D2 in its steps of order 3: (1 - e^-2h - 2h) / (2h)^2 - 1/2, where the solution of the SDE and
    k-diffusion have + 1/2 (the weight must vanish as h does). The difference is D2 once."""
    plan, lam, ops = get("solver", "dpmpp_3m_sde").make().plan(grid), -np.log(grid.sigmas[:-1]), []
    for op in plan.ops:
        if isinstance(op, Combine) and sum(str(ref).startswith("D[") for ref, _ in op.terms) == 3:
            i = plan.states.index(op.out) - 1
            h = lam[i + 1] - lam[i]
            r0, r1 = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h
            second = np.array([1 / r0, -1 / r0 - 1 / r1, 1 / r1]) / (r0 + r1)
            op = Combine(op.out, (*op.terms, *((prediction(i - k), -c) for k, c in enumerate(second))))
        ops.append(op)
    assert plan.states[0] == state(0)
    return Plan(tuple(ops), plan.states)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("order", "plan_of"),
    [(1, get("solver", "dpmpp_1s_sde").make().plan), (2, get("solver", "dpmpp_2m_sde").make().plan), (3, _as_theirs)],
    ids=["1", "2", "3"],
)
def test_dpmpp_sde_in_variance_preserving_coordinates(order, plan_of, steps):
    """Their state is z = x / sqrt(1 + sigma^2)."""
    settings = {"use_karras_sigmas": True, "prediction_type": "sample", "algorithm_type": "sde-dpmsolver++"}
    made = diffusers.DPMSolverMultistepScheduler(solver_order=order, **settings)
    made.set_timesteps(steps)
    made.sigmas = made.sigmas.double()
    levels, noise = made.sigmas.numpy(), Drawn(steps)
    z = start(levels[0]) / (1 + levels[0] ** 2) ** 0.5
    for i, t in enumerate(made.timesteps):
        d = model()(z * (1 + levels[i] ** 2) ** 0.5, float(levels[i]))
        z = made.step(d, t, z, variance_noise=noise.tensors[i]).prev_sample
    assert_close(z, ours(plan_of(TimeGrid(levels)), levels), atol=3e-6, rtol=0)  # a float32 state: ten roundings of 2e-7 at size 3
