"""GITS: its cost matrix and paths against the published implementation's numbers, and what a fit gains."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from bench.certificate.checks.parity import TwoModes
from bench.jobs.fits import solvers as learned
from bench.jobs.fits.solvers import SolverFit
from bench.jobs.models import load_model
from bench.settings.compose import group_config
from bench.store.artefacts import Store
from fewstep.analytic import Counting
from fewstep.cond import Cond
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import TimeGrid, make_grid
from fewstep.noise import Rng
from fewstep.plugins import get
from fewstep.sampling.plan import prediction, with_afs
from fewstep.sampling.runner import run
from methods.solver import Fitting
from methods.solvers.gits import SEARCHED, cheapest_path, cost_matrix, deviation
from support.each import each
from support.tiny import mixture_data

RANGE = (0.002, 80.0)


def teacher_run(nodes: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """iPNDM-4 on the two-mode denoiser from the latents z_i = 2 sin(1.3 i) of four samples 1x4x4: states, predictions, levels."""
    grid = make_grid("polynomial", nodes - 1, RANGE)
    plan = get("solver", "ipndm_4").make().plan(grid)
    x = 80 * 2 * torch.sin(1.3 * torch.arange(64, dtype=torch.float64)).view(4, 1, 4, 4)
    predictions = [prediction(i) for i in range(grid.steps)]
    slots = run(plan, TwoModes((1, 4, 4)), x, keep=(*plan.states, *predictions))
    return torch.stack([slots[s] for s in plan.states]), torch.stack([slots[p] for p in predictions]), grid.sigmas


# The published implementation's numbers on that run (zju-pi/diff-sampler at 68d5ce4), as printed.
def test_published_costs_of_21_nodes():
    states, predictions, levels = teacher_run(21)
    cost = cost_matrix(states, predictions, levels)
    assert_allclose(cost[0, 1:5], [0, 3e-6, 1e-5, 2.1e-5], atol=5e-7)  # printed to six decimals
    assert_allclose([cost[5, 8], cost[5, 20]], [0.000159, 0.632159], atol=5e-7)  # printed to six decimals
    assert_allclose(cost.min(), -0.0284139, atol=5e-8)  # printed to seven decimals
    flat = states.flatten(2)
    assert_allclose(float(deviation(flat[5], flat)), 0.493713, atol=5e-7)  # printed to six decimals
    assert_allclose(cost_matrix(states, predictions, levels, "l2")[5, 8], 0.054031, atol=5e-7)  # printed to six decimals


def test_published_costs_of_61_nodes():
    states, predictions, levels = teacher_run(61)
    flat = states.flatten(2)
    assert_allclose(float(deviation(flat[5], flat)), 0.241472, atol=5e-7)  # printed to six decimals
    assert_allclose(cost_matrix(states, predictions, levels)[5, 60], 0.643458, atol=5e-7)  # printed to six decimals


PATHS = [
    (21, "dev", 0.8, [0, 10, 11, 12, 13, 14, 20]),
    (21, "dev", 1.0, [0, 11, 12, 13, 14, 16, 20]),
    (21, "dev", 1.15, [0, 13, 14, 16, 18, 19, 20]),
    (21, "l2", 1.0, [0, 9, 11, 12, 13, 14, 20]),
    (21, "l2", 1.15, [0, 11, 12, 13, 14, 16, 20]),
    (61, "dev", 1.15, [0, 39, 41, 43, 47, 51, 60]),
    (61, "dev", 1.15, [0, 38, 40, 41, 42, 43, 46, 47, 50, 53, 60]),
    (61, "l2", 1.15, [0, 34, 38, 42, 47, 51, 60]),
]


@each(("nodes", "metric", "coeff", "expected"), PATHS)
def test_published_paths(nodes, metric, coeff, expected):
    assert cheapest_path(cost_matrix(*teacher_run(nodes), metric), len(expected) - 1, coeff) == expected


def test_l1_is_the_sum_of_absolute_differences_by_hand():
    # One sample of two pixels: x = (4, 2) at sigma 2 with D = (0, 2): the jump to sigma 1 is (2, 2); the trajectory is at (3, 1) there.
    states = torch.tensor([[[4.0, 2.0]], [[3.0, 1.0]], [[0.0, 0.0]]])
    predictions = torch.tensor([[[0.0, 2.0]], [[0.0, 0.0]]])
    levels = np.array([2.0, 1.0, 0.5])
    assert_allclose(cost_matrix(states, predictions, levels, "l1")[0, 1], 2.0)
    assert_allclose(cost_matrix(states, predictions, levels, "l2")[0, 1], np.sqrt(2))
    # The line through (4, 2) and (0, 0) has the normal (1, -2) / sqrt 5: distances 2 / sqrt 5 of the jump and 1 / sqrt 5 of the state.
    assert_allclose(cost_matrix(states, predictions, levels)[0, 1], 1 / np.sqrt(5))


@pytest.mark.parametrize(
    ("coeff", "short", "long"),
    [(0.5, [0, 2, 5], [0, 1, 3, 5]), (1.0, [0, 2, 5], [0, 1, 3, 5]), (1.15, [0, 3, 5], [0, 2, 4, 5]), (2.0, [0, 3, 5], [0, 2, 4, 5])],
)
def test_cheapest_paths_of_a_small_matrix(coeff, short, long):
    # cost max(b - a - 1, 0)^2 + a / 10 on six nodes: the published implementation's paths; ties go to early nodes.
    cost = np.array([[max(b - a - 1, 0) ** 2 + 0.1 * a for b in range(6)] for a in range(6)])
    assert cheapest_path(cost, 2, coeff) == short
    assert cheapest_path(cost, 3, coeff) == long
    assert cheapest_path(cost, 1, coeff) == [0, 5]
    assert cheapest_path(cost, 5, coeff) == [0, 1, 2, 3, 4, 5]  # every node
    values = {j: cost[0, j] + coeff * cost[j, 5] for j in range(1, 5)}
    assert values[short[1]] == min(values.values())


def test_the_published_schedule_lies_on_the_teacher_grid():
    levels = make_grid("polynomial", 60, RANGE).sigmas[[0, 19, 27, 33, 39, 45, 60]]
    assert_allclose(levels, [80, 10.9836, 3.8811, 1.584, 0.5666, 0.1698, 0.002], atol=5e-5)  # arXiv 2405.11326, printed to four decimals


TEACHER, DATA = mixture_data()
X = 80 * Rng((1, 2)).normal((256, *TEACHER.shape))
LABELS = Cond(label=Rng((1, 3)).integers(TEACHER.classes, (256,)))


def task(steps: int, afs: bool = False, seed: int = 0) -> Fitting:
    def no_training(method):
        raise AssertionError("gits trains nothing")

    return Fitting(TEACHER, lambda n: make_grid("polynomial", n, RANGE), steps, afs, seed, "cpu", no_training)


def end_error(plan) -> float:
    """Root mean square distance, on fresh seeds, from Heun's 100 steps."""
    fine = get("solver", "heun").make().plan(make_grid("polynomial", 100, RANGE))
    out, exact = (run(p, TEACHER, X, cond=LABELS)[p.states[-1]] for p in (plan, fine))
    return float((out - exact).square().mean().sqrt())


@pytest.mark.parametrize("name", ["gits", "gits_search", "gits_euler"])
def test_chosen_levels_beat_the_plain_grid_at_five_evaluations(name):
    solver, grid = get("solver", name).make(), make_grid("polynomial", 5, RANGE)
    base = get("solver", solver.base).make().plan(grid)
    artefact = solver.fit(task(5))
    plan = solver.bound(artefact).plan(grid)
    assert plan.nfe(TEACHER) == 5
    assert end_error(plan) < 0.9 * end_error(base)
    again = solver.fit(task(5))
    assert all(torch.equal(artefact[k], again[k]) for k in artefact)


def test_the_free_first_step_is_inserted_where_the_run_ends_nearest():
    solver, grid = get("solver", "gits").make(warmup=64), make_grid("polynomial", 6, RANGE)
    plain, free = (solver.fit(task(n, afs))["index"].tolist() for n, afs in ((5, False), (6, True)))
    assert [free[0], *free[2:]] == plain
    plan = with_afs(solver.bound(solver.fit(task(6, True))).plan(grid))
    assert plan.nfe(TEACHER) == 5
    assert end_error(plan) < end_error(with_afs(get("solver", "ipndm_4").make().plan(grid)))


def test_a_search_takes_the_best_of_the_coefficients_on_its_own_batch():
    fixed = [get("solver", "gits").make(warmup=64, coeff=c).fit(task(5)) for c in (1.0, 1.15)]
    found = get("solver", "gits_search").make(warmup=64).fit(task(5))
    states = 80 * Rng((0, 0)).normal((64, *TEACHER.shape)).double()  # the stream of the fit: latents first, then labels

    def distance(levels) -> float:
        rng = Rng((0, 0))
        rng.normal((64, *TEACHER.shape))
        cond = Cond(label=rng.integers(TEACHER.classes, (64,)))
        chosen, fine = TimeGrid(levels.numpy()), make_grid("polynomial", 60, RANGE)
        ends = [run(p, TEACHER, states, cond=cond)[p.states[-1]] for p in (get("solver", "ipndm_4").make().plan(g) for g in (chosen, fine))]
        return float((ends[0] - ends[1]).flatten(1).norm(dim=1).mean())

    assert distance(found["levels"]) <= min(distance(f["levels"]) for f in fixed)


def test_what_cannot_be_is_refused_in_one_line():
    solver = get("solver", "gits").make()
    with pytest.raises(UsageError, match=r"bound\(fit\(\.\.\.\)\)"):
        solver.plan(make_grid("polynomial", 5, RANGE))
    with pytest.raises(Unreachable, match="cannot choose 61 steps from a teacher grid of 60"):
        solver.fit(task(61))
    with pytest.raises(Unreachable, match="AFS on a one-step grid"):
        solver.fit(task(1, afs=True))
    with pytest.raises(Unreachable, match="no teacher node is left"):
        get("solver", "gits").make(teacher_steps=4, warmup=2).fit(task(5, afs=True))
    artefact = get("solver", "gits").make(warmup=4).fit(task(5))
    for grid in (make_grid("polynomial", 4, RANGE), make_grid("polynomial", 5, (0.01, 80.0)), make_grid("polynomial", 5, RANGE, "zero")):
        with pytest.raises(UsageError, match=r"these levels are for 5 steps from 80 to 0\.002"):
            solver.bound(artefact).plan(grid)
    for options, message in (
        ({"base": "gits"}, "needs no fit, got 'gits'"),
        ({"teacher": "amed"}, "needs no fit, got 'amed'"),
        ({"teacher": "ddpm"}, "draws no noise, got 'ddpm'"),
        ({"base": "consistency"}, "draws no noise, got 'consistency'"),
        ({"teacher": "hoin"}, "unknown solver 'hoin'"),
        ({"batch_size": 0}, "batch_size >= 1"),
    ):
        with pytest.raises(UsageError, match=message):
            get("solver", "gits").make(**options)
    with pytest.raises(UsageError, match="unknown metric 'l3'"):
        get("solver", "gits").make(metric="l3")


class Refusing:
    """A teacher that must not be asked."""

    shape, classes, sigma_range = TEACHER.shape, TEACHER.classes, RANGE

    def cost(self, sigma):
        return 1

    def __call__(self, x, sigma, cond=None):
        raise AssertionError("asked before the task was checked")


@pytest.mark.parametrize(("steps", "afs"), [(5, False), (6, True), (5, True), (1, True)])
def test_what_no_fit_can_do_is_refused_before_any_work(steps, afs):
    solver = get("solver", "gits").make(teacher_steps=4)
    with pytest.raises(Unreachable):
        solver.check(steps, task(steps).grid, afs)
    with pytest.raises(Unreachable):
        solver.fit(replace(task(steps, afs), teacher=Refusing()))


def test_a_stub_has_no_more_steps_than_the_teacher():
    solver = get("solver", "gits").make(teacher_steps=4)
    stub = solver.bound(solver.stub())
    assert len(stub.plan(make_grid("polynomial", 4, RANGE)).evals) == 4
    with pytest.raises(Unreachable, match="cannot choose 5 steps from a teacher grid of 4"):
        stub.plan(make_grid("polynomial", 5, RANGE))


def test_with_afs_a_node_is_left_for_the_free_step_on_any_grid():
    """Four steps of a teacher's four: the three that are not free leave one inner node out, which must be the first."""
    solver = get("solver", "gits").make(teacher_steps=4, warmup=8)
    for coeff in (0.1, 1.0, 10.0):
        index = replace(solver, coeff=coeff).fit(task(4, afs=True))["index"].tolist()
        assert index == [0, 1, 2, 3, 4]  # the free node is 1, on any path of 0, 2, 3, 4


@each(
    ("options", "steps", "afs"),
    [
        ({}, 5, False),
        ({"teacher": "heun"}, 5, False),
        ({"search": True}, 5, False),
        ({"batch_size": 4}, 5, True),
        ({"base": "heun"}, 4, True),
    ],
)
def test_a_fit_takes_the_passes_that_it_says(options, steps, afs):
    """Ten samples, the last batch smaller. With AFS as many free nodes are tried as lie below the first chosen one."""
    solver = get("solver", "gits").make(**{"warmup": 10, "batch_size": 8, "teacher_steps": 12, **options})
    counting = Counting(TEACHER)
    fit = solver.fit(replace(task(steps, afs), teacher=counting))
    index = fit["index"].tolist()
    if not afs:
        teacher = replace(solver, search=False).passes(steps)
        each = (solver.passes(steps) - teacher) // len(SEARCHED)
        paths = {tuple(cheapest_path(fit["cost"].numpy(), steps, coeff)) for coeff in SEARCHED}
        assert len(paths) > 1
        assert counting.samples == teacher + len(paths) * each <= solver.passes(steps)  # equal paths are tried once
        return
    plain = solver.passes(steps)
    tried = index[2] - 1
    each = (solver.passes(steps, True) - plain) // (solver.teacher_steps - steps + 1)
    assert each == 2 * (7 if options == {"base": "heun"} else 4)  # two samples in the last batch; Heun's first evaluation is free
    assert counting.samples == plain + (tried * each if tried > 1 else 0)


def test_a_stub_leaves_the_grid_as_it_is():
    solver, grid = get("solver", "gits").make(), make_grid("logsnr", 4, RANGE)
    plan = solver.bound(solver.stub()).plan(grid)
    assert [float(e.sigma) for e in plan.evals] == grid.sigmas[:-1].tolist()
    assert solver.claims == get("solver", "ipndm_4").make().claims


def test_fits_to_one_teacher_share_its_runs_and_their_seconds(tmp_path):
    """In one store, whatever process asks; another store, teacher, grid or seed has runs of its own."""
    shipped = load_model(group_config("model", "arena_mixture"), "cpu")
    counted = Counting(shipped.teacher)
    model, options = replace(shipped, teacher=counted), {"teacher_steps": 8, "warmup": 4, "batch_size": 2}

    def fit(folder: str, solver: str = "gits", **axes) -> tuple[int, float, bytes]:
        made, store, before = SolverFit(solver, options, **axes), Store(tmp_path / folder), counted.samples
        record = made.ensure(model, store, "cpu", lambda text: None)
        return counted.samples - before, record["seconds"], (store.path("fit", made.key(model)) / learned.ARTEFACT).read_bytes()

    runs = 4 * 8
    assert fit("a", steps=3)[0] == runs
    (key,) = [path.name for path in (tmp_path / "a" / ".store" / learned.SHARED).iterdir()]
    shared = Store(tmp_path / "a").read(learned.SHARED, key)["seconds"]
    passes, seconds, together = fit("a", "gits_euler", steps=4)
    assert passes == 0
    assert seconds > shared
    assert fit("a", steps=3, guidance=2.0)[0] == 2 * runs  # another teacher
    assert fit("a", "gits_dpmpp_2m", steps=3)[0] == 0  # the first one's are still there
    passes, _, alone = fit("b", "gits_euler", steps=4)
    assert (passes, alone) == (runs, together)
    for axes in ({"grid": "logsnr"}, {"seed": 1}):
        assert fit("b", steps=3, **axes)[0] == runs
