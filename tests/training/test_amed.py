"""AMED: its predictor, the features and gradients it needs, and what a fit gains. (Published outputs are in the certificate.)"""

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

from bench.certificate.checks.parity import VECTORS, TwoModes
from bench.training.engine import Engine, Settings
from fewstep.cond import Cond
from fewstep.denoiser import Preconditioned, feature_size, with_features
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import TimeGrid, make_grid
from fewstep.guidance import guide
from fewstep.nets.predictor import StepPredictor
from fewstep.noise import Rng
from fewstep.plugins import get
from fewstep.precond import EDMPrecond
from fewstep.sampling.plan import with_afs
from fewstep.sampling.runner import run
from fewstep.wrappers import Mapped, dynamic_threshold
from methods.solver import Fitting
from methods.solvers.amed.training import Training
from methods.training import Phase, State
from support.tiny import CLASSES, SHAPE, mixture_data, network

RANGE = (0.002, 80.0)
TEACHER, DATA = mixture_data()
NETWORK = network(DATA)
X = Rng((5, 0)).normal((3, *SHAPE))
LABELS = Cond(label=torch.tensor([0, 1, 0]))


@pytest.mark.parametrize(("scales", "count"), [((0.0, 0.0), 8929), ((0.01, 0.0), 8950), ((0.0, 0.2), 8950), ((0.01, 0.2), 8971)])
def test_the_predictor_of_64_features_has_the_published_size(scales, count):
    assert sum(p.numel() for p in StepPredictor(64, *scales).parameters()) == count  # arXiv 2312.00094, released code


def test_the_predictor_starts_as_published():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = StepPredictor(64, 0.01, 0.2)
    assert not any(p.any() for name, p in net.named_parameters() if name.endswith("bias"))
    assert float(net.map_layer0.weight.detach().abs().max()) <= math.sqrt(6 / 16)  # xavier uniform of 8 to 8
    for layer, inputs, spread in ((net.enc_layer0, 64, 0.05), (net.enc_layer1, 128, 0.2)):
        found = float(layer.weight.detach().std() * math.sqrt(inputs))
        assert_allclose(found, 1.0, atol=spread)  # kaiming normal of gain 1: 1 / sqrt(2 n) over 8192 and 512 draws, times 6


def test_the_predictor_stays_in_its_ranges_and_reads_levels_and_features():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = StepPredictor(4, 0.01, 0.2)
    with torch.no_grad():
        net.fc_scale_dir.weight.zero_()[:, 0] = 1e4  # one feature drives it far into saturation, either way
    h, low, high = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)), torch.tensor(0.5), torch.tensor(3.0)
    r, c, a = net(h, high, low)
    assert ((r > 0) & (r < 1)).all()
    assert ((c >= 0.99) & (c <= 1.01)).all()
    assert_close(c.detach().max() - c.detach().min(), torch.tensor(0.02, dtype=torch.float64), atol=1e-6, rtol=0)  # both ends are reached
    assert ((a > 0.8) & (a < 1.2)).all()
    assert r.std() > 0  # by the features
    assert not torch.equal(net(h, high, low)[0], net(h, low, high)[0])  # the two levels have different roles
    assert_close(net(h[:, :0], high, low), net(torch.zeros(50, 4), high, low))  # no features are zeros
    plain = StepPredictor(0, 0.0, 0.0)
    assert all(torch.equal(scale, torch.ones(2, dtype=torch.float64)) for scale in plain(h[:2, :0], high, low)[1:])


def test_the_levels_are_embedded_as_sines_then_cosines():
    net = StepPredictor(0, 0.0, 0.0)
    with torch.no_grad():
        net.map_layer0.weight.copy_(torch.eye(8))
        phase = 3.0 * 10000.0 ** (-torch.arange(4) / 3)
        expected = torch.nn.functional.silu(torch.cat([phase.sin(), phase.cos()]))
        assert_close(net._embedded(torch.tensor(3.0), 2), expected.expand(2, 8))


def test_features_come_with_the_same_call():
    d, features = with_features(NETWORK, X, 0.7, LABELS)
    assert torch.equal(d, NETWORK(X, 0.7, LABELS))
    assert feature_size(NETWORK) == 4  # 4 x 4 pixels, halved once
    deepest = []
    handle = NETWORK.net.get_submodule("mid_attention").register_forward_hook(lambda module, inputs, out: deepest.append(out))
    NETWORK(X, 0.7, LABELS)
    handle.remove()
    assert_close(features, deepest[0].mean(dim=1).flatten(1))


def test_wrappers_hand_features_on():
    own = with_features(NETWORK, X, 0.7, LABELS)[1]
    guided = guide(NETWORK, 3.0)
    d, features = with_features(guided, X, 0.7, LABELS)
    assert_close(d, guided(X, 0.7, LABELS))
    assert_close(features, own)  # of the conditional half
    assert_close(with_features(guide(NETWORK, 3.0, ref=TEACHER), X, 0.7, LABELS)[1], own)
    assert_close(with_features(guide(NETWORK, 3.0, interval=(1.0, 2.0)), X, 0.7, LABELS), (NETWORK(X, 0.7, LABELS), own))
    mapped = Mapped(NETWORK, dynamic_threshold)
    assert_close(with_features(mapped, X, 0.7, LABELS), (mapped(X, 0.7, LABELS), own))
    assert (feature_size(guided), feature_size(mapped), feature_size(TEACHER), feature_size(guide(TEACHER, 2.0))) == (4, 4, 0, 0)
    with pytest.raises(UsageError, match="has no features"):
        with_features(guide(TEACHER, 2.0), X, 0.7, LABELS)


class Sine(torch.nn.Module):
    """F = sin(w x + 3 c_noise), a network whose derivatives are written down at once."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x, c_noise, cond):
        return torch.sin(self.w * x + 3 * c_noise.double().view(-1, 1, 1, 1))


def test_gradients_reach_a_noise_level_through_preconditioning_and_network():
    """What the scale of the level is trained by; the value is that of a level without gradient."""
    model = Preconditioned(Sine(), EDMPrecond(0.5), SHAPE, 0, RANGE)
    sigma, x = torch.tensor([0.3, 2.0, 30.0], dtype=torch.float64, requires_grad=True), X.double()
    out = model(x, sigma)
    assert torch.equal(out, model(x, sigma.detach()))
    weights = Rng((5, 1)).normal(X.shape).double()
    (slope,) = torch.autograd.grad((weights * out).sum(), sigma)
    s = sigma.view(-1, 1, 1, 1)
    total = torch.sqrt(s**2 + 0.25)  # D = c_skip x + c_out F(c_in x, log sigma / 4) of EDM, in torch
    exact = 0.25 / total**2 * x + 0.5 * s / total * torch.sin(2 * x / total + 0.75 * torch.log(s))
    (expected,) = torch.autograd.grad((weights * exact).sum(), sigma)
    assert_close(slope, expected, rtol=1e-5, atol=1e-5)  # the network is told c_noise in float32


def fit_task(teacher, tmp_path, steps: int, afs: bool, end: str = "sigma_min") -> Fitting:
    def train(method):
        engine = Engine(method, teacher, DATA, tmp_path, Settings(progress=False))
        return engine.run().exports[method.phases()[-1].name]

    return Fitting(teacher, lambda n: make_grid("polynomial", n, RANGE, end), steps, afs, 0, "cpu", train)


def end_error(plan) -> float:
    """Root mean square distance, on fresh seeds, from Heun's 100 steps."""
    x = 80 * Rng((5, 2)).normal((256, *SHAPE))
    cond = Cond(label=Rng((5, 3)).integers(CLASSES, (256,)))
    fine = get("solver", "heun").make().plan(make_grid("polynomial", 100, RANGE))
    with torch.no_grad():
        out, exact = (run(p, TEACHER, x, cond=cond)[p.states[-1]] for p in (plan, fine))
    return float((out - exact).square().mean().sqrt())


@pytest.mark.parametrize(("name", "part"), [("amed_plugin", 1.0), ("amed_plugin_ipndm_2", 0.5), ("amed_plugin_euler", 1.0)])
def test_a_fitted_plugin_beats_its_base_at_five_evaluations(name, part, tmp_path):
    solver = get("solver", name).make(batches=60)
    grid, base = make_grid("polynomial", 3, RANGE), get("solver", solver.base).make()
    plan = with_afs(solver.bound(solver.fit(fit_task(TEACHER, tmp_path, 3, True))).plan(grid))
    stub = with_afs(solver.bound(solver.stub()).plan(grid))
    plain = base.plan(make_grid("polynomial", 5, RANGE)), with_afs(base.plan(make_grid("polynomial", 6, RANGE)))
    assert {p.nfe(TEACHER) for p in (plan, stub, *plain)} == {5}
    assert end_error(plan) < part * min(end_error(p) for p in plain)
    assert end_error(plan) < 0.9 * end_error(stub)


def test_a_fit_to_a_network_reads_its_features_and_is_bound_to_model_and_grid(tmp_path):
    solver = get("solver", "amed_plugin").make(batches=2, batch_size=4)
    artefact = solver.fit(fit_task(NETWORK, tmp_path / "one", 3, True))
    assert int(artefact["features"]) == 4
    again = solver.fit(fit_task(NETWORK, tmp_path / "two", 3, True))
    assert all(torch.equal(artefact[key], again[key]) for key in artefact)
    plan = solver.bound(artefact).plan(make_grid("polynomial", 3, RANGE))
    out = run(with_afs(plan), NETWORK, 80 * X, cond=LABELS)[plan.states[-1]]
    assert out.isfinite().all()
    assert not any(p.requires_grad for p in solver.bound(artefact).predictor.parameters())
    with pytest.raises(UsageError, match="fit the solver to this model"):
        run(plan, TEACHER, 80 * X, cond=LABELS)
    with pytest.raises(UsageError, match=r"was fitted for the levels 80 .* fit it to this grid"):
        solver.bound(artefact).plan(make_grid("logsnr", 3, RANGE))
    with pytest.raises(UsageError, match="fc_scale_time"):
        get("solver", "amed_plugin").make(scale_time=0.0).bound(artefact)


@pytest.mark.parametrize(
    ("base", "continues"), [("amed", False), ("euler", False), ("dpm_2s", False), ("ipndm_4", True), ("dpmpp_3m", True)]
)
def test_single_steps_are_trained_from_the_teachers_states_and_multisteps_from_their_own(base, continues):
    """Another predictor during the first interval only: does the loss of the second one notice?"""
    grids = (make_grid("polynomial", n, RANGE) for n in (2, 6))
    training = Training(base, (0.0, 0.0), "heun", *grids, afs=False, phase=Phase("amed", 1, 8, {}))
    net = StepPredictor(0, 0.0, 0.0)
    with torch.no_grad():
        net.fc_r.weight.zero_()  # r = 1/2 at first

    def second_loss(bias: float) -> float:
        losses = training.losses(State(TEACHER, {"student": net}, {}, training.phase), DATA.draw(8, Rng((5, 4))), Rng((5, 5)))
        with torch.no_grad():
            net.fc_r.bias.fill_(bias)
        first = next(losses)
        assert float(torch.autograd.grad(first.value, net.fc_r.bias)[0].abs()) > 0
        with torch.no_grad():
            net.fc_r.bias.zero_()
        return float(next(losses).value.detach())

    assert (second_loss(0.0) != second_loss(1.0)) == continues


def test_the_scale_of_the_level_is_trained_through_the_network():
    grids = (make_grid("polynomial", n, RANGE) for n in (2, 4))
    training = Training("amed", (0.01, 0.2), "heun", *grids, afs=True, phase=Phase("amed", 1, 8, {}))
    net = training.build(NETWORK)["student"]
    losses = training.losses(State(NETWORK, {"student": net}, {}, training.phase), DATA.draw(8, Rng((5, 4))), Rng((5, 5)))
    for loss in losses:
        loss.value.backward(inputs=list(net.parameters()))
        for head in ("fc_r", "fc_scale_dir", "fc_scale_time"):
            grad = net.get_parameter(f"{head}.weight").grad
            assert grad is not None
            assert grad.abs().max() > 0, head


def test_a_step_to_zero_is_one_euler_evaluation():
    for name in ("amed", "amed_plugin", "amed_plugin_dpmpp_3m"):
        solver = get("solver", name).make()
        plan = solver.bound(solver.stub()).plan(TimeGrid([80.0, 1.0, 0.0]))
        assert [e.sigma for e in plan.evals] == [80.0, "as[0]", 1.0]
        kept = run(plan, TEACHER, 80 * X.double(), cond=LABELS, keep=("D[1]",))
        assert_close(kept["x[2]"], kept["D[1]"])


def test_levels_and_coefficients_are_named_per_sample():
    """r of its own for each sample: the same as two runs with one r each."""
    solver = get("solver", "amed_plugin").make()
    grid = make_grid("polynomial", 2, RANGE)
    apart = [solver.bound({"fixed": torch.tensor([r, 1.005, 1.1])}).plan(grid) for r in (0.4, 0.6)]
    values = [torch.tensor(v, dtype=torch.float64) for v in ([0.4, 0.6], [1.005, 1.005], [1.1, 1.1])]
    mixed = replace(solver.bound(solver.stub()), predictor=lambda h, s, to: tuple(values))
    out = run(mixed.plan(grid), TEACHER, 80 * X[:2].double())["x[2]"]
    rows = [run(plan, TEACHER, 80 * X[i : i + 1].double())["x[2]"] for i, plan in enumerate(apart)]
    assert_close(out, torch.cat(rows), atol=1e-6, rtol=1e-6)  # 0.4 and 1.005 are float32 in one of them


def test_what_cannot_be_is_refused_in_one_line(tmp_path):
    solver = get("solver", "amed").make()
    with pytest.raises(UsageError, match=r"bound\(fit\(\.\.\.\)\)"):
        solver.plan(make_grid("polynomial", 3, RANGE))
    with pytest.raises(UsageError, match="must contain the levels of this one"):
        solver.fit(fit_task(TEACHER, tmp_path, 3, False, "zero"))
    for end in ("zero_last", "zero"):
        with pytest.raises(Unreachable, match="one step to sigma 0"):
            solver.fit(fit_task(TEACHER, tmp_path, 1, False, end))
    with pytest.raises(Unreachable, match="AFS on a one-step grid"):
        solver.fit(fit_task(TEACHER, tmp_path, 1, True))
    for options, message in (
        ({"base": "ipndm_9"}, "no base solver 'ipndm_9'; did you mean ipndm_4"),
        ({"teacher": "hoin"}, "unknown solver 'hoin'"),
        ({"teacher": "gits"}, "needs no fit, got 'gits'"),
        ({"teacher": "ddpm"}, "draws no noise, got 'ddpm'"),
        ({"batches": 0}, "batches and batch_size >= 1"),
        ({"batch_size": 0}, "batches and batch_size >= 1"),
    ):
        with pytest.raises(UsageError, match=message):
            get("solver", "amed_plugin").make(**options)
    guided, grid = guide(TEACHER, 2.0, interval=(0.5, 2.0)), make_grid("polynomial", 3, RANGE)
    with pytest.raises(UsageError, match="one sigma per call"):
        run(solver.bound(solver.stub()).plan(grid), guided, 80 * X, cond=LABELS)


@pytest.mark.parametrize(("steps", "afs", "end"), [(3, False, "zero"), (1, False, "zero_last"), (1, True, "sigma_min")])
def test_a_check_refuses_what_a_fit_refuses_before_any_training(steps, afs, end):
    def training(method):
        raise AssertionError("trained before the task was checked")

    solver, task = (
        get("solver", "amed").make(),
        Fitting(TEACHER, lambda n: make_grid("polynomial", n, RANGE, end), steps, afs, 0, "cpu", training),
    )
    for refused in (lambda: solver.check(steps, task.grid, afs), lambda: solver.fit(task)):
        with pytest.raises(UsageError):
            refused()
    solver.check(3, lambda n: make_grid("polynomial", n, RANGE, "zero_last"), True)


def test_a_training_that_is_not_the_published_one_says_so():
    solver = get("solver", "amed").make()
    assert solver.claims.deviations == ("trained on 5120 trajectories; the published predictors on 10000",)
    assert solver.bound(solver.stub()).claims == solver.claims
    assert get("solver", "amed").make(batches=1000, batch_size=10).claims.deviations == ()


def test_a_fit_with_afs_is_cheaper_by_one_evaluation():
    """A Heun teacher of 2 x 2 steps makes 8 evaluations, the predictor's run 4: three passes each, one evaluation less with AFS."""
    solver = get("solver", "amed").make(batches=1, batch_size=1)
    assert (solver.passes(2), solver.passes(2, afs=True)) == (8 + 12, 8 + 9)


def test_the_teachers_grid_may_end_at_zero(tmp_path):
    solver = get("solver", "amed_plugin").make(batches=1, batch_size=2)
    artefact = solver.fit(fit_task(TEACHER, tmp_path, 3, False, "zero_last"))
    assert_allclose(artefact["levels"].numpy(), make_grid("polynomial", 3, RANGE, "zero_last").sigmas)
    assert np.all([torch.isfinite(v).all() for v in artefact.values()])


@pytest.mark.parametrize("record", [r for r in json.loads(VECTORS.read_text())["vectors"] if r["solver"] == "amed_plugin_ipndm_2"], ids=str)
def test_the_vector_that_no_published_code_prints_is_a_plain_loop_s(record):
    """arXiv 2312.00094's plug-in on two-step Adams-Bashforth, written out: two sub-steps an interval, c on all of the second one."""
    r, c, a = record["artefact"]["fixed"]
    t = make_grid("polynomial", record["nodes"] - 1, tuple(record["range"])).sigmas
    x, slopes, model = t[0] * torch.tensor([[-1.5, -0.5, 0.25, 1.0]], dtype=torch.float64), [], TwoModes()
    for here, there in pairwise(t):
        mid = there**r * here ** (1 - r)
        for level, to, asked, scale in ((here, mid, here, 1.0), (mid, there, a * mid, c)):
            d = x / np.sqrt(1 + level**2) if record["afs"] and not slopes else (x - model(x, asked)) / level
            x = x + scale * (to - level) * ((3 * d - slopes[-1]) / 2 if slopes else d)
            slopes.append(d)
    assert_close(x[0], torch.tensor(record["output"], dtype=torch.float64), atol=5.1e-11, rtol=0)  # ten printed decimals
