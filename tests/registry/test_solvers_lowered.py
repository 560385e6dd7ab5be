"""Every solver lowered for a network computes what its plan is defined to."""

import itertools

import pytest

from fewstep.grid import make_grid
from fewstep.plugins import entries, get
from methods.solver import Learned
from support.denoisers import DENOISERS, RANGE, assert_same
from support.each import each

SOLVERS = [name for name, entry in entries("solver").items() if not isinstance(entry.make(), Learned)]


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_as_defined(name):
    solver = get("solver", name).make()
    for steps, end in itertools.product((1, 2, 3, 6), ("zero", "sigma_min")):
        assert_same(solver.plan(make_grid("polynomial", steps, RANGE, end)), DENOISERS["edm"])


@each("denoiser", DENOISERS)
@each("name", ["euler", "heun", "dpmpp_2m", "dpm_3s", "unipc_bh2_3", "ipndm_4", "dpmpp_2m_sde", "edm_churn"])
def test_every_kind_of_denoiser_as_defined(name, denoiser):
    solver = get("solver", name).make()
    for steps in (1, 2, 5):
        assert_same(solver.plan(make_grid("polynomial", steps, RANGE)), DENOISERS[denoiser])
