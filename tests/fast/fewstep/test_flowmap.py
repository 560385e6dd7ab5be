"""Jumps of two-time students: identities, wrappers, lowering, and the samplers made of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fewstep.cond import NULL, Cond
from fewstep.denoiser import Around
from fewstep.errors import UsageError
from fewstep.flowmap import TO
from fewstep.grid import TimeGrid, make_grid
from fewstep.guidance import guide
from fewstep.noise import PhiloxNoise
from fewstep.plugins import get
from fewstep.sampling.lower import lower
from fewstep.sampling.plan import interpret
from fewstep.sampling.program import Ask
from fewstep.sampling.runner import run
from fewstep.wrappers import WithScalars
from methods.start import start_of
from support.each import each
from support.exactnet import V
from support.tiny import mixture_data, network
from support.twotime import FLOAT32, LABEL, LEVELS, PRECONDS, RANGE, X, exact, flow, taught


@each("precond", PRECONDS)
@each("dtype", [torch.float32, torch.float64])
@each("sigma", [0.002, 1.0, torch.tensor([0.002, 3.0, 80.0], dtype=torch.float64)])
@torch.no_grad()
def test_a_jump_to_the_same_level_is_the_identity_of_any_network(precond, dtype, sigma):
    x, student = X.to(dtype), taught(precond)
    assert torch.equal(student.jump(x, sigma, sigma, LABEL), x)  # the ratio is exactly 1
    assert not torch.allclose(student(x, sigma, LABEL), x)


@pytest.mark.parametrize("precond", PRECONDS)
@pytest.mark.parametrize("zero", [0.0, torch.zeros(3)])
@torch.no_grad()
def test_a_jump_to_zero_is_g_told_sigma_min(precond, zero):
    student = taught(precond)
    found = student.jump(X, 5.0, zero, LABEL)
    assert torch.equal(found, student.g(X, 5.0, 0.002, LABEL))  # the ratio is exactly 0
    assert not torch.allclose(found, student.g(X, 5.0, 0.5, LABEL), atol=1e-3)  # far above float32's rounding
    assert torch.equal(student(X, 5.0, LABEL), student.g(X, 5.0, 5.0, LABEL))


@torch.no_grad()
def test_levels_may_differ_per_sample():
    student = taught()
    x, sigma, to = X.double(), torch.tensor([80.0, 3.0, 0.5]), torch.tensor([5.0, 0.0, 0.4])
    found = student.jump(x, sigma, to, LABEL)
    for b in range(3):
        row, cond = slice(b, b + 1), LABEL[b : b + 1]
        for one in (float(sigma[b]), sigma[row]):
            assert_close(student.jump(x[row], one, float(to[b]), cond), found[row], **FLOAT32)
    with pytest.raises(UsageError, match="sigma 90 is outside of the model's range"):
        student.jump(x, 90.0, 1.0, LABEL)


@torch.no_grad()
def test_guidance_mixes_what_a_flow_map_is_as_a_denoiser_and_refuses_its_jump():
    student = taught()
    x, null = X.double(), Cond(torch.full((3,), 2))
    own, ref = student.g(x, 2.0, 2.0, LABEL), student.g(x, 2.0, 2.0, null)
    for sigma in (2.0, torch.full((3,), 2.0)):
        assert_close(guide(student, 3.0)(x, sigma, LABEL), ref + 3 * (own - ref), **FLOAT32)
    with pytest.raises(UsageError, match="the jump of a flow map is none; drop the guidance or use a solver that asks for D"):
        run(get("solver", "ctm_gamma_0").make().plan(TimeGrid([2.0, 1.0])), guide(student, 3.0), x, cond=LABEL)


@each("precond", PRECONDS)
@each("wrap", ["plain", "scalars", "scalars twice", "guided"])
@each("cond", [LABEL, NULL])
@torch.no_grad()
def test_a_program_unfolds_jumps_and_agrees_with_the_definition(precond, wrap, cond):
    student, x = taught(precond, (TO, "w", "steps")), 80 * X.double()
    student.base.net.double()  # in float32 the rounding of convolutions, which differs from one processor to another, hides the rest
    of = {
        "plain": student,
        "scalars": WithScalars(student, {"w": 1.5}),
        "scalars twice": WithScalars(WithScalars(student, {"w": 1.5}), {"steps": 3.0, "w": -1.0}),
        "guided": guide(WithScalars(student, {"w": 1.5}), 2.0),
    }[wrap]
    names = ("heun", "dpmpp_2m") if wrap == "guided" else ("ctm_gamma_0", "ctm_gamma", "ctm_gamma_1", "heun")
    for name in names:
        for end in ("sigma_min", "zero"):
            plan, noise = get("solver", name).make().plan(make_grid("polynomial", 3, RANGE, end)), PhiloxNoise(torch.arange(3))
            assert not any(isinstance(op, Ask) for op in lower(plan, of, torch.float64, cond).instructions)
            expected = interpret(plan, of, x, noise, cond, plan.states)
            # float64 through up to six passes; the states start at 80
            assert_close(run(plan, of, x, noise, cond, plan.states), expected, rtol=1e-9, atol=1e-9)
    if wrap == "scalars twice":  # the inner values are the last word, as in a call
        assert_close(of.wrapped_jump()(X, 2.0, 1.0, cond), student.jump(X, 2.0, 1.0, replace(cond, scalars=_scalars(w=1.5, steps=3.0))))


def _scalars(**values):
    return {name: torch.full((3,), value) for name, value in values.items()}


@torch.no_grad()
def test_a_program_unfolds_jumps_between_levels_of_each_sample():
    student, grid = taught(), TimeGrid(np.array([[80.0, 20.0, 9.0], [4.0, 3.0, 2.0], [0.5, 0.1, 0.002]]))
    plan = get("solver", "ctm_gamma_0").make().plan(grid)
    assert not any(isinstance(op, Ask) for op in lower(plan, student, torch.float32, LABEL).instructions)
    x = 20 * X
    expected = student.jump(student.jump(x, *map(torch.tensor, grid.sigmas[:2]), LABEL), *map(torch.tensor, grid.sigmas[1:]), LABEL)
    assert_close(run(plan, student, x, cond=LABEL)[plan.states[-1]], expected, rtol=1e-4, atol=1e-4)  # float32, two passes


def test_the_exact_student_has_two_different_functions_inside():
    """v = 1/4 at sigma 1, x = 1: D is 0.2, and the consistency function to 0 is 0.4472136."""
    x = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    student = exact(lowest=1e-8)  # g is told sigma_min for 0, which moves it by as much
    with torch.no_grad():
        d, f = student(x, 1.0), student.jump(x, 1.0, 0.0)
    assert_close(d, 0.2 * x, rtol=2e-6, atol=0)  # levels are told in float32
    assert_close(f, 0.4472136 * x, rtol=2e-6, atol=0)  # the same
    # With the levels as they are, to the rounding of a few products:
    known = exact(known=LEVELS)
    with torch.no_grad():
        assert_close(known(x, LEVELS[9]), x * V / (V + LEVELS[9] ** 2), rtol=1e-12, atol=0)  # of float64
        for a, b in ((0, 17), (3, 9), (9, 16)):
            whole = known.jump(x, LEVELS[a], LEVELS[17])
            twice = known.jump(known.jump(x, LEVELS[a], LEVELS[b]), LEVELS[b], LEVELS[17])
            assert_close(twice, whole, rtol=1e-12, atol=0)  # a handful of float64 products
            assert_close(whole, flow(x, LEVELS[a], LEVELS[17]), rtol=1e-12, atol=0)  # the same


@pytest.mark.parametrize("steps", [1, 2, 5])
@torch.no_grad()
def test_gamma_zero_is_the_chain_of_jumps_and_gamma_one_multistep_consistency_sampling(steps):
    student, noise = taught(), PhiloxNoise(torch.arange(3))
    grid = make_grid("polynomial", steps, RANGE)

    class ToTheEnd(Around):
        """The consistency function inside."""

        base = student

        def __call__(self, x, sigma, cond=NULL):
            return student.jump(x, sigma, RANGE[0], cond)

    x, ends = 80 * X.double(), {}
    for name, of in (("ctm_gamma_0", student), ("ctm_gamma_1", student), ("consistency", ToTheEnd())):
        plan = get("solver", name).make().plan(grid)
        ends[name] = run(plan, of, x, noise, LABEL)[plan.states[-1]]
    for sigma, to in zip(grid.sigmas, grid.sigmas[1:]):
        x = student.jump(x, float(sigma), float(to), LABEL)
    assert_close(ends["ctm_gamma_0"], x)
    assert_close(ends["ctm_gamma_1"], ends["consistency"])
    assert steps == 1 or not torch.allclose(ends["ctm_gamma_0"], ends["ctm_gamma_1"], atol=1e-3)  # far above rounding


@torch.no_grad()
def test_a_student_starts_as_its_teacher_and_its_jumps_as_euler_steps():
    teacher = network(mixture_data()[1])
    method = get("distiller", "ctm").make()
    student = method.student(method.build(teacher)["student"], teacher)
    for to in (3.0, 0.5, 0.0):
        assert torch.equal(student.g(X, 3.0, to, LABEL), teacher(X, 3.0, LABEL))
    plan = get("solver", "euler").make().plan(TimeGrid([3.0, 0.5]))
    assert_close(student.jump(X, 3.0, 0.5, LABEL), run(plan, teacher, X, cond=LABEL)[plan.states[-1]])


def test_a_flow_map_is_no_teacher():
    for teacher in (taught(), WithScalars(taught(), {"w": 1.0})):
        with pytest.raises(UsageError, match="cd: a two-time student is no teacher, its network reads where to go"):
            start_of(teacher, "cd")
