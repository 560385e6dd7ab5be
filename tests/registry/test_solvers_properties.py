"""What holds for every solver on random grids."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from fewstep.analytic import Counting, Gaussian
from fewstep.grid import TimeGrid
from fewstep.noise import LATENT, PhiloxNoise
from fewstep.plugins import entries
from fewstep.sampling.plan import with_afs
from fewstep.sampling.runner import run
from methods.solver import draft


@st.composite
def grids(draw):
    """Strictly decreasing levels with gaps of at least 2% and a random end."""
    gaps = draw(st.lists(st.floats(0.02, 2.5), min_size=1, max_size=6))
    top = draw(st.floats(0.5, 80.0))
    values = top * np.exp(-np.cumsum([0.0, *gaps]))
    return TimeGrid(np.append(values, 0.0) if draw(st.booleans()) else values)


PER_SOLVER = settings(max_examples=8)  # of each, over some fifty solvers


@pytest.mark.parametrize("name", list(entries("solver")))
@PER_SOLVER
@given(grid=grids(), afs=st.booleans())
def test_evaluations_are_counted_not_computed(name, grid, afs):
    plan = draft(entries("solver")[name].make()).plan(grid)
    if afs and grid.steps > 1 and plan.evals[0].x == plan.states[0]:  # AFS is refused elsewhere (a churned first level)
        plan = with_afs(plan)
    counting = Counting(Gaussian(torch.zeros(2), torch.ones(2), (2,)))
    seeds = torch.arange(3)
    out = run(plan, counting, torch.ones(3, 2, dtype=torch.float64), PhiloxNoise(seeds))
    assert counting.calls == len(plan.evals) == plan.nfe(counting)
    assert torch.isfinite(out[plan.states[-1]]).all()


@pytest.mark.parametrize("name", list(entries("solver")))
@PER_SOLVER
@given(grid=grids(), cut=st.integers(1, 8))
def test_splitting_a_batch_does_not_change_its_samples(name, grid, cut):
    plan = draft(entries("solver")[name].make()).plan(grid)
    model = Gaussian(torch.tensor([0.3, -0.2]), torch.tensor([0.5, 1.5]), (2,))

    def sample(seeds):
        noise = PhiloxNoise(seeds)
        return run(plan, model, grid.sigmas[0] * noise.normal(LATENT, (2,)).double(), noise)[plan.states[-1]]

    seeds = torch.arange(100, 109)
    assert_close(torch.cat([sample(seeds[:cut]), sample(seeds[cut:])]), sample(seeds), atol=1e-10, rtol=0)  # the stated bar
