"""Plans and the runner: validation, liveness, what is kept, the analytical first step, reachable NFE."""

import weakref

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

from fewstep.analytic import Counting, Gaussian
from fewstep.cond import NULL, Cond
from fewstep.denoiser import jump_of
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import TimeGrid, make_grid
from fewstep.guidance import guide
from fewstep.noise import PhiloxNoise, Slot
from fewstep.plugins import get
from fewstep.sampling.plan import Apply, Combine, Eval, Plan, afs_coefficient, prediction, state, with_afs
from fewstep.sampling.runner import run
from fewstep.wrappers import Mapped, clip
from methods.solver import steps_for_nfe
from support.each import each

RANGE = (0.002, 80.0)
X = torch.tensor([[1.0, -2.0], [0.5, 0.1]], dtype=torch.float64)


def model() -> Gaussian:
    return Gaussian(torch.tensor([0.2, -0.1]), torch.tensor([0.5, 1.5]), (2,))


@each(
    ("ops", "message"),
    [
        ((Eval("D", "y", 1.0),), "reads 'y' before it is written"),
        ((Combine("y", (("x", 1.0), ("D", 1.0))),), "reads 'D' before it is written"),
        ((Eval("D", "x", 1.0), Combine("D", (("x", 1.0),))), "writes 'D' twice"),
        ((Combine("x", (("x", 1.0),)),), "writes 'x' twice"),
        ((Apply(("a", "a"), lambda x: (x, x), ("x",)),), "writes 'a' twice"),
        ((Eval("D", "x", 1.0),), "never writes its states"),
    ],
)
def test_plans_that_cannot_run_are_refused(ops, message):
    with pytest.raises(UsageError, match=message):
        Plan(ops, ("x", "y"))


def test_ops_do_what_they_say():
    ops = (
        Eval("D", "x", 2.0),
        Combine("y", (("D", 3.0), ("x", -1.0), (Slot(1, 2), 0.5))),
        Apply(("lo", "hi"), lambda y, x: (torch.minimum(y, x), torch.maximum(y, x)), ("y", "x")),
    )
    noise = PhiloxNoise(torch.tensor([4, 9]))
    out = run(Plan(ops, ("x", "hi")), model(), X, noise, keep=("y", "lo"))
    y = 3 * model()(X, 2.0) - X + 0.5 * noise.normal(Slot(1, 2), (2,)).double()
    assert_close(out["y"], y)
    assert torch.equal(out["lo"], torch.minimum(out["y"], X))
    assert torch.equal(out["hi"], torch.maximum(out["y"], X))


class Exact(Gaussian):
    """The Gaussian with its flow as a flow map."""

    def jump(self, x, sigma, sigma_to, cond=NULL):
        return self.flow(x, sigma, sigma_to)


JUMP = Plan((Eval("y", "x", 2.0, to=0.5),), ("x", "y"))


def test_a_jump_is_the_flow_maps_own_also_when_it_is_counted():
    exact = Exact(model().mean, model().std, (2,))
    counting, cond = Counting(exact), Cond(torch.tensor([0, 0]))
    for denoiser in (exact, counting, Counting(counting)):
        assert_close(run(JUMP, denoiser, X, cond=cond)["y"], model().flow(X, 2.0, 0.5))
    assert (counting.calls, counting.samples) == (2, 4)
    assert counting.conds == [cond, cond]


def test_a_jump_of_a_plain_denoiser_is_an_euler_step_in_any_wrapper():
    for denoiser in (model(), Counting(model()), guide(model(), 3.0), Mapped(model(), clip), guide(Counting(model()), 2.0, ref=model())):
        assert jump_of(denoiser) is None
        assert_close(run(JUMP, denoiser, X)["y"], X / 4 + 3 * denoiser(X, 2.0) / 4)


def test_a_guided_or_mapped_flow_map_has_no_jump():
    exact = Exact(model().mean, model().std, (2,))
    for denoiser in (guide(exact, 2.0), guide(model(), 2.0, ref=exact), guide(Counting(exact), 2.0), Counting(guide(exact, 2.0))):
        with pytest.raises(UsageError, match="guidance mixes two D, and the jump of a flow map is none"):
            run(JUMP, denoiser, X)
    with pytest.raises(UsageError, match="shows no D to clip or threshold"):
        run(JUMP, Mapped(exact, clip), X)
    assert_close(guide(exact, 2.0)(X, 2.0), guide(model(), 2.0)(X, 2.0))  # asked for D it is a denoiser as any other


def test_levels_and_coefficients_may_differ_per_sample():
    levels = np.array([[80.0, 3.0], [1.0, 0.5], [0.1, 0.0]])
    plan = get("solver", "euler").make().plan(TimeGrid(levels))
    rows = [run(get("solver", "euler").make().plan(TimeGrid(levels[:, b])), model(), X[b : b + 1])["x[2]"] for b in range(2)]
    assert_close(run(plan, model(), X)["x[2]"], torch.cat(rows))


def test_keep_returns_the_trajectory_and_nothing_else():
    plan = get("solver", "heun").make().plan(make_grid("polynomial", 3, RANGE))
    assert list(run(plan, model(), X)) == ["x[3]"]
    kept = run(plan, model(), X, keep=plan.states)
    assert sorted(kept) == ["x[0]", "x[1]", "x[2]", "x[3]"]
    assert kept["x[0]"] is X
    shorter = get("solver", "heun").make().plan(TimeGrid(make_grid("polynomial", 3, RANGE).sigmas[:2]))
    assert_close(kept["x[1]"], run(shorter, model(), X)["x[1]"])


def test_keep_of_an_unknown_slot_is_refused():
    plan = get("solver", "euler").make().plan(TimeGrid([80.0, 1.0]))
    with pytest.raises(UsageError, match=r"unknown slots \['x\[9\]'\]"):
        run(plan, model(), X, keep=("x[9]",))


def test_a_plan_that_draws_noise_needs_some():
    plan = get("solver", "consistency").make().plan(TimeGrid([80.0, 1.0, 0.1]))
    assert plan.noises == (Slot(1),)
    with pytest.raises(UsageError, match="draws noise"):
        run(plan, model(), X)


@pytest.mark.parametrize(("name", "held"), [("euler", 1), ("dpmpp_2m", 2), ("dpmpp_3m", 3)])
def test_predictions_are_freed_after_their_last_use(name, held):
    """Before each call, at most `held` - 1 earlier predictions are alive: what the solver's history needs and nothing more."""
    alive: list[weakref.ref] = []
    most = 0

    class Watched(Gaussian):
        def __call__(self, x, sigma, cond=None):
            nonlocal most
            most = max(most, sum(r() is not None for r in alive))
            out = super().__call__(x, sigma)
            alive.append(weakref.ref(out))
            return out

    base = model()
    run(get("solver", name).make().plan(make_grid("logsnr", 8, RANGE)), Watched(base.mean, base.std, (2,)), X)
    assert len(alive) == 8
    assert most == held - 1


def test_afs_coefficient():
    sigma = np.array([0.0, 0.5, 1.0, 80.0])
    assert_allclose(afs_coefficient(sigma), 1 - sigma / np.sqrt(1 + sigma**2), rtol=1e-11)  # the right side cancels to 7.8e-5 at 80
    # Series at large sigma, where the plain formula has no digits left: 1 - 1 / sqrt(1 + u) = u / 2 - 3 u^2 / 8 + ..., u = sigma^-2.
    assert_allclose(afs_coefficient(1e6), 0.5e-12, rtol=1e-11)  # next term: 0.75e-12 relative


def test_afs_replaces_the_first_evaluation_by_its_formula():
    plan = get("solver", "heun").make().plan(TimeGrid([80.0, 10.0, 1.0]))
    free = with_afs(plan)
    assert [float(e.sigma) for e in free.evals] == [10.0, 10.0, 1.0]
    assert len(free.ops) == len(plan.ops)
    # D = x - sigma x / sqrt(1 + sigma^2), i.e. the exact denoiser of unit Gaussian data: on it, AFS changes only 1 / sqrt(1 + sigma^2).
    d = run(free, model(), X * 80, keep=(prediction(0),))[prediction(0)]
    assert_close(d, X * 80 * (1 - 80 / 6401**0.5), rtol=1e-10, atol=0)  # cancellation to 7.8e-5


def test_afs_needs_a_first_evaluation_at_the_initial_state():
    ops = (Combine("y", (("x", 1.0),)), Eval("D", "y", 1.0), Combine("z", (("D", 1.0),)))
    with pytest.raises(UsageError, match="first evaluation is at the initial state"):
        with_afs(Plan(ops, ("x", "y", "z")))


def test_slots_are_named_by_node():
    assert (state(3), prediction(0)) == ("x[3]", "D[0]")


def _reach(name, nfe, end="zero", scale=1.0, afs=False):
    def count(steps):
        plan = get("solver", name).make().plan(make_grid("polynomial", steps, RANGE, end))
        return (with_afs(plan) if afs else plan).nfe(guide(model(), scale))

    label = f"{name} ending at {'0' if end == 'zero' else end}"
    return steps_for_nfe(count, nfe, label)


@each(
    ("name", "nfe", "options", "steps"),
    [
        ("heun", 35, {}, 18),  # 2 N - 1
        ("heun", 10, {"end": "sigma_min"}, 5),  # 2 N
        ("heun", 10, {"end": "zero", "afs": True}, 6),  # 2 N - 2
        ("euler", 8, {"scale": 2.0}, 4),  # 2 passes an evaluation
        ("euler", 1, {"afs": True}, 2),
        ("dpm_2s", 1, {}, 1),
        ("dpmpp_3m", 50, {}, 50),
    ],
)
def test_steps_for_a_reachable_nfe(name, nfe, options, steps):
    assert _reach(name, nfe, **options) == steps


@each(
    ("name", "nfe", "options", "message"),
    [
        ("heun", 6, {}, "heun ending at 0 uses 2N-1 evaluations; 6 is not reachable; try 5 or 7"),
        ("heun", 5, {"end": "sigma_min"}, "heun ending at sigma_min uses 2N evaluations; 5 is not reachable; try 4 or 6"),
        ("heun", 4, {"scale": 2.0}, "heun ending at 0 uses 4N-2 evaluations; 4 is not reachable; try 2 or 6"),
        ("euler", 5, {"scale": 4.0}, "euler ending at 0 uses 2N evaluations; 5 is not reachable; try 4 or 6"),
        ("euler", 0, {}, "euler ending at 0 uses N evaluations; 0 is not reachable; try 1"),
        ("heun", 1, {"afs": True}, "heun ending at 0 uses 2N-2 evaluations; 1 is not reachable; try 2"),
    ],
)
def test_an_unreachable_nfe_says_what_is(name, nfe, options, message):
    with pytest.raises(Unreachable) as refusal:
        _reach(name, nfe, **options)
    assert str(refusal.value) == message


def test_counts_that_do_not_grow_evenly_are_listed():
    def count(steps):  # triangular: 1, 3, 6, 10 evaluations
        return steps * (steps + 1) // 2

    with pytest.raises(UsageError, match=r"uses 1, 3, 6, 10, \.\.\. evaluations; 7 is not reachable; try 6 or 10"):
        steps_for_nfe(count, 7, "this")


def test_the_largest_number_of_steps_that_a_solver_has_is_reached():
    def count(steps):
        if steps > 4:
            raise Unreachable("at most 4 steps")
        return steps

    assert steps_for_nfe(count, 4, "this") == 4
    with pytest.raises(Unreachable, match="at most 4 steps"):
        steps_for_nfe(count, 5, "this")
