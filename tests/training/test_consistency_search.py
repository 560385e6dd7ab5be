"""The search of the levels that consistency students are sampled on."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from bench.jobs.fits.solvers import SolverFit
from bench.jobs.models import load_model
from bench.jobs.resolve import resolve
from bench.jobs.samples import Bound, ensure_samples, plan_of
from bench.jobs.suite import Suite
from bench.settings.compose import group_config
from bench.store.artefacts import Store
from bench.store.cell import Cell
from fewstep.cond import NULL, Cond
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import TimeGrid, make_grid
from fewstep.guidance import guide
from fewstep.plugins import get
from fewstep.sampling.draw import sample
from fewstep.wrappers import WithScalars
from methods.solver import Fitting
from methods.solvers.consistency_search import searched
from support.exactnet import V
from support.tiny import mixture_data

EPS = 0.002


def exact(sigma):
    """The gain of the exact consistency function of Gaussian data."""
    return np.sqrt((V + EPS**2) / (V + sigma**2))


def search_task(steps: int, teacher, data, afs: bool = False, end: str = "sigma_min") -> Fitting:
    def no_training(method):
        raise AssertionError("a search trains nothing")

    return Fitting(teacher, lambda n: make_grid("polynomial", n, (0.002, 80.0), end), steps, afs, 0, "cpu", no_training, data)


def test_a_search_finds_minima_between_its_points() -> None:
    level, value = searched(lambda s: (math.log(s) - math.log(0.37)) ** 2, 0.002, 80.0, 10, 12)
    assert level == pytest.approx(0.37, rel=0.02)  # two gaps of 0.96 in log sigma times (2/3)^12
    assert value < 1e-3
    two = {round(math.log(s), 9): s for s in (0.05, 5.0)}  # two minima; the deeper one is at 5
    level, _ = searched(lambda s: min(0.5 + abs(math.log(s / 0.05)), abs(math.log(s / two[round(math.log(5.0), 9)]))), 0.002, 80.0, 10, 12)
    assert level == pytest.approx(5.0, rel=0.02)  # as above


class Drifting:
    """A student of Gaussian data whose jump is exact from the level `best`, and too long by up to 60% from others."""

    shape, classes, sigma_range, best = (1, 4, 4), 0, (0.002, 80.0), 3.0

    def cost(self, sigma: float) -> int:
        return 1

    def __call__(self, x: torch.Tensor, sigma: float, cond: Cond = NULL) -> torch.Tensor:
        return exact(sigma) * x * (1 + 0.6 * abs(math.log(sigma / self.best)) / math.log(80 / self.best))


def test_levels_are_searched_where_the_samples_are_nearest_to_the_data() -> None:
    """Two steps from s have variance g(s)^2 (1.6^2 V + s^2) / (V + s^2) V with g the factor of the jump: least at 3, where it is 1.04 V."""
    _, data = mixture_data()
    x = V**0.5 * torch.randn(4000, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    gaussian = replace(data, classes=0, train_x=x.numpy(), train_y=np.zeros(4000, np.int64))
    solver = get("solver", "consistency_search").make(samples=600)
    two, three = (solver.fit(search_task(steps, Drifting(), gaussian)) for steps in (2, 3))
    levels = three["levels"].numpy()
    assert (levels[0], levels[-1]) == (80, 0.002)
    assert 2 < two["levels"][1] < 4.5  # 10% more or less variance (g = 1.05) than at 3, which 600 * 16 numbers resolve to 1.4%
    assert float(two["levels"][1]) in levels  # greedy
    assert three["distances"][0] == two["distances"][0]
    assert torch.equal(solver.fit(search_task(3, Drifting(), gaussian))["levels"], three["levels"])
    plan = solver.bound(three).plan(make_grid("polynomial", 3, (0.002, 80.0)))
    assert [e.sigma for e in plan.evals] == list(levels[:-1])
    with pytest.raises(UsageError, match=r"^these levels are for 3 steps from 80 to 0.002, not 2 from 80 to 0.002; fit consistency_search"):
        solver.bound(three).plan(make_grid("polynomial", 2, (0.002, 80.0)))


@pytest.mark.parametrize(
    ("steps", "afs", "end"), [(1, False, "sigma_min"), (3, False, "zero"), (3, True, "sigma_min"), (4, False, "zero_last")]
)
def test_a_search_takes_the_passes_that_it_says_and_stays_in_range(steps: int, afs: bool, end: str) -> None:
    _, data = mixture_data()
    solver = get("solver", "consistency_search").make(samples=16, points=3, rounds=2)
    seen = []

    class Counted(Drifting):
        classes = 2

        def __call__(self, x, sigma, cond=NULL):
            assert torch.equal(cond.label, torch.arange(16) % 2)
            seen.append(len(x))
            return super().__call__(x, sigma)

    levels = solver.fit(search_task(steps, Counted(), data, afs, end))["levels"].numpy()
    most = solver.passes(steps, afs)
    assert most * 0.9 <= sum(seen) <= most  # a level that is there already is not tried
    assert len(levels) == steps + 1
    grid = make_grid("polynomial", 1, (0.002, 80.0), end).sigmas
    assert (levels[0], levels[-1]) == (grid[0], grid[-1])
    assert (levels[1:-1] > 0.002).all()


def test_what_cannot_be_searched_is_refused() -> None:
    solver = get("solver", "consistency_search").make()
    with pytest.raises(UsageError, match=r"^consistency_search compares samples with data, and this task has none; fit it with"):
        solver.fit(search_task(2, Drifting(), None))
    with pytest.raises(Unreachable, match=r"^AFS on a one-step grid leaves nothing to the network; use at least two steps"):
        solver.fit(search_task(1, Drifting(), None, True))
    with pytest.raises(
        UsageError, match=r"^consistency_search plans with searched levels only: use bound\(fit\(\.\.\.\)\), or bound\(stub"
    ):
        solver.plan(TimeGrid([80.0, 1.0, 0.1]))


@pytest.mark.parametrize("name", ["cd", "lcm"])
def test_a_cell_searches_the_levels_of_its_own_student(name: str, tmp_path) -> None:
    """The search is a fit of its own, keyed by the student's; the cell is sampled on what it found, guided as the search was."""
    model, solver = load_model(group_config("model", "digits"), "cpu"), {"samples": 8, "points": 2, "rounds": 0}
    options = {name: {"batches": 2, "batch_size": 4}, "consistency_search": solver}
    suite, store = Suite("tiny", 4, 0, "philox", "dpmpp_2m", 1, options, ()), Store(tmp_path)
    cell = Cell(name, solver="consistency_search", nfe=2 if name == "lcm" else 4, guidance=2.0)
    job = resolve(cell, suite, model)
    assert (job.steps, job.learned.student) == (2, job.student)
    plain = SolverFit("consistency_search", solver, guidance=2.0, steps=2)
    other = replace(job.student, seed=1)
    assert len({fit.key(model) for fit in (job.learned, plain, replace(plain, student=other))}) == 3
    assert "student" not in plain.spec(model)  # the addresses of fits to a teacher stay what they were
    for fit in job.fits:
        fit.ensure(model, store, "cpu", lambda text: None)
    images = ensure_samples(Bound(job, model, store, "cpu"), 4, lambda text: None).images[:]
    levels = [e.sigma for e in plan_of(job, model, store).evals]
    assert len(levels) == 2
    assert levels[1] != job.grid.sigmas[1]
    student = job.student.load(model, store, 2)
    guided = WithScalars(student, {"w": 1.0}) if name == "lcm" else guide(student, 2.0)
    plan = get("solver", "consistency").make().plan(TimeGrid([*levels, job.grid.sigmas[-1]]))
    assert_close(torch.from_numpy(images), sample(plan, guided, 80.0, torch.arange(4))[0])
