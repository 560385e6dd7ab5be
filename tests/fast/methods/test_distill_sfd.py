"""Trajectory distillation and the SFD family: on Gaussian data, where every trajectory is known, and on spies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.jobs.models import load_model
from bench.jobs.resolve import resolve
from bench.jobs.suite import Suite
from bench.settings.compose import group_config
from bench.store.cell import Cell
from bench.training.engine import Engine, Settings
from fewstep.cond import Cond
from fewstep.denoiser import Preconditioned
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import TimeGrid, make_grid
from fewstep.guidance import guide
from fewstep.noise import Rng
from fewstep.plugins import entries, get
from fewstep.sampling.plan import interpret, with_afs
from fewstep.sampling.runner import run
from methods.distill.sfd import adam, teach
from methods.losses.distances import distance
from methods.recipe import Recipe
from methods.solver import Learned
from methods.training import State
from support.each import each
from support.euler_students import (
    EXACT,
    Learner,
    afs_factor,
    factors,
    gains_of,
    grid_of,
    learner,
    losses_of,
    method_of,
    plan_of,
    step_gains,
)
from support.exactnet import EDM, ExactNet, at_nodes, gaussian_batch, linear_teacher, posterior
from support.tiny import made, mixture_data, network, sampled

SOLVERS = ("euler", "heun", "dpm_2s", "dpmpp_2m", "dpmpp_3m", "ipndm_4")
NAMES = ("sfd", "sfd_v", "sfd_one", "trajectory")


@pytest.mark.parametrize("name", NAMES)
@each("steps", [2, 3, 6])
def test_the_students_nodes_are_the_teachers(name: str, steps: int) -> None:
    """Every K-th node of the teacher's grid is one of the grid that the student is sampled on, which ends at the published 0.006."""
    method = method_of(name)
    own = method.sampling()
    sampled_on = make_grid(own.grid, steps, own.range_in((0.002, 80.0)), own.end).sigmas
    np.testing.assert_allclose(grid_of(method, steps).sigmas[:: method.substeps], sampled_on, rtol=1e-12, atol=0)  # float64 powers
    assert sampled_on[-1] == 0.006


def test_the_grid_is_the_published_one() -> None:
    np.testing.assert_allclose(grid_of(method_of("sfd"), 3).sigmas[::4], [80, 10.929297, 0.66988566, 0.006], rtol=1e-7)  # printed digits
    assert method_of("sfd").sampling().range_in((0.03, 14.6)) == (0.03, 14.6)  # a teacher whose own sigma_min is higher
    assert method_of("sfd", sigma_min=0.0).sampling().range_in((0.002, 80.0)) == (0.002, 80.0)


def test_every_solver_of_the_flow_has_one_state_per_node() -> None:
    """What slicing a teacher's run relies on."""
    grid = make_grid("polynomial", 6, (0.006, 80.0))
    made_ = {name: entry.make() for name, entry in entries("solver").items()}
    plans = {name: s.plan(grid) for name, s in made_.items() if not isinstance(s, Learned)}
    counts = {name: len(plan.states) for name, plan in plans.items() if not plan.noises}
    assert {"euler", "heun", "dpm_2s", "dpmpp_3m"} <= counts.keys()
    assert set(counts.values()) == {7}


@pytest.mark.parametrize("name", SOLVERS)
def test_the_teachers_targets_are_slices_of_one_run(name: str) -> None:
    """Every fourth state of one run, whose history crosses the student's nodes; a restart at each is another trajectory."""
    teacher, grid = linear_teacher(), make_grid("polynomial", 12, (0.006, 80.0))
    x = 80 * torch.randn(8, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plan = plan_of(name, grid)
    whole = interpret(plan, teacher, x, keep=plan.states)
    found = teach(plan, teacher, x, Cond(), 4)
    assert len(found) == 4
    for i, state in enumerate(found):
        torch.testing.assert_close(state, whole[f"x[{4 * i}]"], rtol=1e-9, atol=1e-9)  # float64, in another order of sums
        assert not state.requires_grad
    part = plan_of(name, TimeGrid(grid.sigmas[4:9]))
    restarted = run(part, teacher, found[1])[part.states[-1]]
    same = torch.allclose(restarted, found[2], rtol=1e-6)  # the same float64 products, or another order of the method
    assert same == (name in ("euler", "heun", "dpm_2s"))  # those without a history


@pytest.mark.parametrize("solver", SOLVERS)
@each("afs", [False, True])
@each("loss", ["l1", "l2", "pseudo_huber"])
def test_the_sfd_loss_vanishes_on_the_exact_student(solver: str, afs: bool, loss: str) -> None:
    """One loss per interval that has a network call, each 0 for the student whose steps end on the teacher's states."""
    method = method_of("sfd", teacher_solver=solver, afs=afs, loss=loss)
    teacher, grid = linear_teacher(), grid_of(method, 3)
    levels, targets = grid.sigmas[::4], factors(plan_of(solver, grid), teacher, 4)
    gains = gains_of(levels, targets, afs)
    exact = losses_of(method, ExactNet(at_nodes(levels[:-1], gains), EDM))
    assert len(exact) == 3 - afs
    near = EXACT**2 if loss == "l2" else EXACT
    assert max(found.value.item() for found in exact) < near
    wrong = losses_of(method, ExactNet(posterior, EDM))  # the teacher's own D: off by the error of its Euler steps
    assert min(found.value.item() for found in wrong) > 10 * near


@pytest.mark.parametrize("solver", SOLVERS)
@each("afs", [False, True])
def test_the_vanilla_loss_vanishes_on_the_exact_student(solver: str, afs: bool) -> None:
    """Each step from noised data: exact are other gains than SFD's, as a multistep teacher starts anew and AFS leaves no error to undo."""
    method = method_of("trajectory", teacher_solver=solver, afs=afs)
    teacher, grid = linear_teacher(), grid_of(method, 3)
    levels, sfd = grid.sigmas[::4], factors(plan_of(solver, grid), teacher, 4)
    moves = np.array([factors(plan_of(solver, TimeGrid(grid.sigmas[4 * i : 4 * i + 5])), teacher)[-1] for i in range(3)])
    net = Learner(levels[:-1], step_gains(levels, moves))
    (exact,) = losses_of(method, net, count=256)
    assert exact.value.item() < EXACT
    assert {n for n, _ in net.asked} == set(range(int(afs), 3))
    for n in range(int(afs), 3):
        # Noised data has variance V + sigma^2; of the 16 x 85 numbers at a node, or more, 6 standard errors of theirs are 0.25.
        torch.testing.assert_close(net.states_at(n).var().item() / (0.25 + levels[n] ** 2), 1.0, rtol=0.25, atol=0)
    (wrong,) = losses_of(method, ExactNet(posterior, EDM))
    assert wrong.value.item() > 10 * EXACT
    if afs or solver not in ("euler", "heun", "dpm_2s"):
        (other,) = losses_of(method, ExactNet(at_nodes(levels[:-1], gains_of(levels, sfd, afs)), EDM))
        assert other.value.item() > 5 * EXACT


@pytest.mark.parametrize("afs", [False, True])
def test_the_student_goes_on_from_its_own_state(afs: bool) -> None:
    """An error in one interval moves the start of the next, and the target stays: its loss is the distance from there."""
    method = method_of("sfd", steps=4, afs=afs)
    first = int(afs)
    net, levels, targets = learner(method, 4)
    right = losses_of(method, net)
    x0 = net.states_at(first) / (afs_factor(levels) if afs else 1.0)
    assert right[0].value.item() < EXACT
    wrong, _, _ = learner(method, 4)
    with torch.no_grad():
        wrong.gains[first] += 0.1
    off = losses_of(method, wrong)
    ratio = levels[1:] / levels[:-1]
    own = wrong.states_at(first + 1)
    error = (1 - ratio[first]) * 0.1 * wrong.states_at(first)  # Euler's step with D off by 0.1 x
    torch.testing.assert_close(own, net.states_at(first + 1) + error)
    move = ratio[first + 1] + (1 - ratio[first + 1]) * wrong.gains[first + 1].item()
    for k, state in ((0, own), (1, own * move)):
        expected = distance("l1")(state, targets[first + 1 + k] * x0).mean().item()
        np.testing.assert_allclose(off[k].value.item(), expected, rtol=1e-4)  # the teacher's ExactNet, 1e-6 x of which is off
        assert off[k].value.item() > 100 * EXACT


def test_states_are_detached_and_computed_before_the_step_on_their_loss() -> None:
    """Each loss reaches the network at its own node only, and a step after it does not move the state that the next starts from."""
    method = method_of("sfd", steps=4)
    net, _, _ = learner(method, 4)
    still, _, _ = learner(method, 4)
    losses_of(method, still)
    nets, batch = {"student": net}, gaussian_batch(64)
    for k, loss in enumerate(method.losses(State(linear_teacher(), nets, {}, method.phases()[0]), batch, Rng((7,)))):
        net.gains.grad = None
        loss.value.backward()
        assert net.gains.grad is not None
        assert net.gains.grad.nonzero().flatten().tolist() == [1 + k]
        assert torch.equal(net.states_at(1 + k), still.states_at(1 + k))
        with torch.no_grad():
            net.gains[: 2 + k] += 1.0  # what an optimiser does, much exaggerated: only nodes that were passed


def test_the_analytical_first_step_is_free() -> None:
    """The student is never called at sigma_max; its first state is that of the plan it is sampled with."""
    for name, node in (("sfd", 1), ("sfd_v", 1)):
        method = method_of(name)
        steps = 3 if name == "sfd" else 2
        net, levels, _ = learner(method, steps)
        losses_of(method, net)
        assert {n for n, _ in net.asked} == set(range(node, steps))
        plan = with_afs(plan_of("euler", TimeGrid(levels)))
        x = 80 * torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        moved = run(plan, linear_teacher(), x, keep=plan.states)[plan.states[1]]
        torch.testing.assert_close(moved, afs_factor(levels) * x, rtol=1e-12, atol=0)  # float64
        assert abs(net.states_at(1).std().item() / (80 * afs_factor(levels)) - 1) < 0.1  # 1024 normals: 4 standard errors
    method = method_of("trajectory")
    net, _, _ = learner(method, 3)
    losses_of(method, net)
    assert {n for n, _ in net.asked} == {1, 2}


def test_sfd_reads_no_data_but_labels() -> None:
    """Other images give the same losses; vanilla distillation starts from them."""
    for name, same in (("sfd", True), ("sfd_v", True), ("sfd_one", True), ("trajectory", False)):
        method, batch = method_of(name), gaussian_batch(64)
        state = State(linear_teacher(), {"student": ExactNet(posterior, EDM)}, {}, method.phases()[0])
        a, b = (list(method.losses(state, of, Rng((7,)))) for of in (batch, replace(batch, x0=-3 * batch.x0)))
        assert all(torch.equal(p.value, q.value) for p, q in zip(a, b, strict=True)) == same


def test_one_student_is_told_its_number_of_steps() -> None:
    """Batches take the numbers in turn; the network reads each as it does at sampling, and its losses vanish when it knows that grid."""
    method = method_of("sfd_v")
    told = []
    for batch in range(6):
        steps = 2 + batch % 5
        net, _, _ = learner(method, steps)
        found = losses_of(method, net, batch=batch)
        assert len(found) == steps - 1
        assert max(loss.value.item() for loss in found) < EXACT
        values = {float(v) for c in net.conds for v in c.scalars["steps"]}
        assert values == {float(steps)}
        told.append(values.pop())
    assert told == [2, 3, 4, 5, 6, 2]
    assert method.sampling().tells_steps
    assert not method_of("sfd").sampling().tells_steps
    assert "steps" not in get("distiller", "sfd_v").fields


def test_microbatches_of_a_variable_student_have_as_many_losses(tmp_path: Path) -> None:
    """The engine advances them in lockstep, and refuses iterators of unequal length."""
    _, data = mixture_data()
    method = made("sfd_v", batches=3, batch_size=8, fewest=2, most=4)
    log = Engine(method, network(data), data, tmp_path, Settings(recipe=Recipe(accumulate=2), progress=False)).run().log
    assert log[-1]["batch"] == 3


@pytest.mark.parametrize("name", NAMES)
@each("labelled", [True, False])
def test_labels_reach_teacher_and_student_alike(name: str, labelled: bool) -> None:
    """The batch's labels, and none for unconditional models."""
    batch = gaussian_batch(64)
    batch = batch if labelled else replace(batch, cond=Cond())
    method = method_of(name)
    grid = grid_of(method, 3)
    spies = {who: Learner(grid.sigmas[:-1], posterior(grid.sigmas[:-1])) for who in ("teacher", "student")}
    teacher = Preconditioned(spies["teacher"], EDM, (1, 4, 4), 2 if labelled else 0, (0.002, 80.0))
    list(method.losses(State(teacher, {"student": spies["student"]}, {}, method.phases()[0]), batch, Rng((7,))))
    for spy in spies.values():
        assert spy.conds
        for cond in spy.conds:
            if not labelled:
                assert cond.label is None
            else:
                assert cond.label is not None
                assert torch.equal(cond.label, torch.arange(64) % 2)


def test_a_guided_teacher_teaches_an_unguided_student() -> None:
    """Its trajectory is that of D_ref + 2 (D - D_ref); the student is one network, a copy of the unguided one, called once a step."""

    class Labelled(ExactNet):
        def forward(self, x: torch.Tensor, time: torch.Tensor, cond: Cond) -> torch.Tensor:
            assert cond.label is not None
            return super().forward(x, time, cond) * (1 + 0.1 * cond.label.view(-1, 1, 1, 1))

    _, data = mixture_data()
    teacher = network(data)
    assert method_of("sfd").build(guide(teacher, 2.0))["student"].state_dict().keys() == teacher.net.state_dict().keys()

    method = method_of("sfd")
    base = Preconditioned(Labelled(posterior, EDM), EDM, (1, 4, 4), 2, (0.002, 80.0))
    spy, levels, _ = learner(method, 3)
    found = losses_of(method, spy, guide(base, 2.0))
    assert len(spy.conds) == 2
    x = spy.states_at(1) / afs_factor(levels)
    plan = plan_of("dpmpp_3m", grid_of(method, 3))
    target = run(plan, guide(base, 2.0), x, cond=Cond(torch.arange(64) % 2), keep=plan.states)[plan.states[8]]
    move = levels[2] / levels[1] + (1 - levels[2] / levels[1]) * spy.gains[1].item()
    # Both trajectories start from x within rounding, and pass through ExactNet's c_noise in float32.
    np.testing.assert_allclose(found[0].value.item(), distance("l1")(move * spy.states_at(1), target).mean().item(), rtol=1e-5)
    assert found[0].value.item() > 100 * EXACT


def test_a_student_that_follows_the_teacher_samples_its_end() -> None:
    """Sampled as its method says, the exact student's image is the teacher's last state."""
    method = method_of("sfd")
    net, _, targets = learner(method, 3)
    student = method.student(net, linear_teacher())
    images = sampled(method, student, 3, torch.arange(64))
    torch.testing.assert_close(images.std().item(), 80 * abs(targets[-1]), rtol=0.1, atol=0)  # 1024 normals: 4 standard errors
    assert {n for n, _ in net.asked} == {1, 2}


@each("name", ["sfd", "trajectory", "sfd_v", "sfd_one"])
@each("nfe", [1, 3, 5])
def test_a_cell_gets_the_grid_that_its_student_was_trained_on(name: str, nfe: int) -> None:
    """NFE is one less than the steps under AFS, the grid ends above the teacher's sigma_min, and a fit for one number gets the cell's."""
    suite = Suite("s", 8, 0, "philox", "dpmpp_2m", 10, {}, ())
    model = load_model(group_config("model", "digits"), "cpu")
    if name == "sfd_one" and nfe == 3:
        with pytest.raises(Unreachable, match="sfd_one has students for 2 and 6 steps, not 4"):
            resolve(Cell(name, nfe=nfe), suite, model)
        return
    job = resolve(Cell(name, nfe=nfe), suite, model)
    assert (job.steps, job.cell.afs, job.grid.sigmas[-1]) == (nfe + 1, True, 0.006)
    assert job.student is not None
    method = method_of(name, **job.student.options)
    assert ("steps" in job.student.options) == (name in ("sfd", "trajectory"))
    trained_on = grid_of(method, nfe + 1).sigmas[:: method.substeps]
    np.testing.assert_allclose(job.grid.sigmas, trained_on, rtol=1e-12, atol=0)  # float64 powers
    assert job.spec["phase"] == {"sfd_one": "one" if nfe == 1 else "sfd"}.get(name, name)


def test_the_ablation_is_made_of_options() -> None:
    """Rows of the paper's table 1: each is one setting of `trajectory` or `sfd`, with another loss than every other."""
    start = {"sigma_min": 0.0, "afs": False, "loss": "l2"}
    rows = [
        ("trajectory", start | {"teacher_solver": "heun"}),
        ("trajectory", start | {"teacher_solver": "dpm_2s"}),
        ("sfd", start | {"teacher_solver": "heun"}),
        ("sfd", start | {"teacher_solver": "dpm_2s"}),
        ("sfd", start | {"teacher_solver": "dpmpp_3m"}),
        ("sfd", start | {"sigma_min": 0.006}),
        ("sfd", start | {"afs": True}),
        ("sfd", start | {"sigma_min": 0.006, "afs": True}),
        ("sfd", {"loss": "pseudo_huber"}),
        ("sfd", {"loss": "l1"}),
    ]
    found = [losses_of(method_of(name, **options), ExactNet(posterior, EDM))[-1].value.item() for name, options in rows]
    assert len({f"{value:.6g}" for value in found}) == len(rows)


def test_the_learning_rate_falls_from_half_way_and_gradients_are_not_clipped() -> None:
    optim = adam(1e-3, released=False)["student"]
    np.testing.assert_allclose([optim.lr_at(b, 100) for b in (0, 50, 75, 99)], [1e-3, 1e-3, 5e-4, 2e-5], rtol=1e-12)  # float64
    assert optim.clip == float("inf")


@each(
    ("name", "options", "message"),
    [
        ("sfd", {"steps": 1}, r"sfd needs at least 2 step\(s\), since with afs=true the first is analytical; got 1"),
        ("trajectory", {"steps": 0, "afs": False}, r"trajectory needs at least 1 step\(s\), .*; got 0"),
        ("sfd_v", {"fewest": 1}, r"sfd_v needs at least 2 step\(s\)"),
        ("sfd_v", {"fewest": 4, "most": 3}, "sfd_v is trained for fewest to most steps, got 4 to 3; raise most or lower fewest"),
        ("sfd", {"substeps": 0}, "takes at least one step in each of the student's, got substeps=0; use e.g. 4"),
        ("sfd_v", {"sigma_min": -0.1}, "sfd_v's grid ends at a level >= 0, got sigma_min=-0.1; use 0"),
        ("trajectory", {"sigma_min": float("nan")}, "trajectory's grid ends at a level >= 0, got sigma_min=nan"),
        ("sfd", {"teacher_solver": "ddpm"}, "sfd runs on a solver that draws no noise, got 'ddpm'"),
        ("sfd_v", {"teacher_solver": "gits"}, "sfd_v runs on a solver that needs no fit, got 'gits'"),
        ("trajectory", {"teacher_solver": "hoin"}, "unknown solver 'hoin'; did you mean heun"),
        ("sfd", {"loss": "l3"}, "unknown loss 'l3'; did you mean"),
        ("sfd_one", {"first": 5}, r"first=5 steps, which must be an even number above 2 with afs=true; use e.g. first=6"),
        ("sfd_one", {"first": 2}, r"first=2 steps, which must be an even number above 2"),
        ("sfd_one", {"first": 1, "afs": False}, r"first=1 steps, which must be more than 1"),
        ("sfd_one", {"teacher_solver": "ddpm"}, "draws no noise, got 'ddpm'"),
    ],
)
def test_wrong_options_are_one_clear_line(name: str, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        method_of(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reached", "missed", "message"),
    [
        ("sfd", [3], [2, 4], "sfd is trained for one number of steps, here 3, not {}; set steps={} or use sfd_v"),
        ("trajectory", [3], [2, 4], "trajectory is trained for one number of steps, here 3, not {}; set steps={}"),
        ("sfd_v", [2, 3, 4, 5, 6], [1, 7], "sfd_v has a student for 2 to 6 steps, not {}"),
        ("sfd_one", [2, 6], [1, 3, 7], "sfd_one has students for 2 and 6 steps, not {}"),
    ],
)
def test_other_numbers_of_steps_are_unreachable(name: str, reached: list[int], missed: list[int], message: str) -> None:
    method = method_of(name)
    exported = {phase.name for phase in method.phases()}
    assert {method.phase_for(steps) for steps in reached} == exported
    for steps in missed:
        with pytest.raises(Unreachable, match=message.format(steps, steps)):
            method.phase_for(steps)
