"""The engine and the distillers, on a closed-form teacher."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench.training.engine import Engine, Settings
from fewstep.analytic import Gaussian
from fewstep.data.images import ImageData
from fewstep.denoiser import Denoiser
from fewstep.energy import energy_distance
from fewstep.errors import UsageError
from fewstep.grid import TimeGrid, make_grid
from fewstep.nets.loading import load_strict
from fewstep.plugins import entries, get
from fewstep.precond import ConsistencyPrecond
from fewstep.sampling.draw import sample
from fewstep.sampling.runner import run
from methods.recipe import Recipe
from methods.start import WarmStarted
from methods.training import Loss, Optim, Phase, State
from support.exactnet import EDM, ExactNet, V, at_nodes, linear_teacher, loss_of, posterior
from support.registered import chosen
from support.tiny import VARIANTS, data_of, made, mixture_data, network, pictured, sampled, teacher_of

QUIET, SEEDS = Settings(progress=False), torch.arange(512)
SMALL = {"batches": 5, "batch_size": 16, "start": 2, "guided": 1, "count": 64}  # those that a distiller has


def exports(method, teacher, data, folder: Path, stop: int | None = None, settings: Settings = QUIET):
    return Engine(method, teacher, data, folder, settings).run(stop).exports


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[p][k], b[p][k]) for p in a for k in a[p])


@pytest.mark.parametrize("name", [*entries("distiller"), *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS)])
def test_resume_is_exact(name: str, tmp_path: Path) -> None:
    """A training that is cut between batches three times (inside a phase, and past a phase's end) ends with the same bits."""
    _, data = mixture_data()
    teacher = teacher_of(name, data)
    method = made(name, **SMALL)
    data = data_of(method, teacher, data)
    whole = exports(method, teacher, data, tmp_path / "whole")
    for stop in (1, 4, 6):
        exports(method, teacher, data, tmp_path / "cut", stop)
    assert equal(exports(method, teacher, data, tmp_path / "cut"), whole)
    assert not equal(exports(method, teacher, data, tmp_path / "other", settings=replace(QUIET, seed=1)), whole)


def test_training_leaves_the_global_generators_and_the_teacher_alone(tmp_path: Path) -> None:
    _, data = mixture_data()
    teacher = network(data)
    before, weights = torch.get_rng_state(), {k: v.clone() for k, v in teacher.net.state_dict().items()}
    exports(made("cd", **SMALL), teacher, data, tmp_path)
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
    four = exports(Pull(), network(data), data, tmp_path / "b", settings=replace(QUIET, recipe=Recipe(accumulate=4)))
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


def test_a_later_loss_of_a_batch_sees_moved_weights_under_bf16(tmp_path: Path) -> None:
    """Autocast keeps its copies of weights for as long as it lasts, which is a batch: a step makes them stale."""
    seen = []

    class Twice:
        version = 1

        def build(self, teacher: Denoiser):
            return {"student": torch.nn.Linear(1, 1, bias=False)}

        def phases(self):
            return [Phase("twice", 1, 4, {"student": Optim(lr=0.5)})]

        def losses(self, state: State, batch, rng):
            for _ in range(2):
                out = state.nets["student"](torch.ones(1, 1)).sum()
                seen.append((out.item(), state.nets["student"].weight.item()))
                yield Loss(out, "student")

    _, data = mixture_data()
    exports(Twice(), network(data), data, tmp_path, settings=Settings(recipe=Recipe(precision="bf16"), progress=False))
    (a, w), (b, moved) = seen
    assert abs(w - moved) > 0.4  # Adam's first step is lr
    assert (a, b) == (pytest.approx(w, abs=0.01), pytest.approx(moved, abs=0.01))  # bfloat16 has 8 bits


def test_a_pass_without_gradient_takes_none_from_the_next_under_bf16(tmp_path: Path) -> None:
    """Of a target of the student itself: a copy of its weights that autocast made there must not serve the pass that needs a gradient."""

    class OwnTarget:
        version = 1

        def build(self, teacher: Denoiser):
            return {"student": torch.nn.Linear(1, 1, bias=False)}

        def phases(self):
            return [Phase("own", 1, 4, {"student": Optim(lr=0.5)})]

        def losses(self, state: State, batch, rng):
            net, one = state.nets["student"], torch.ones(1, 1)
            with torch.no_grad():
                target = net(one) + 1
            yield Loss((net(one) - target).square().sum(), "student")

    _, data = mixture_data()
    result = Engine(OwnTarget(), network(data), data, tmp_path, Settings(recipe=Recipe(precision="bf16"), progress=False)).run()
    assert result.log[-1]["grad_norm/student"] == pytest.approx(2.0, rel=0.02)  # 2 (f - target) = -2, in 8 bits


def test_checkpoints_are_not_counted_as_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, data = mixture_data()
    written, step, clock = Engine.save, Engine._step, [0.0]

    def advance(original, seconds: float):
        def slow(self, *args):
            clock[0] += seconds
            return original(self, *args)

        return slow

    monkeypatch.setattr(Engine, "save", advance(written, 100.0))
    monkeypatch.setattr(Engine, "_step", advance(step, 1.0))
    monkeypatch.setattr("bench.training.engine.time", SimpleNamespace(monotonic=lambda: clock[0]))
    result = Engine(made("cd", **SMALL), network(data), data, tmp_path, replace(QUIET, checkpoint_seconds=0.5)).run()
    assert result.whole.seconds == 5.0
    assert clock[0] == 5.0 + 5 * 100.0


def test_divergence_is_an_error(tmp_path: Path) -> None:
    _, data = mixture_data()
    teacher = network(data)
    torch.nn.init.constant_(teacher.net.conv_out.bias, float("nan"))
    with pytest.raises(UsageError, match=r"training diverged: loss nan at batch 0 of phase cd; lower lr"):
        exports(made("cd", **SMALL), teacher, data, tmp_path)


def test_closed_form_teachers_need_a_warm_start(tmp_path: Path) -> None:
    teacher, data = mixture_data()
    with pytest.raises(UsageError, match=r"wrap a closed form as WarmStarted\(teacher, network\)"):
        exports(get("distiller", "cd").make(), teacher, data, tmp_path)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> tuple[WarmStarted, ImageData]:
    """The mixture as a teacher whose students start from a network fitted to its D."""
    teacher, data = mixture_data()
    start = network(data)
    method = get("pretrain", "warm_start").make(batches=400, batch_size=128)
    fitted = exports(method, WarmStarted(teacher, start), data, tmp_path_factory.mktemp("warm"))["edm"]
    load_strict(start.net, fitted, "warm start")
    return WarmStarted(teacher, start), data


# batches of a phase; what is not here takes 150
BUDGETS = {
    "gd": {"batches": 40},
    "gd_stochastic": {"batches": 60, "start": 8, "last": 6},
    "pd": {"batches": 60},
    "dmd": {"batches": 300},
    "cd": {"batches": 500},
    "ct": {"batches": 400, "s0": 10, "s1": 10, "lr": 2e-3},
    "ict": {"batches": 500, "s1": 40},
    "ect": {"batches": 300},
    "lcm": {"batches": 500, "nodes": 40},
    "ctm": {"batches": 75},
    "ctm_gan": {"batches": 75},
}


@pytest.mark.parametrize("name", chosen("distiller", ("ctm",), {name for name in entries("distiller") if pictured(name)}))
def test_each_distiller_beats_its_teachers_one_step(name: str, warm: tuple[WarmStarted, ImageData], tmp_path: Path) -> None:
    """In one evaluation a student is at least 5 times nearer to the data than the exact teacher's own one-step DDIM sample."""
    teacher, data = warm
    method = made(name, **{"batches": 150, "batch_size": 64, "start": 4, "count": 2048, **BUDGETS.get(name, {})})
    steps = 1 + method.sampling().afs
    method = made(name, **{f: getattr(method, f) for f in get("distiller", name).fields} | {"steps": steps})
    weights = exports(method, teacher, data_of(method, teacher, data), tmp_path)[method.phase_for(steps)]
    student = method.student(load_strict(method.build(teacher)["student"], weights, "student"), teacher)
    images = sampled(method, student, steps, SEEDS)
    grid = make_grid("polynomial", 1, teacher.sigma_range, "zero_last")
    ddim, _ = sample(get("solver", "euler").make().plan(grid), teacher, grid.sigmas[0], SEEDS)
    truth, _ = teacher.base.sample(512, torch.Generator().manual_seed(1))
    labels = (SEEDS % teacher.classes).numpy()  # of the samples; those of the truth are drawn at random
    student_off, teacher_off = (energy_distance(x.numpy(), truth.numpy(), labels) for x in (images, ddim))
    assert student_off < teacher_off / 5


def halved(sigmas: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Gains of D at every second level that make one Euler step of two: step s -> s' multiplies x by r + (1 - r) g, r = s' / s."""
    ratio = sigmas[1:] / sigmas[:-1]
    step = ratio + (1 - ratio) * gains
    two, ratio2 = step[0::2] * step[1::2], ratio[0::2] * ratio[1::2]
    return (two - ratio2) / (1 - ratio2)


@pytest.mark.parametrize("weighting", ["truncated_snr", "snr_plus_1", "uniform"])
def test_pd_loss_vanishes_on_the_halved_teacher_and_the_chain_keeps_its_samples(weighting: str) -> None:
    """16 -> 8 -> 4 -> 2 -> 1 on Gaussian data: each exact student has loss 0, and one step of the last is 16 of the teacher."""
    teacher = linear_teacher()
    method = get("distiller", "pd").make(start=8, loss=f"l2+{weighting}")
    grid = make_grid("polynomial", 16, teacher.sigma_range, "zero_last")
    sigmas, taught = grid.sigmas, posterior
    for phase in method.phases():
        gains = halved(sigmas, taught(sigmas[:-1]))
        # On the last step, to sigma = 0, the student predicts what the teacher predicts after its first step.
        r = sigmas[-2] / sigmas[-3]
        # Both sides are a handful of float64 products.
        np.testing.assert_allclose(gains[-1], (r + (1 - r) * taught(sigmas[-3:-2])[0]) * taught(sigmas[-2:-1])[0], rtol=1e-12)
        exact = at_nodes(sigmas[:-1:2], gains)
        nets = {"teacher": ExactNet(taught, EDM), "student": ExactNet(exact, EDM)}
        assert loss_of(method, State(teacher, nets, {}, phase)) < 1e-10  # (1e-6 x)^2 at most, see ExactNet
        # The teacher's own gains are no student: off by the error of two of its steps, some 1e-2 x at the middle nodes or more.
        assert loss_of(method, State(teacher, nets | {"student": ExactNet(taught, EDM)}, {}, phase)) > 1e-4
        sigmas, taught = sigmas[::2], exact
    assert list(sigmas) == [80.0, 0.0]
    one = method.student(nets["student"], teacher)
    x = torch.full((1, 1, 4, 4), 80.0, dtype=torch.float64)
    plan = get("solver", "euler").make().plan(grid)
    student_plan = get("solver", "euler").make().plan(make_grid("polynomial", 1, teacher.sigma_range, method.sampling().end))
    ours, theirs = run(student_plan, one, x)[student_plan.states[-1]], run(plan, teacher, x)[plan.states[-1]]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)  # float32 c_noise, see ExactNet


def cd_loss(solver: str, error: float = 0.0, nodes: int = 400) -> float:
    """CD's loss at f(x, sigma) = (1 + error) x sqrt((v + eps^2) / (v + sigma^2)), exact for error 0, with the exact f as target."""
    teacher = linear_teacher()
    eps = teacher.sigma_range[0]

    def consistent(sigma):
        return np.sqrt((V + eps**2) / (V + sigma**2))

    method = get("distiller", "cd").make(nodes=nodes, teacher_solver=solver)
    (phase,) = method.phases()
    boundary = ConsistencyPrecond(EDM.sigma_data, eps)
    student = ExactNet(lambda sigma: (1 + error) * consistent(sigma), boundary)
    return loss_of(method, State(teacher, {"student": student}, {"target": ExactNet(consistent, boundary)}, phase))


def test_cd_loss_vanishes_on_the_exact_consistency_function() -> None:
    """What is left is the teacher's discretisation: less with Heun than with Euler, less on a finer grid."""
    exact = cd_loss("heun")
    assert exact < 1e-12  # (1e-6 f)^2 at most, see ExactNet; Heun's error is of order 400^-3 a step, 1e-7 f
    assert cd_loss("euler") > 100 * exact
    assert cd_loss("heun", nodes=18) > 100 * exact
    assert cd_loss("heun", error=0.01) > 1e-5  # f has the data's variance everywhere: E (0.01 f)^2 = 1e-4 / 4


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_cd_loss_at_the_exact_function_is_the_teachers_error_alone(solver: str) -> None:
    """A pair differs by (gain of the solver's step - gain of the flow) x_i, times the gain of f at sigma_(i+1), on each of 17 intervals."""
    teacher, method = linear_teacher(), get("distiller", "cd").make(teacher_solver=solver)
    (phase,), eps = method.phases(), teacher.sigma_range[0]
    levels, boundary = make_grid("polynomial", 17, teacher.sigma_range).sigmas, ConsistencyPrecond(EDM.sigma_data, eps)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watched(ExactNet):
        def forward(self, x, noise, cond):
            seen.append((x, torch.exp(4 * noise.double())))
            return super().forward(x, noise, cond)

    def gain(sigma):
        return np.sqrt((V + eps**2) / (V + sigma**2))

    nets = [{"student": Watched(gain, boundary)}, {"target": ExactNet(gain, boundary)}]
    found = loss_of(method, State(teacher, *nets, phase))
    ((scaled, sigma),) = seen
    i = np.abs(np.log(levels)[:, None] - np.log(sigma.numpy())).argmin(0)
    assert set(i) == set(range(17))  # each interval is among 1024 draws
    flow, one = Gaussian(torch.zeros(()), torch.tensor(V**0.5, dtype=torch.float64), (1, 4, 4)), torch.ones(1, 1, 4, 4, dtype=torch.float64)
    gaps = []
    for a, b in pairwise(levels):
        plan = get("solver", solver).make().plan(TimeGrid([a, b]))
        gaps.append(float((run(plan, flow, one)[plan.states[-1]] - flow.flow(one, a, b)).mean()) * gain(b))
    x = scaled.flatten(1).numpy() / boundary.coefficients(levels[i])[2][:, None]
    # f is known to 1e-6, see ExactNet, and the largest of these gaps are of 1e-3 (heun) or more.
    assert found == pytest.approx(np.mean((np.array(gaps)[i, None] * x) ** 2), rel=5e-3)


def test_one_teacher_steps_gains_on_gaussian_data_are_the_tabulated_ones() -> None:
    """One step with the exact D of Gaussian data, v = 1/4, on CD's 18-node grid, and the exact flow; computed independently."""
    teacher = Gaussian(torch.zeros(()), torch.tensor(V**0.5, dtype=torch.float64), (1, 4, 4))
    levels, x = make_grid("polynomial", 17, teacher.sigma_range).sigmas, torch.ones(1, 1, 4, 4, dtype=torch.float64)
    table = {
        0: (0.71983575, 0.71983871, 0.71983788),
        5: (0.65124981, 0.65146479, 0.65138987),
        11: (0.71464523, 0.76674998, 0.75507010),
        16: (0.99983358, 0.99989468, 0.99989468),
    }
    for i, gains in table.items():
        moved = [teacher.flow(x, levels[i], levels[i + 1])]
        for name in ("heun", "euler"):
            plan = get("solver", name).make().plan(TimeGrid(levels[i : i + 2]))
            moved.insert(0, run(plan, teacher, x)[plan.states[-1]])
        found = [float(state.mean()) for state in moved]
        np.testing.assert_allclose(found, gains, rtol=1e-7, atol=0)  # eight printed digits
