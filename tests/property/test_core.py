"""Properties of schedules, grids and samplers over random inputs."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from torch.testing import assert_close

from fewstep.analytic import Gaussian
from fewstep.grid import make_grid
from fewstep.noise import PhiloxNoise, Slot
from fewstep.plugins import entries
from fewstep.sampling.plan import Combine, Eval, Plan
from fewstep.sampling.runner import run
from fewstep.schedule import EDM, VP, Cosine, RectifiedFlow, TrigFlow

FAMILIES = entries("grid")

SCHEDULES = [EDM(), VP(), VP.fitted(0.002, 80.0), Cosine(), RectifiedFlow(), TrigFlow(0.5)]
levels = st.floats(min_value=1e-3, max_value=150.0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@given(sigma=levels)
def test_schedules_invert(schedule, sigma):
    t = schedule.t(sigma)
    assert_allclose(schedule.sigma(t), sigma, rtol=1e-10)  # the contract of NoiseSchedule.t
    alpha, sigma_t = schedule.alpha_sigma(t)
    assert_allclose(sigma_t / alpha, sigma, rtol=1e-10)  # both views of the process name the same level


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@given(t=st.floats(min_value=1e-3, max_value=0.999))
def test_schedules_invert_in_time(schedule, t):
    assert_allclose(schedule.t(schedule.sigma(t)), t, rtol=1e-10)  # the contract of NoiseSchedule.t


@given(lo=st.floats(1e-3, 0.02), hi=st.floats(1.0, 150.0), family=st.sampled_from(sorted(FAMILIES)), steps=st.integers(1, 64))
def test_builders_decrease_over_any_range(lo, hi, family, steps):
    assume(family != "lcm" or steps <= 50)
    grid = make_grid(family, steps, (lo, hi))
    assert grid.sigmas[0] == hi
    assert grid.sigmas[-1] == lo
    assert (np.diff(grid.sigmas) < 0).all()


@given(
    weights=st.lists(st.floats(-3, 3), min_size=1, max_size=6),
    sigma=st.floats(0.01, 80.0),
)
def test_a_combine_is_a_linear_combination(weights, sigma):
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    model = Gaussian(torch.tensor([0.5, 0.5]), torch.ones(2), (2,))
    terms = tuple(("d" if i % 2 else "x", w) for i, w in enumerate(weights))
    plan = Plan((Eval("d", "x", sigma), Combine("y", terms)), ("x", "y"))
    expected = sum(weights[::2]) * x + sum(weights[1::2]) * model(x, sigma)
    assert_close(run(plan, model, x)["y"], expected, atol=1e-12, rtol=1e-12)  # six float64 terms of size <= 6, summed in another order


@given(seed=st.integers(0, 2**62), step=st.integers(0, 2**20), role=st.integers(0, 255), count=st.integers(1, 9))
def test_a_sample_s_noise_depends_on_its_seed_and_slot_alone(seed, step, role, count):
    slot = Slot(step, role)
    alone = PhiloxNoise(torch.tensor([seed])).normal(slot, (count,))
    amid = PhiloxNoise(torch.tensor([3, seed, 5])).normal(slot, (count,))
    assert torch.equal(alone[0], amid[1])
    longer = PhiloxNoise(torch.tensor([seed])).normal(slot, (count + 4,))
    assert torch.equal(longer[:, :count], alone)  # an element's lane depends on its index, not on the shape
