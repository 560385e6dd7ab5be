"""The certificate itself: every registered solver has one, and it fails where it should."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

from bench.certificate.certify import certify, findings, variants
from bench.certificate.checks import schedulers
from bench.certificate.checks.counts import counts
from bench.certificate.checks.order import order, steps
from bench.certificate.checks.parity import NAMES, VECTORS, golden_records, vectors
from bench.certificate.checks.stochastic import mean_error
from bench.certificate.checks.transport import transport
from bench.certificate.closed import RATES, Forced, gaussian
from bench.certificate.finding import Certificate, Finding
from bench.certificate.history import exact_step
from bench.certificate.levels import GRIDS, PATTERN, build
from bench.certificate.reach import reach, weights
from bench.certificate.report import as_json, failures, markdown, table
from fewstep.errors import Unreachable
from fewstep.grid import TimeGrid
from fewstep.plugins import entries, get
from fewstep.sampling.plan import Combine, Eval, Plan, prediction, state
from fewstep.sampling.runner import run
from methods.claims import UNEVEN, Claims
from methods.solver import draft
from support.claimed import Shifted, claimed, failed
from support.each import each

SOLVERS = list(entries("solver"))
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers, which gives tensors to numpy


# Orders


@pytest.mark.parametrize(
    ("name", "order_", "found"), [("heun", 1, 2.0), ("heun", 3, 2.0), ("dpmpp_3m", 3, 2.0), ("dpmpp_3m_exact", 2, 3.0)]
)
def test_an_order_that_is_not_measured_is_refused(name, order_, found):
    """Claiming less than is measured is as wrong as claiming more."""
    wrong = list(order(claimed(name, order=order_, order_on={})))
    assert [f.grid for f in wrong] == list(GRIDS)
    assert not any(f.ok for f in wrong)
    assert all(abs(float(f.found) - found) < 0.2 for f in wrong)  # the certificate's own slack


def test_an_order_on_one_grid_is_held_against_that_grid_alone():
    assert [f.grid for f in failed(list(order(claimed("heun", order_on={UNEVEN: 1}))))] == [UNEVEN]


def test_weak_orders_are_refused_alike():
    assert len(failed(list(order(claimed("ddim_eta", order=2))))) == len(GRIDS)
    assert not failed(list(order(claimed("ddim_eta"))))


def test_a_denoiser_needs_an_order_and_an_exact_student_none():
    assert len(failed(list(order(claimed("euler", order=None))))) == len(GRIDS)
    assert not list(order(draft(get("solver", "consistency").make())))


@each(
    ("name", "reaches"),
    [
        # Orders by construction, start to end of nine steps (multistep rise 1, 2, 3 and fall 2, 1; plug-ins are chains of two sub-steps).
        ("euler", [1] * 9),
        ("heun", [2] * 9),
        ("dpmpp_3m", [1, 2, 3, 3, 3, 3, 3, 2, 1]),
        ("ipndm_4", [1, 2, 3, 4, 4, 4, 4, 4, 4]),
        ("amed_plugin", [1, 3, 4, 4, 4, 4, 4, 4, 4]),
        ("amed_plugin_dpm_2s", [2] * 9),
        ("amed_plugin_dpmpp_3m", [1, 3, 3, 3, 3, 3, 3, 3, 1]),
        ("ddim_eta", [1] * 9),
        ("dpmpp_2s_sde", [2] * 9),
    ],
)
def test_what_the_predictions_of_a_step_reach(name, reaches):
    grid = build("logsnr", 9)
    plan = draft(get("solver", name).make()).plan(grid)
    known = {} if plan.noises else weights(plan, grid)
    assert [reach(plan, i, known) for i in range(9)] == reaches


def test_the_history_of_a_step_is_exact_even_where_predictions_are_made_at_predicted_states():
    """UniPC's D[i] is evaluated at its predictor's state; the step from node 4 must see D of the exact one."""
    grid, data = build("logsnr", 9), gaussian()
    plan = get("solver", "unipc_bh2_3").make().plan(grid)
    x = data.mean + 80 * torch.ones(1, 4, dtype=torch.float64)
    kept = (prediction(2), prediction(4), state(4))
    part = exact_step(plan, grid, 4, data)
    assert {*kept} <= {op.outs[0] for op in part.ops if not isinstance(op, Combine | Eval)}
    slots = run(part, data, x, keep=kept)
    for node in (2, 4):
        sigma = float(grid.sigmas[node])
        assert_close(slots[prediction(node)], data(data.flow(x, 80.0, sigma), sigma))
    assert_close(slots[state(4)], data.flow(x, 80.0, float(grid.sigmas[4])))
    assert sum(isinstance(op, Eval) for op in part.ops) == 1  # the corrector's own prediction stays an evaluation of the step


@dataclass(frozen=True)
class LateStart:
    """DPM-Solver++(2M) whose second step weighs its predictions 1.2 to -0.2 whatever the levels: exact on constants, of order 1."""

    version: int = 1
    claims = Claims(order=2)

    def plan(self, grid: TimeGrid) -> Plan:
        plan = get("solver", "dpmpp_2m").make().plan(grid)
        ops = list(plan.ops)
        at = next((i for i, op in enumerate(ops) if isinstance(op, Combine) and op.out == state(2)), None)
        if at is not None and grid.steps > 2:
            (x, share), *rest = ops[at].terms
            ops[at] = Combine(state(2), ((x, share), (prediction(1), 1.2 * sum(c for _, c in rest)), (prediction(0), -0.2 * (1 - share))))
        return Plan(tuple(ops), plan.states)


def test_a_first_step_of_too_low_an_order_is_found():
    solver = LateStart()
    assert not failed(list(transport(solver)))
    assert not failed(list(order(solver)))  # the step in the middle is as good as ever
    assert {f.note.partition(",")[0] for f in failed(list(steps(solver)))} == {"step 2 of 9"}


def test_the_mean_of_the_ancestral_step_under_a_given_prediction():
    """From 2 to 1: a = 1/4 and k = 2, so x' = (1 - a) 2^-c is off from 2 / (2 + c) (1 - a 2^-c), whatever multiple of x is kept."""
    off = [0.75 * 2**-c - 2 / (2 + c) * (1 - 0.25 * 2**-c) for c in RATES.tolist()]
    plan = get("solver", "ddpm").make().plan(TimeGrid([2.0, 1.0, 0.5]))
    assert_allclose(mean_error(plan, TimeGrid([2.0, 1.0, 0.5]), 0)[0], np.linalg.norm(off), rtol=1e-12)  # roundings


def test_the_forced_flow_solves_its_equation():
    """dx / dsigma = (x - D) / sigma, by a central difference."""
    forced, x = Forced(), torch.tensor([[1.0, 2.0, -1.0, 0.5]], dtype=torch.float64)
    slope = (forced.flow(x, 2.0, 2.0 + 1e-4) - forced.flow(x, 2.0, 2.0 - 1e-4)) / 2e-4
    assert_close(slope, (x - forced(x, 2.0)) / 2.0, atol=1e-8, rtol=0)  # the difference errs by 1e-8 / 6 of a third derivative below 1
    assert_close(forced.flow(forced.flow(x, 2.0, 0.3), 0.3, 2.0), x)


# Counts and parity


def test_counts_record_where_afs_is_not_admitted():
    found = list(counts(get("solver", "edm_churn").make(s_max=100.0)))
    assert not failed(found)
    assert {f.found for f in found if "AFS" in f.grid} == {"not admitted"}
    assert all("initial state" in f.note for f in found if "AFS" in f.grid)
    assert {f.found for f in found if "AFS" not in f.grid} == {"as announced"}
    assert all(f.note == "19 step counts" for f in counts(get("solver", "euler").make()) if "AFS" in f.grid)  # never on one step


@dataclass(frozen=True)
class Picky:
    """Heun that cannot do five steps."""

    version: int = 1
    claims = Claims(order=2)

    def plan(self, grid: TimeGrid) -> Plan:
        if grid.steps == 5:
            raise Unreachable("no five steps")
        return get("solver", "heun").make().plan(grid)


def test_counts_leave_out_what_cannot_be_planned():
    assert {f.note for f in counts(Picky()) if "AFS" not in f.grid} == {"19 step counts"}


def test_every_published_output_belongs_to_a_registered_solver():
    named = {r["solver"] for r in json.loads(VECTORS.read_text(encoding="utf-8"))["vectors"]}
    assert named <= set(SOLVERS)
    assert {g.solver for g in NAMES.values()} <= set(SOLVERS)
    assert sum(map(len, golden_records().values())) == 144  # 18 samplers x 2 lengths x 2 grids x AFS on and off


def test_every_output_says_whose_it_is():
    """What no published code prints is said to be ours, in the finding too."""
    records = json.loads(VECTORS.read_text(encoding="utf-8"))["vectors"]
    ours = {r["solver"] for r in records if r["source"] == "fewstep (plain loop in tests/training/test_amed.py)"}
    assert ours == {"amed_plugin_ipndm_2"}
    published = {r["source"].partition(" ")[0] for r in records if r["solver"] not in ours}
    assert published == {"zju-pi/diff-sampler", "NVlabs/edm", "diffusers"}
    for name, source in (
        ("amed_plugin_ipndm_2", "fewstep (plain loop"),
        ("euler", "zju-pi/diff-sampler at 68d5ce4"),
        ("ddpm", "diffusers"),
    ):
        notes = [f.note for f in vectors(name, variants(get("solver", name).make()))]
        assert notes
        assert all(f"largest difference from the output of {source}" in note for note in notes)


def test_a_wrong_digit_is_seen():
    euler = get("solver", "euler").make()
    found = list(findings(Shifted(1e-9), "euler", lambda options, artefact: Shifted(1e-9), ("vectors", "golden")))
    assert len(found) == 10
    assert not any(f.ok for f in found)
    assert not failed(list(findings(euler, "euler", variants(euler), ("vectors", "golden"))))


def test_absent_diffusers_are_recorded_and_never_a_silent_pass(monkeypatch):
    monkeypatch.setattr(schedulers.importlib.util, "find_spec", lambda name: None)
    found = list(schedulers.diffusers("heun", variants(get("solver", "heun").make())))
    assert [(f.found, f.ok, f.note) for f in found] == [("not installed", True, "parity with diffusers was not checked")]
    assert "not installed" in table([Certificate("heun", "paper", Claims(order=2), tuple(found))])
    assert not list(schedulers.diffusers("gits", variants(get("solver", "gits").make())))  # nothing there to compare it with


# The whole


class Broken:
    """A solver whose plan raises."""

    version = 1
    claims = Claims(order=1)

    def plan(self, grid: TimeGrid) -> Plan:
        raise ZeroDivisionError("division by zero\nin two lines")


def test_a_plan_that_raises_is_a_failure_and_no_crash():
    certificate = certify(Broken(), "broken")
    assert not certificate.holds
    assert {f.found for f in certificate.failures} == {"ZeroDivisionError"}
    assert all("\n" not in f.line for f in certificate.failures)
    assert "FAILED" in table([certificate])


def test_nothing_found_is_no_certificate():
    assert not Certificate("x", "", Claims(order=1), ()).holds


def test_reports_show_what_failed_and_are_plain_json():
    bad = Certificate("bad", "a paper | with a bar", Claims(order=1), (Finding("order", "logsnr", 1.0, float("nan"), False, "why"),))
    good = Certificate(
        "good", "p", Claims(order=1, deviations=("it differs",)), (Finding("counts", "g", "as announced", "as announced", True),)
    )
    assert failures([bad, good]) == ["bad: order on logsnr: expected 1, found nan (why)"]
    records = json.loads(as_json([bad, good]))
    assert [r["holds"] for r in records] == [False, True]
    assert records[0]["findings"][0]["found"] == "nan"
    text = markdown([bad, good])
    assert "- bad: order on logsnr" in text
    assert "- good: it differs" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1  # a bar in a cell is no column


def test_only_solvers_with_a_counterpart_in_diffusers_say_that_it_is_absent(monkeypatch):
    monkeypatch.setattr(schedulers.importlib.util, "find_spec", lambda name: None)
    said = {}
    for name in ("heun", "gits"):
        solver = get("solver", name).make()
        found = findings(solver, name, checks=("vectors", "diffusers"))
        said[name] = table([Certificate(name, "paper", Claims(order=1), tuple(found))]).splitlines()[-1]
    assert ["not installed" in said[name] for name in ("heun", "gits")] == [True, False]


def test_the_uneven_grid_repeats_its_pattern_between_the_ends():
    grid = build(UNEVEN, 8)
    assert (grid.sigmas[0], grid.sigmas[-1]) == (80.0, 0.002)
    gaps = -np.diff(np.log(grid.sigmas))
    assert_allclose(gaps / gaps.mean(), [*PATTERN, *PATTERN])  # whose mean is 1
    assert [build(UNEVEN, n, end).sigmas.tolist() for n, end in ((1, "zero"), (1, "zero_last"), (1, "sigma_min"))] == [
        [80.0, 0.0],
        [80.0, 0.0],
        [80.0, 0.002],
    ]
    assert len(build(UNEVEN, 5, "zero").sigmas) == 6
