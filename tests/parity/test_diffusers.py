"""The schedulers of diffusers: what the certificate compares with them, that it notices mistakes there, and what cannot be matched."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from bench.certificate.certify import variants
from bench.certificate.checks.scheduler_runs import Scheduler, given, ours, own
from bench.certificate.checks.schedulers import cases, with_wrong_sign
from bench.certificate.checks.schedulers import diffusers as compared
from bench.certificate.mutants import mutated_variants
from fewstep.grid import TimeGrid, make_grid
from fewstep.plugins import get
from fewstep.sampling.plan import Combine, Plan

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: parity with its schedulers was not checked")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers, which gives tensors to numpy
COVERED = {
    *("euler", "heun", "dpm_2s", "dpmpp_2s"),
    *("dpm_1s", "dpm_2m", "dpm_3m", "dpmpp_1s", "dpmpp_2m", "dpmpp_3m"),
    *("ab_v_1", "ab_v_2", "ab_v_3", "ab_v_4"),
    *("unipc_bh1_1", "unipc_bh1_2", "unipc_bh1_3", "unipc_bh2_1", "unipc_bh2_2", "unipc_bh2_3"),
    *("ddim_eta", "ddpm", "ddpm_large", "dpmpp_1s_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"),
}


def test_what_is_compared():
    assert set(cases()) == COVERED


@pytest.mark.parametrize("name", sorted(COVERED))
def test_the_same_results(name):
    found = list(compared(name, variants(get("solver", name).make())))
    assert not [f.line for f in found if not f.ok]
    assert len(found) == sum(len(case.steps) for case in cases()[name])
    assert {f.check for f in found} == {"diffusers"}
    assert all(isinstance(f.found, float) and "Scheduler(" in f.note for f in found)  # compared, and said with what


def _off(plan: Plan, grid: TimeGrid) -> Plan:
    """The last state off by 1e-4 of every term: of a result of size 3, ten times the widest tolerance."""
    last = plan.states[-1]

    def grown(op: Combine) -> Combine:
        return replace(op, terms=tuple((ref, np.multiply(c, 1 + 1e-4)) for ref, c in op.terms))

    return Plan(tuple(grown(op) if isinstance(op, Combine) and op.out == last else op for op in plan.ops), plan.states)


@pytest.mark.parametrize("name", sorted(COVERED))
def test_a_mistake_is_noticed_in_every_comparison(name):
    found = list(compared(name, mutated_variants(get("solver", name).make(), _off)))
    assert found
    assert not [f.line for f in found if f.ok]


def test_the_wrong_sign_of_theirs_is_declared_and_needed():
    """Their order 3 on the SDE is neither ours nor equal to order 2; it differs from three predictions on, before the last step."""
    (case,) = cases()["dpmpp_3m_sde"]
    assert "wrong sign" in case.note
    driven = case.theirs.drive(10)
    grid = TimeGrid(driven.levels)
    plan = get("solver", "dpmpp_3m_sde").make().plan(grid)
    assert case.change is with_wrong_sign
    assert (driven.x - ours(plan, grid, driven.noise)).abs().max() > 1e-3
    short = get("solver", "dpmpp_3m_sde").make().plan(TimeGrid(grid.sigmas[-4:]))
    assert with_wrong_sign(short, TimeGrid(grid.sigmas[-4:])).ops == short.ops


def test_their_levels_in_edm_coordinates_are_our_grid():
    made = diffusers.EDMDPMSolverMultistepScheduler()
    assert_allclose(make_grid("polynomial", 10, (0.002, 80.0), "zero").sigmas, own(made, 10), rtol=1e-5)  # float32 powers of 7


def gap(name: str, scheduler: str, settings: Mapping[str, object], family: str, steps: int, passes: int = 1) -> float:
    """The largest difference, on noise predictions."""
    made = {"use_karras_sigmas": True, "prediction_type": "epsilon", **settings}
    driven = Scheduler(scheduler, made, "epsilon", given(family)).drive(steps * passes)
    grid = TimeGrid(driven.levels[::passes])
    return float((driven.x - ours(get("solver", name).make().plan(grid), grid)).abs().max())


def test_what_cannot_be_matched():
    """Third-order single-step takes its inner state by a multistep formula there, and DEIS is a polynomial in log sigma."""
    single = {"solver_order": 3, "algorithm_type": "dpmsolver", "lower_order_final": False, "final_sigmas_type": "sigma_min"}
    assert gap("dpm_3s", "DPMSolverSinglestepScheduler", single, "logsnr", 5, passes=3) > 1e-3
    assert gap("deis_2", "DEISMultistepScheduler", {"solver_order": 2}, "polynomial", 10) > 1e-3
    assert not {"dpm_3s", "deis_2", "deis_3", "deis"} & set(cases())
