"""Transport, moments, and what a solver declares of itself: defects of their sizes, in every run, and claims that can be read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from bench.certificate.certify import certify, defects, findings
from bench.certificate.checks.pins import DEFECTS, as_text, measured, pinned
from bench.certificate.checks.transport import transport, variance
from bench.certificate.closed import Basis, Student, gaussian, moments
from bench.certificate.finding import Departure
from bench.certificate.levels import GRIDS, build
from bench.certificate.report import as_json, markdown, table
from fewstep.grid import TimeGrid
from fewstep.noise import Slot
from fewstep.plugins import entries, get
from fewstep.sampling.plan import Combine, Plan
from methods.claims import UNEVEN, Claims, Defect
from methods.solver import draft
from support.claimed import Claimed, Shifted, claimed, failed
from support.each import each

SIZE = 1e-3 * 0.7 * (1 - 0.002 / 80) / 80  # the larger element of c is 0.7


def declaring(sizes: Sequence[float]) -> Shifted:
    return Shifted(claims=Claims(order=0, defects=tuple(Defect("transport", g, s, "why") for g, s in zip(GRIDS, sizes))))


def test_an_undeclared_defect_is_refused_with_its_size():
    wrong = failed(list(transport(Shifted())))
    assert [f.grid for f in wrong] == list(GRIDS)
    assert all(f"size is {SIZE:.6g}" in f.note for f in wrong)


def test_a_declared_defect_must_have_its_size():
    assert not failed(list(transport(declaring([SIZE] * 4))))
    assert not failed(list(transport(declaring([SIZE * 1.009] * 4))))
    assert len(failed(list(transport(declaring([SIZE * 1.011] * 4))))) == 4
    assert [f.grid for f in failed(list(transport(declaring([SIZE] * 3))))] == [GRIDS[3]]


def test_what_is_not_pinned_is_bounded_by_ten_times_the_declared_size():
    """One step is off by `by` alone; six steps, where the size is declared, by 1e-3."""

    @dataclass(frozen=True)
    class Short(Claimed):
        by: float = 1e-3

        def plan(self, grid: TimeGrid) -> Plan:
            return Shifted(self.by if grid.steps == 1 else 1e-3).plan(grid)

    for by, ok in ((9.9e-3, True), (10.2e-3, False)):  # one step to 0 departs by all of `by`, six to 0.002 by 1 - 0.002 / 80 of it
        found = list(transport(Short(Shifted(), declaring([SIZE] * 4).claims, by=by)))
        assert {f.ok for f in found if f.grid in GRIDS} == {True}
        assert {f.ok for f in found if f.grid not in GRIDS} == {ok}
        assert all(f.note.startswith("not pinned: runs other than the declared one") for f in found if f.grid not in GRIDS)


DECLARING = [name for name in entries("solver") if draft(get("solver", name).make()).claims.defects]


@pytest.mark.parametrize("name", DECLARING)
@each("where", [lambda grid: grid.sigmas[-1] == 0, lambda grid: grid.steps <= 3])
def test_a_defect_hides_no_other_in_any_run(name, where):
    """A weight of the last sum is half as large again, where nothing but the recorded runs tells."""
    made = draft(get("solver", name).make())

    class Spoilt(Claimed):
        def plan(self, grid: TimeGrid) -> Plan:
            plan = self.base.plan(grid)
            if not where(grid):
                return plan
            *ops, last = plan.ops
            k = next(k for k, (_, c) in enumerate(last.terms) if np.any(c))
            return Plan(
                (*ops, replace(last, terms=tuple((r, 1.5 * c if i == k else c) for i, (r, c) in enumerate(last.terms)))), plan.states
            )

    spoilt = Spoilt(made, made.claims)
    found = list(findings(spoilt, name, lambda options, artefact: spoilt, ("transport", "variance")))
    assert {f"{d.grid}, every run" for d in made.claims.defects} <= {f.grid for f in failed(found)}
    assert all(f.ok for f in found if f.note == "a declared defect")  # six steps to 0.002 are what they were


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_is_a_departure(value):
    """Also where what makes it so makes the bound by rounding infinite."""
    assert Departure(value, float("inf"), 1.0).beyond()
    assert Departure(value, float("inf"), 1.0).beyond(1.0)
    assert not Departure(1.0, 1e-12, 1.0).beyond(1.0009)  # digits of the record
    assert Departure(1.0, 1e-12, 1.0).beyond(1.0011)


def test_recorded_runs_are_those_that_are_made():
    """A record of other runs is a fault, and so is a run without one."""
    made, known = get("solver", "deis_tab").make(), pinned("deis_tab")
    runs = known["transport"]["logsnr"]
    fewer = {end: {steps: of for steps, of in by.items() if (end, steps) != ("zero", "3")} for end, by in runs.items()}
    more = {**runs, "zero": {**runs["zero"], "9": [0.0]}}
    for wrong, note in ((fewer, "3 steps, end zero: 8 departures, 0 recorded"), (more, "9 steps, end zero: recorded, and not made")):
        (fault,) = failed(list(transport(made, {"transport": {**known["transport"], "logsnr": wrong}})))
        assert (fault.grid, fault.found, fault.note) == ("logsnr, every run", "1 faults", note)


def test_every_declared_defect_has_its_record():
    recorded = json.loads(DEFECTS.read_text(encoding="utf-8"))
    assert list(recorded) == DECLARING
    for name in DECLARING:
        declared = {(d.check, d.grid) for d in draft(get("solver", name).make()).claims.defects}
        assert {(check, grid) for check, grids in recorded[name].items() for grid in grids} == declared
    runs = measured(get("solver", "ipndm_v_4").make())["transport"][UNEVEN]["sigma_min"]
    assert runs["3"] == [0] * 8  # two starts at four nodes: up to three steps are exact
    assert [size > 0 for size in runs["4"]] == [False] * 8 + [True, False]  # slopes, which ipndm_v sums, are 0 from x_0 = c
    assert as_text(recorded) == DEFECTS.read_text(encoding="utf-8")


def test_a_declared_defect_that_is_missing_is_refused():
    gone = claimed("euler", defects=(Defect("transport", "logsnr", 1e-3, "why"),))
    assert [f.grid for f in failed(list(transport(gone)))] == ["logsnr"]


@pytest.mark.parametrize(
    "wrong",
    [Defect("transprot", "logsnr", 1.0, "why"), Defect("order", "logsnr", 1.0, "why"), Defect("transport", "log", 1.0, "why")],
)
def test_a_defect_of_no_check_or_grid_is_refused(wrong):
    assert len(failed(list(defects(claimed("euler", defects=(wrong,)))))) == 1
    assert not failed(list(defects(claimed("euler", defects=(Defect("transport", "logsnr", 1.0, "why"),)))))


def test_a_defect_that_nothing_measures_is_refused():
    """Euler draws no noise: nothing looks at its variance."""
    wrong = claimed("euler", defects=(Defect("variance", "logsnr", 1.0, "why"),))
    found = list(findings(wrong, checks=("defects", "transport", "variance")))
    assert [f.found for f in failed(found)] == ["not measured"]


@dataclass(frozen=True)
class Loud:
    """DDPM with `by` more noise in every step: with constant D the last variance has (1 + by)^2 of it, worked out below."""

    by: float = 0.01
    claims: Claims = Claims(order=1)  # noqa: RUF009 (frozen)
    version: int = 1

    def plan(self, grid: TimeGrid) -> Plan:
        plan = get("solver", "ddpm").make().plan(grid)

        def louder(op):
            return replace(op, terms=tuple((r, c * (1 + self.by) if isinstance(r, Slot) else c) for r, c in op.terms))

        return Plan(tuple(louder(op) if isinstance(op, Combine) else op for op in plan.ops), plan.states)


def test_the_size_of_a_variance_defect_is_the_excess_at_the_end():
    """var' = (s'/s)^4 var + (1.01 s_up)^2 from var_0 = s_0^2; the excess over s_N^2, relative, on every grid."""
    for finding in variance(Loud()):
        s = build(finding.grid, 6).sigmas
        var = s[0] ** 2
        for a, b in pairwise(s):
            var = (b / a) ** 4 * var + 1.01**2 * (b / a) ** 2 * (a**2 - b**2)
        assert not finding.ok
        assert f"its size is {var / s[-1] ** 2 - 1:.6g}" in finding.note


def test_moments_of_an_affine_plan():
    """x' = 2 x + 3 z_1 - z_2 + 5 from mean 1 and variance 4: mean 7, variance 4 * 4 + 9 + 1."""
    basis = Basis([Slot(1), Slot(2)])
    rows = 2 * basis.start((1,)) + 3 * basis.normal(Slot(1), (1,)) - basis.normal(Slot(2), (1,)) + 5
    mean, var = moments(rows, torch.tensor([1.0], dtype=torch.float64), torch.tensor([4.0], dtype=torch.float64))
    assert_close(torch.cat([mean, var]), torch.tensor([7.0, 26.0], dtype=torch.float64))


def test_the_exact_student_is_refused_for_a_solver_that_spoils_its_marginals():
    spoilt = claimed("euler", order=None, evaluates="consistency")
    assert len(failed(list(variance(spoilt)))) == len(GRIDS)
    data = gaussian()
    x, student = torch.full((1, 4), 3.0, dtype=torch.float64), Student(data, 0.1, True)
    assert_close(student(x, 2.0), data.flow(x, 2.0, 0.1))
    assert_close(student.jump(x, 2.0, 0.5), data.flow(x, 2.0, 0.5))


class Silent:
    """A solver that claims nothing, and one whose claims are what a plugin's author may get wrong."""

    version = 1

    def plan(self, grid: TimeGrid) -> Plan:
        return get("solver", "euler").make().plan(grid)


class Raising(Silent):
    @property
    def claims(self) -> Claims:
        raise ValueError("no claims today\nnor tomorrow")


class Method(Silent):
    def claims(self) -> Claims:
        return Claims(order=1)


def claiming(claims: object) -> Silent:
    made = Silent()
    made.claims = claims  # type: ignore[attr-defined]
    return made


@each(
    ("solver", "line"),
    [
        (Silent(), "found AttributeError ('Silent' object has no attribute 'claims')"),
        (Raising(), "found ValueError (no claims today)"),
        (Method(), "found UsageError (claims must be a property, or a value, of type Claims; got method)"),
        (claiming(Claims(order="2")), "orders must be integers, or None for an exact student; got 2)"),  # type: ignore[arg-type]
        (claiming(Claims(order=1, evaluates="noise")), "evaluates must be one of denoiser, consistency, flow_map; got 'noise')"),
        (claiming(Claims(order=1, deviations="one")), 'deviations must be a tuple of sentences; of one, ("...",))'),  # type: ignore[arg-type]
        (claiming(Claims(order=1, defects=("one",))), "defects must be a tuple of Defect of finite sizes)"),  # type: ignore[arg-type]
        (claiming(Claims(order=1, defects=(Defect("transport", "logsnr", float("nan"), "why"),))), "Defect of finite sizes)"),
    ],
)
def test_claims_that_cannot_be_read_are_one_failure(solver, line):
    certificate = certify(solver, "plugin", "paper")
    (only,) = certificate.failures
    assert only.line.startswith("claims on all: expected a solver with claims, found ")
    assert only.line.endswith(line)
    assert not certificate.holds
    assert table([certificate]).splitlines()[-1].split() == ["plugin", "paper", *"-" * 9, "NO"]
    assert only.line in markdown([certificate])
    assert json.loads(as_json([certificate]))[0]["claims"] is None
