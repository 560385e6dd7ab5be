"""The engine and the distillers, on a closed-form teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import mixture_data, network

from bench.engine import Engine, Settings
from bench.generate import sample
from fewstep.analytic import GaussianMixture
from fewstep.data.images import ImageData
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.grid import make_grid
from fewstep.nets.checkpoint import load_strict
from fewstep.noise import Rng
from fewstep.plan import run
from methods.distiller import Loss, Optim, Phase, State, student_net
from methods.registry import entries, get

QUIET = Settings(progress=False)
SMALL = {"cd": {"batches": 5, "batch_size": 16}, "pd": {"batches": 3, "batch_size": 16, "start": 2}}


def exports(method, teacher, data, folder: Path, stop: int | None = None, settings: Settings = QUIET):
    return Engine(method, teacher, data, folder, settings).run(stop).exports


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[p][k], b[p][k]) for p in a for k in a[p])


@pytest.mark.parametrize("name", entries("distiller"))
@pytest.mark.parametrize("stop", [1, 4])
def test_resume_is_exact(name: str, stop: int, tmp_path: Path) -> None:
    """A training cut between batches (inside a phase, and past a phase's end) ends with the same bits."""
    _, data = mixture_data()
    teacher = network(data)
    method = get("distiller", name).make(**SMALL[name])
    whole = exports(method, teacher, data, tmp_path / "whole")
    exports(method, teacher, data, tmp_path / "cut", stop)
    assert equal(exports(method, teacher, data, tmp_path / "cut"), whole)
    assert not equal(exports(method, teacher, data, tmp_path / "other", settings=replace(QUIET, seed=1)), whole)


def test_training_leaves_the_global_generators_and_the_teacher_alone(tmp_path: Path) -> None:
    _, data = mixture_data()
    teacher = network(data)
    before, weights = torch.get_rng_state(), {k: v.clone() for k, v in teacher.net.state_dict().items()}
    exports(get("distiller", "cd").make(**SMALL["cd"]), teacher, data, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, weights[k]) for k, v in teacher.net.state_dict().items())


def test_accumulation_is_one_step_on_the_mean(tmp_path: Path) -> None:
    """With a loss that ignores its data, any number of microbatches gives the same weights."""

    class Pull:
        version = 1

        def build(self, teacher: Denoiser):
            return {"student": torch.nn.Linear(2, 2)}

        def phases(self):
            return [Phase("pull", 3, 8, {"student": Optim(lr=0.1)})]

        def losses(self, state: State, batch, rng):
            yield Loss(state.nets["student"].weight.square().sum(), "student")

    _, data = mixture_data()
    one = exports(Pull(), network(data), data, tmp_path / "a")
    four = exports(Pull(), network(data), data, tmp_path / "b", settings=replace(QUIET, accumulate=4))
    torch.testing.assert_close(one["pull"], four["pull"])


def test_each_loss_steps_its_own_net(tmp_path: Path) -> None:
    """Two nets, two losses that read both: the second loss sees the first net after its step, and only its own net moves."""
    seen = []

    class Pair:
        version = 1

        def build(self, teacher: Denoiser):
            return {"student": torch.nn.Linear(1, 1, bias=False), "critic": torch.nn.Linear(1, 1, bias=False)}

        def phases(self):
            return [Phase("pair", 1, 4, {n: Optim(lr=0.1) for n in ("student", "critic")})]

        def losses(self, state: State, batch, rng):
            a, b = state.nets["student"].weight, state.nets["critic"].weight
            seen.append((a.item(), b.item()))
            yield Loss((a * b).sum(), "student")
            seen.append((a.item(), b.item()))
            yield Loss((a * b).sum(), "critic")
            seen.append((a.item(), b.item()))

    _, data = mixture_data()
    exports(Pair(), network(data), data, tmp_path)
    (a0, b0), (a1, b1), (a2, b2) = seen
    assert a1 != a0
    assert b1 == b0
    assert a2 == a1
    assert b2 != b1


def test_divergence_is_an_error(tmp_path: Path) -> None:
    _, data = mixture_data()
    teacher = network(data)
    torch.nn.init.constant_(teacher.net.conv_out.bias, float("nan"))
    with pytest.raises(UsageError, match=r"training diverged: loss nan at batch 0 of phase cd; lower lr"):
        exports(get("distiller", "cd").make(**SMALL["cd"]), teacher, data, tmp_path)


def test_closed_form_teachers_need_a_warm_start(tmp_path: Path) -> None:
    teacher, data = mixture_data()
    with pytest.raises(UsageError, match="give init=, a network fitted by a warm start"):
        exports(get("distiller", "cd").make(), teacher, data, tmp_path)


def energy_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| over flattened images (Szekely and Rizzo 2013): 0 only for equal distributions."""
    x, y = x.flatten(1).double(), y.flatten(1).double()
    n, m = len(x), len(y)
    within = torch.cdist(x, x).sum() / (n * (n - 1)) + torch.cdist(y, y).sum() / (m * (m - 1))
    return float(2 * torch.cdist(x, y).mean() - within)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> tuple[GaussianMixture, ImageData]:
    """The mixture as a teacher whose students start from a network fitted to its D."""
    teacher, data = mixture_data()
    start = network(data)
    method = get("pretrain", "warm_start").make(batches=400, batch_size=128)
    fitted = exports(method, replace(teacher, init=start), data, tmp_path_factory.mktemp("warm"))["edm"]
    load_strict(start.net, fitted, "warm start")
    return replace(teacher, init=start), data


# Budgets that take seconds; the bar is what any working distillation clears, not how good it can get.
BUDGETS = {"cd": {"batches": 200, "batch_size": 64}, "pd": {"batches": 60, "batch_size": 64, "start": 4}}


@pytest.mark.parametrize("name", entries("distiller"))
def test_each_distiller_beats_its_teachers_one_step(name: str, warm: tuple[GaussianMixture, ImageData], tmp_path: Path) -> None:
    """One student step is at least 3 times nearer to the data than the exact teacher's own one-step DDIM sample."""
    teacher, data = warm
    seeds = torch.arange(512)
    method = get("distiller", name).make(**BUDGETS.get(name, {}))
    weights = exports(method, teacher, data, tmp_path)[method.phase_for(1)]
    student = method.student(load_strict(student_net(teacher, name), weights, "student"), teacher)
    own = method.sampling()
    grid = make_grid(own.grid, 1, teacher.sigma_range, own.end)
    images, _ = sample(get("solver", own.solver).make().plan(grid), student, grid.sigmas[0], seeds)
    ddim, _ = sample(get("solver", "euler").make().plan(grid), teacher, grid.sigmas[0], seeds)
    truth, _ = teacher.sample(512, torch.Generator().manual_seed(1))
    assert energy_distance(images, truth) < energy_distance(ddim, truth) / 3


def test_pd_targets_reproduce_two_teacher_steps() -> None:
    """A student that matches its target makes the teacher's two Euler steps in one, exactly (float64, closed form)."""
    teacher, _ = mixture_data()
    for i in range(4):
        levels = make_grid("polynomial", 8, teacher.sigma_range, "zero_last").sigmas[2 * i : 2 * i + 3]
        x = Rng((3,)).normal((16, *teacher.shape)).double() * levels[0]
        from fewstep.grid import TimeGrid

        plan = get("solver", "euler").make().plan(TimeGrid(levels))
        two = run(plan, teacher, x)[plan.states[-1]]
        ratio = levels[2] / levels[0]
        target = (two - ratio * x) / (1 - ratio)
        torch.testing.assert_close(ratio * x + (1 - ratio) * target, two)
        if levels[2] == 0:  # the exact last step: the target is the teacher's second prediction itself
            mid = run(plan, teacher, x, keep=[plan.states[1]])[plan.states[1]]
            torch.testing.assert_close(target, teacher(mid, float(levels[1])))


def test_cd_loss_vanishes_on_the_exact_consistency_function() -> None:
    """For Gaussian data f(x, sigma) = x sqrt((v + eps^2) / (v + sigma^2)) is a fixed point up to the teacher's Heun error."""
    from fewstep.analytic import Gaussian
    from fewstep.grid import TimeGrid

    v = torch.tensor(0.25, dtype=torch.float64)
    teacher = Gaussian(torch.zeros(()), v.sqrt(), (1, 4, 4))
    levels = make_grid("polynomial", 17, teacher.sigma_range).sigmas
    # Gains of one Heun step with v = 1/4 on the 18-node grid.
    for i, gain in ((0, 0.71983871), (5, 0.65146479), (11, 0.76674998), (16, 0.99989468)):
        plan = get("solver", "heun").make().plan(TimeGrid(levels[i : i + 2]))
        moved = run(plan, teacher, torch.ones(1, 1, 4, 4, dtype=torch.float64))[plan.states[-1]]
        torch.testing.assert_close(float(moved.mean()), gain, rtol=1e-7, atol=0)  # eight printed digits
