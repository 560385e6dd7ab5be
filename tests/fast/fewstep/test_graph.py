"""Whole runs as CUDA graphs: what is copied between replays, and when a plain run stands in. The capture itself needs a GPU."""

import warnings
from dataclasses import replace

import pytest
import torch

from fewstep.cond import Cond
from fewstep.errors import UsageError
from fewstep.grid import make_grid
from fewstep.guidance import guide
from fewstep.noise import EDMNoise, PhiloxNoise
from fewstep.plugins import get
from fewstep.sampling import graph
from fewstep.sampling.plan import interpret
from fewstep.sampling.runner import run
from support.branches import PICTURED, branched
from support.denoisers import COND, DENOISERS, SEEDS, network, state
from support.published import X

PLAN = get("solver", "dpmpp_2m_sde").make().plan(make_grid("polynomial", 4, (0.02, 20.0)))
LAST = PLAN.states[-1]


@pytest.fixture
def recorded(monkeypatch):
    """A capture on the CPU: a replay runs the same body again and puts its outputs where the first ones were, as CUDA does."""
    captures = []

    def capture(body, device):
        outputs = body()
        captures.append(body)

        def launch():
            for name, value in body().items():
                outputs[name].copy_(value)

        return outputs, launch

    monkeypatch.setattr(graph, "capture", capture)
    monkeypatch.setattr(graph, "obstacle", lambda bound, noise: None)
    return captures


def fresh_plan():
    return get("solver", "dpmpp_2m_sde").make().plan(make_grid("polynomial", 4, (0.02, 20.0)))


@torch.no_grad()
def test_replays_follow_state_seeds_and_condition(recorded):
    """Every replay is the plain run of its own inputs, bit for bit; one capture serves them, and earlier results stay."""
    plan, denoiser = fresh_plan(), guide(network(), 2.0)
    results = []
    for k in range(3):
        noise, cond = PhiloxNoise(SEEDS + k), Cond(label=(COND.label + k) % 3, scalars={"w": torch.full((3,), float(k))})
        found = run(plan, denoiser, state(k), noise, cond, keep=["x[1]"], graph=True)
        expected = run(plan, denoiser, state(k), noise, cond, keep=["x[1]"])
        assert found.keys() == expected.keys()
        results.append((found, expected))
    for found, expected in results:
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(recorded) == 1
    assert not torch.equal(results[0][0][LAST], results[1][0][LAST])


@torch.no_grad()
def test_noise_is_fresh_with_new_seeds_and_the_same_with_old_ones(recorded):
    plan = fresh_plan()
    first, other, again = (run(plan, DENOISERS["edm"], state(), PhiloxNoise(s), COND, graph=True)[LAST] for s in (SEEDS, SEEDS + 5, SEEDS))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@torch.no_grad()
def test_another_shape_or_kind_of_condition_is_another_capture(recorded):
    plan, denoiser = fresh_plan(), network()
    run(plan, denoiser, state(), PhiloxNoise(SEEDS), COND, graph=True)
    run(plan, denoiser, state(), PhiloxNoise(SEEDS), graph=True)
    run(plan, denoiser, state()[:2], PhiloxNoise(SEEDS[:2]), COND[:2], graph=True)
    run(plan, denoiser, state(1), PhiloxNoise(SEEDS), COND, graph=True)
    assert len(recorded) == 3


@torch.no_grad()
def test_a_capture_that_fails_is_said_once_and_the_run_is_plain(monkeypatch):
    def capture(body, device):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graph, "capture", capture)
    monkeypatch.setattr(graph, "obstacle", lambda bound, noise: None)
    plan = fresh_plan()
    with pytest.warns(UserWarning, match="sampling without a CUDA graph, since operation not permitted when stream is capturing$"):
        found = run(plan, DENOISERS["edm"], state(), PhiloxNoise(SEEDS), COND, graph=True)[LAST]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = run(plan, DENOISERS["edm"], state(), PhiloxNoise(SEEDS), COND, graph=True)[LAST]
    assert torch.equal(found, again)
    expected = interpret(plan, DENOISERS["edm"], state(), PhiloxNoise(SEEDS), COND)[LAST]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # float32 through four network passes


@torch.no_grad()
def test_without_a_gpu_there_is_one_warning():
    with pytest.warns(UserWarning, match="CUDA graphs need a CUDA device, and x is on cpu") as said:
        run(fresh_plan(), DENOISERS["edm"], state(), PhiloxNoise(SEEDS), COND, graph=True)
    assert len(said) == 1


class OnCuda:
    """What `obstacle` looks at."""

    device, draws = torch.device("cuda", 0), True


def test_what_cannot_be_captured():
    with torch.no_grad():
        assert graph.obstacle(OnCuda(), PhiloxNoise(SEEDS)) is None
        assert "EDMNoise draws on the host; use PhiloxNoise" in graph.obstacle(OnCuda(), EDMNoise(SEEDS))
    assert "gradients are recorded" in graph.obstacle(OnCuda(), None)


@torch.no_grad()
def test_new_weights_are_a_new_capture(recorded):
    """Where they lie, and not what they are: trained in place they stay."""
    plan, denoiser = fresh_plan(), network()
    for change in (lambda p: None, lambda p: p.mul_(0.5), lambda p: setattr(p, "data", p.data.clone())):
        for p in denoiser.net.parameters():
            change(p)
        found = run(plan, denoiser, state(), PhiloxNoise(SEEDS), COND, graph=True)[LAST]
        assert torch.equal(found, run(plan, denoiser, state(), PhiloxNoise(SEEDS), COND)[LAST])
    assert len(recorded) == 2
    denoiser.net.eval()
    run(plan, denoiser, state(), PhiloxNoise(SEEDS), COND, graph=True)
    assert len(recorded) == 3


@torch.no_grad()
def test_replays_refuse_and_read_seeds_as_plain_runs_do(recorded):
    plan = fresh_plan()
    run(plan, DENOISERS["edm"], state(), PhiloxNoise(SEEDS.int() % 100), COND, graph=True)
    found = run(plan, DENOISERS["edm"], state(), PhiloxNoise(SEEDS), COND, graph=True)[LAST]
    assert torch.equal(found, run(plan, DENOISERS["edm"], state(), PhiloxNoise(SEEDS), COND)[LAST])
    with pytest.raises(UsageError, match=r"the noise has seeds \[1\] for 3 samples"):
        run(plan, DENOISERS["edm"], state(), PhiloxNoise(SEEDS[:1]), COND, graph=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: that CUDA captures and replays a trajectory was not checked")
@torch.no_grad()
def test_a_captured_trajectory_is_the_plain_one():
    for name in ("edm", "guided", "clipped"):
        plan, denoiser = fresh_plan(), DENOISERS[name]
        base = denoiser
        while not hasattr(base, "net"):
            base = base.base
        base.net.cuda()
        try:
            for k in range(3):
                x, noise, cond = state(k).cuda(), PhiloxNoise(SEEDS.cuda() + k), COND.to("cuda")
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    found = run(plan, denoiser, x, noise, cond, graph=True)[LAST]
                torch.testing.assert_close(found, run(plan, denoiser, x, noise, cond)[LAST])
        finally:
            base.net.cpu()


@torch.no_grad()
def test_replays_follow_the_picture(recorded):
    """What a branch made of the picture is copied into the graph like the rest of the condition."""
    plan, denoiser = fresh_plan(), branched("t2i")
    for k in range(3):
        cond = replace(PICTURED, image=PICTURED.image / (k + 1))
        found = run(plan, denoiser, 20 * X, PhiloxNoise(SEEDS[:2]), cond, graph=True)[LAST]
        assert torch.equal(found, run(plan, denoiser, 20 * X, PhiloxNoise(SEEDS[:2]), cond)[LAST])
    assert len(recorded) == 1
