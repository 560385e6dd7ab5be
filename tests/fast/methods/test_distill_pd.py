"""Progressive distillation in the form and on the grid of its teacher: the numbers of the cosine schedule on Gaussian data, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

from fewstep.analytic import Gaussian
from fewstep.cond import NULL, Cond
from fewstep.data.source import Batch
from fewstep.denoiser import Preconditioned
from fewstep.errors import UsageError
from fewstep.grid import TimeGrid, make_grid
from fewstep.guidance import guide
from fewstep.nets.loading import build, load_denoiser, precond_of
from fewstep.nets.readers.card import save_weights
from fewstep.nets.x0_eps import X0Eps
from fewstep.noise import Rng
from fewstep.plugins import get
from fewstep.precond import EDMPrecond, ProcessPrecond
from fewstep.sampling.plan import prediction
from fewstep.sampling.runner import run
from fewstep.schedule import Cosine
from methods.distill.pd import one_step_target
from methods.losses.distances import l2
from methods.losses.weights import weight
from methods.start import WarmStarted
from methods.training import State
from support.each import each
from support.exactnet import V, gaussian_batch, loss_of, posterior
from support.forms import FORMS, RANGE, SHAPE, TableNet, alpha, denoiser, grid_of
from support.tiny import mixture_data, network

EXACT = Gaussian(torch.zeros(()), torch.tensor(V**0.5, dtype=torch.float64), SHAPE, sigma_range=RANGE)
# x_out / z_1 of so many DDIM steps with the exact D of N(0, 1/4), computed independently.
GAINS = {1: 0.00001135, 2: 0.20000227, 4: 0.33343842, 8: 0.41137335, 16: 0.45392657, 64: 0.48809362, 256: 0.49699697, 1024: 0.49924755}


def test_the_cosine_grid_is_even_in_native_time_with_exact_ends():
    sigmas = make_grid("cosine", 8, RANGE).sigmas
    assert (sigmas[0], sigmas[-1]) == (RANGE[1], RANGE[0])
    assert_allclose(Cosine().t(sigmas), np.linspace(1, 0, 9), atol=1e-15)  # float64's rounding of 1
    assert_allclose(-2 * np.log(sigmas[[2, 4, 6, 7]]), [-1.762619, 0, 1.762619, 3.229426], atol=1e-6)  # six printed decimals
    assert_allclose(grid_of(4), grid_of(8)[::2], rtol=1e-9)  # 1 - t is rounded to 1e-16 of 1, and sigma = tan of that near its pole


@each("steps", GAINS)
def test_ddim_gains_on_the_cosine_schedule(steps: int):
    plan = get("solver", "euler").make().plan(make_grid("cosine", steps, RANGE, "zero_last"))
    z = torch.ones(1, *SHAPE, dtype=torch.float64)
    out = run(plan, EXACT, z / alpha(np.array(RANGE[1])))[plan.states[-1]]
    assert_close(float(out.mean()), GAINS[steps], rtol=0, atol=5.1e-9)  # eight printed decimals


def test_the_targets_of_one_halving():
    """z_t = 1.3, N = 4: two teacher steps, x~ and v~ = a e~ - s x~, at t = i / 4."""
    table = {  # i: z_t'', x~, the teacher's second prediction, v~
        4: (1.21376946, 0.03328616, 0.06402464, -0.03322714),
        3: (1.07094068, 0.18337847, 0.21678772, 0.34002292),
        2: (0.94367661, 0.44364008, 0.48474324, 0.67259818),
        1: (0.95785648, 0.95780724, 0.95782188, 0.63554236),
    }
    levels = make_grid("cosine", 8, RANGE).sigmas
    for i, (z_to, clean, second, v) in table.items():
        nodes = levels[8 - 2 * i : 11 - 2 * i]
        a, s = alpha(nodes[0]), nodes[0] * alpha(nodes[0])
        x = torch.full((1, *SHAPE), 1.3 / a, dtype=torch.float64)
        found = float(one_step_target(EXACT, TimeGrid(nodes), x, NULL).mean())
        assert_close(found, clean, rtol=0, atol=5.1e-9)  # half of the last printed decimal
        assert_close(a * (1.3 - a * found) / s - s * found, v, rtol=0, atol=5.1e-9)  # half of the last printed decimal
        plan = get("solver", "euler").make().plan(TimeGrid(nodes))
        kept = run(plan, EXACT, x, keep=[prediction(1)])
        assert_close(float(kept[prediction(1)].mean()), second, rtol=0, atol=5.1e-9)  # half of the last printed decimal
        assert_close(float(kept[plan.states[-1]].mean() * alpha(nodes[2])), z_to, rtol=0, atol=5.1e-9)  # half of the last printed decimal
        # One step of the student with x~ is the teacher's two.
        once = x + (nodes[2] - nodes[0]) / nodes[0] * (x - found)
        assert_close(once, kept[plan.states[-1]], rtol=1e-8, atol=1e-8)  # what the invariant was checked to
    # Ending at 0 instead of at the clipped level, which is the override of the last step: the teacher's second prediction itself.
    assert_close(float(one_step_target(EXACT, TimeGrid(grid_of(8)[-3:]), x, NULL).mean()), 0.95782188, rtol=0, atol=5.1e-9)


def targets(steps: int, taught: Preconditioned) -> np.ndarray:
    """x~ / z at all nodes of the N-step grid, by the method's own target."""
    levels = grid_of(2 * steps)
    grid = TimeGrid(np.stack([levels[0:-2:2], levels[1:-1:2], levels[2::2]]))
    z = torch.ones(steps, *SHAPE, dtype=torch.float64)
    x = z / torch.from_numpy(alpha(grid.sigmas[0])).view(-1, 1, 1, 1)
    return one_step_target(taught, grid, x, NULL).mean((1, 2, 3)).numpy()


@pytest.mark.parametrize("form", FORMS)
def test_the_chain_of_exact_students_keeps_the_teachers_gain(form: str):
    """8 -> 4 -> 2 -> 1 in every form: the tabulated targets, loss 0 at each exact student and not at its teacher, the gain of 8."""
    method = get("distiller", "pd").make(start=4, grid="cosine")
    known = {4: [0.02560474, 0.14106036, 0.34126160, 0.73678606], 2: [0.08775605, 0.53483675], 1: [0.41137335]}
    precond = ProcessPrecond(Cosine(), form)
    sigmas = grid_of(8)[:-1]
    taught = TableNet(sigmas, posterior(sigmas), precond)
    for phase in method.phases():
        steps = int(phase.name)
        gains = targets(steps, denoiser(taught, form))
        # eps divides by alpha = 4.5e-5 twice: what float64 knows of D there is 22026^2 2^-53 = 5e-8 of z.
        assert_allclose(gains, known[steps], rtol=0, atol=6e-8 if form == "eps" else 5.1e-9)
        nodes = grid_of(steps)[:-1]
        student = TableNet(nodes, gains * alpha(nodes), precond)
        nets = {"teacher": taught, "student": student}
        state = State(denoiser(taught, form), nets, {}, phase)
        assert loss_of(method, state) < 1e-12  # (1e-6 x)^2: float64, and eps as above
        wrong = TableNet(nodes, posterior(nodes), precond)
        assert loss_of(method, State(state.teacher, nets | {"student": wrong}, {}, phase)) > 1e-4
        plan = get("solver", "euler").make().plan(make_grid(method.sampling().grid, steps, RANGE, method.sampling().end))
        x = torch.ones(1, *SHAPE, dtype=torch.float64) / alpha(np.array(RANGE[1]))
        whole = float(run(plan, denoiser(student, form), x)[plan.states[-1]].mean())
        assert_close(whole, 0.4113733542, rtol=0, atol=1e-6 if form == "eps" else 1e-10)  # printed; eps loses 22026^2 roundings at the top
        taught = student


def test_a_missing_override_of_the_last_step_would_show():
    """Ending at t = 0 of the clipped schedule, sigma = e^-10, and leaving out the override of x~ changes the gains in the fifth digit."""
    wanted = {4: 0.4113670669, 2: 0.4113575084, 1: 0.4113428176}
    levels = make_grid("cosine", 8, RANGE).sigmas
    precond, nodes = ProcessPrecond(Cosine(), "x0"), levels[:-1]
    taught = TableNet(nodes, posterior(nodes), precond)
    for steps in (4, 2, 1):
        grid = TimeGrid(np.stack([levels[0:-2:2], levels[1:-1:2], levels[2::2]]))
        x = torch.ones(steps, *SHAPE, dtype=torch.float64)
        gains = one_step_target(denoiser(taught, "x0"), grid, x, NULL).mean((1, 2, 3)).numpy()
        levels = levels[::2]
        taught = TableNet(levels[:-1], gains, precond)
        plan = get("solver", "euler").make().plan(TimeGrid(levels))
        last = prediction(steps - 1)
        x = torch.ones(1, *SHAPE, dtype=torch.float64) / alpha(np.array(RANGE[1]))
        total = float(run(plan, denoiser(taught, "x0"), x, keep=[last])[last].mean())
        assert_close(total, wanted[steps], rtol=0, atol=5.1e-11)  # half of the last printed decimal
        assert abs(total - 0.4113733542) > 1e-6  # the tolerance of the chain's test without an override


def test_weights_are_means_over_a_sample_before_the_larger_is_taken():
    """truncated_snr is max(mean x error, mean eps error) per sample, as the released code computes it: not the mean of the larger."""
    x0, n = Rng((1,)).normal((64, *SHAPE)).double(), Rng((2,)).normal((64, *SHAPE)).double()
    sigma = torch.logspace(-2, 2, 64, dtype=torch.float64)
    level = sigma.view(-1, 1, 1, 1)
    x, d = x0 + level * n, x0 + 0.1 * Rng((3,)).normal((64, *SHAPE)).double()
    eps = (x - d) / level
    x_mse, eps_mse = l2(d, x0), l2(eps, n)
    a = 1 / torch.sqrt(1 + level**2)
    v_mse = l2(a * eps - a * level * d, a * n - a * level * x0)
    exact = {"rtol": 1e-10, "atol": 0.0}  # x - d loses 1e-16 x / sigma of eps
    assert_close(weight("truncated_snr")(sigma) * x_mse, torch.maximum(x_mse, eps_mse), **exact)
    assert_close(weight("snr")(sigma) * x_mse, eps_mse, **exact)
    assert_close(weight("snr_plus_1")(sigma) * x_mse, v_mse, **exact)
    assert_close(weight("uniform")(sigma) * x_mse, x_mse, **exact)


def exact_raw(form: str, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """What a perfect network of this form computes from z = alpha x, float64: D of N(0, 1/4)."""
    d = V / (V + sigma**2) * x
    a = 1 / math.sqrt(1 + sigma**2)
    s, e = sigma * a, (x - d) / sigma
    return {"x0": d, "eps": e, "v": a * e - s * d, "x0_eps": s * s * d - a * s * e}[form]


@each("form", FORMS)
@each("t", [1.0, 0.999, 0.75, 0.25, 0.001, 0.0])
def test_forms_are_the_same_denoiser_to_float64(form: str, t: float):
    sigma = float(Cosine().sigma(t))
    x = torch.sqrt(torch.tensor(V + sigma**2)).double() * Rng((1,)).normal((8, *SHAPE)).double()

    class Known(torch.nn.Module):
        anchor = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

        def parameters(self, recurse: bool = True):
            return iter([self.anchor])

        def forward(self, z, time, cond):
            return exact_raw(form, x, sigma)

    wanted, eps = V / (V + sigma**2) * x, max(sigma, 1) ** 2 * 1e-15  # eps: x - sigma F cancels sigma^2 / v in units of D
    # A few roundings of float64, and for eps those of the difference.
    assert_close(denoiser(Known(), form)(x, sigma), wanted, rtol=1e-12 + (eps if form == "eps" else 0), atol=1e-12)


@pytest.mark.parametrize(("form", "worst"), [("x0", 2e-7), ("v", 2e-7), ("x0_eps", 2e-7), ("eps", 1e-2)])
def test_float32_errors_at_zero_snr(form: str, worst: float):
    """At sigma = e^10 in (x, D), float32 against float64 with the same float32 network output.

    x0, v and x0_eps keep D to 2e-7 of its data range; eps subtracts two numbers of 22026 and keeps 1e-2 at best (2^-24 22026 4 = 5e-3).
    The network's input z = c_in x is exact to two roundings in all of them.
    """
    sigma, seen = RANGE[1], []

    class Spy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, z, time, cond):
            seen.append(z)
            return torch.tanh(z) if form != "eps" else z * 0.99999  # eps must be nearly z, or D is of the size of sigma

    x = (sigma * Rng((1,)).normal((256, *SHAPE))).float()
    spy = Spy()
    single = denoiser(spy, form)(x, sigma)
    z = seen[0]
    assert_close(z.double(), x.double() * alpha(np.array(sigma)), rtol=2**-23, atol=0)  # two roundings of float32
    c_skip, c_out, _, _ = ProcessPrecond(Cosine(), form).coefficients(np.asarray(sigma))
    raw = torch.tanh(z) if form != "eps" else z * 0.99999
    double = float(c_skip) * x.double() + float(c_out) * raw.double()
    error = float((single.double() - double).abs().max())
    assert error < worst
    if form == "eps":
        assert error > 1e-4  # the other forms are there for a reason


@pytest.mark.parametrize("form", ["x0", "v", "x0_eps"])
def test_float32_targets_at_zero_snr(form: str):
    """The method's own target from sigma = e^10 down, float32 against float64 with one network."""

    class Smooth(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(1.3))

        def forward(self, z, time, cond):
            return torch.sin(self.weight * z + time.view(-1, 1, 1, 1).to(z))

    net, levels = Smooth(), grid_of(8)
    x = (levels[0] * Rng((1,)).normal((64, *SHAPE))).float()
    single = one_step_target(denoiser(net, form), TimeGrid(levels[:3]), x, NULL)
    double = one_step_target(denoiser(net.double(), form), TimeGrid(levels[:3]), x.double(), NULL)
    assert double.abs().max() > 0.1
    # The state is about sigma_to = 5 at the end of two steps, where float32 is exact to 3e-7; a few roundings of that size.
    assert_close(single.double(), double, rtol=0, atol=4e-6)


def test_the_pair_of_outputs_is_folded_by_the_level_and_bounded():
    """D = s^2 x~ + a (z - s e~), from the network's own two outputs; F is bounded by them; deepest map, scalars and labels pass through."""
    torch.manual_seed(0)
    net = X0Eps(SHAPE, 2, {"channels": (16, 32), "emb": 32})
    torch.nn.init.normal_(net.unet.conv_out.weight, std=0.1)
    d, cond = denoiser(net, "x0_eps"), Cond(label=torch.tensor([0, 1, 2, 1]))
    t = torch.tensor([0.001, 0.3, 0.7, 1.0], dtype=torch.float64)
    a, s = (torch.from_numpy(c).view(-1, 1, 1, 1) for c in Cosine().alpha_sigma(t.numpy()))
    z = Rng((1,)).normal((4, *SHAPE)).double()
    x, sigma = (z / a).float(), torch.from_numpy(Cosine().sigma(t.numpy()))
    clean, eps = net.unet(z.float(), t.float(), cond).double().chunk(2, dim=1)
    assert_close(d(x, sigma, cond).double(), s**2 * clean + a * (z - s * eps), rtol=0, atol=1e-6)  # float32 sums
    out, deepest = net(z.float(), t.float(), cond, features=True)
    assert (out.abs() <= 1.0001 * (clean.abs() + eps.abs())).all()
    assert deepest.mean(1).flatten(1).shape[1] == net.feature_size == d.features
    teacher = get("distiller", "gd").make().build(d)["student"]
    assert torch.equal(teacher(z.float(), t.float(), Cond(cond.label, scalars={"w": torch.ones(4)})), out)
    assert "w" in teacher.embed_scalars


CARD = {"arch": "unet", "config": {"shape": list(SHAPE), "classes": 2, "channels": [16, 32], "emb": 32}, "shape": list(SHAPE)}
CARD |= {"classes": 2, "sigma_data": 0.5, "sigma_range": list(RANGE)}


def test_a_card_tells_the_preconditioning_and_it_is_part_of_the_identity(tmp_path):
    told = {}
    for name, more in (
        ("edm", {}),
        ("v", {"precond": {"schedule": "cosine", "form": "v"}}),
        ("x0", {"precond": {"schedule": "cosine", "form": "x0"}}),
    ):
        torch.manual_seed(0)
        save_weights(tmp_path / f"{name}.safetensors", build(CARD).state_dict(), CARD | more)
        model, told[name] = load_denoiser(tmp_path / f"{name}.safetensors")
        assert model.precond == (ProcessPrecond(Cosine(), name) if more else EDMPrecond(0.5))
    assert len(set(told.values())) == 3


@each(
    ("arch", "precond", "message"),
    [
        ("unet", {"schedule": "cosine"}, "precond has a schedule and a form, got"),
        ("unet", {"schedule": "cosin", "form": "v"}, "unknown schedule 'cosin'; did you mean cosine?"),
        ("unet", {"schedule": "cosine", "form": "epsilon"}, "unknown form 'epsilon' of precond"),
        ("unet", {"schedule": "cosine", "form": "x0_eps"}, "form 'x0_eps' does not go with arch 'unet'"),
        ("x0_eps", {"schedule": "cosine", "form": "v"}, "form 'v' does not go with arch 'x0_eps'"),
    ],
)
def test_a_wrong_preconditioning_is_refused(arch: str, precond: dict, message: str):
    with pytest.raises(UsageError) as err:
        precond_of({**CARD, "arch": arch, "precond": precond})
    assert message in str(err.value)


def test_the_last_phases_may_last_longer():
    assert [p.batches for p in get("distiller", "pd").make(start=8, batches=10, last=2).phases()] == [10, 10, 20, 20]
    assert {p.batches for p in get("distiller", "pd").make(start=8, batches=10).phases()} == {10}


@each(
    ("options", "message"),
    [
        ({"start": 6}, "start must be a power of two, got 6"),
        ({"last": 0}, "got 0; use 1 or 2"),
        ({"grid": "cosin"}, "unknown grid 'cosin'; did you mean cosine?"),
        ({"loss": "l2"}, "pd's loss is distance+weight, got 'l2'"),
        ({"loss": "l2+truncated"}, "unknown weight 'truncated'; did you mean truncated_snr?"),
        ({"loss": "l1+snr"}, "the weight snr is for squared errors, got loss 'l1+snr'; use l2+snr or l1+uniform"),
    ],
)
def test_wrong_options_are_one_line(options: dict, message: str):
    with pytest.raises(UsageError) as err:
        get("distiller", "pd").make(**options)
    assert message in str(err.value)
    assert "\n" not in str(err.value)


def test_pd_needs_no_labels():
    """An unconditional teacher and data without labels: the loss is that of the conditional one, whose network reads none."""
    method = get("distiller", "pd").make(start=2, grid="cosine")
    sigmas = grid_of(4)[:-1]
    net = TableNet(sigmas, posterior(sigmas), ProcessPrecond(Cosine(), "v"))
    values = []
    for classes, cond in ((0, Cond()), (2, gaussian_batch().cond)):
        state = State(denoiser(net, "v", classes), {"student": net, "teacher": net}, {}, method.phases()[0])
        (loss,) = method.losses(state, Batch(gaussian_batch().x0, cond), Rng((7,)))
        values.append(loss.value.item())
    assert values[0] == values[1] > 0


@pytest.mark.parametrize("kind", ["guided", "closed form"])
def test_the_first_phase_is_taught_by_the_teacher_itself(kind: str):
    """Guidance, or a closed form that a warm start stands in for: the network alone teaches from the second phase on."""
    form, data = mixture_data()
    net = network(data)
    teacher = guide(net, 3.0) if kind == "guided" else WarmStarted(form, net)
    method = get("distiller", "pd").make(start=2, loss="l2+uniform")
    nets, batch = {"student": net.net, "teacher": net.net}, data.draw(16, Rng((1,)))
    by_phase = [[next(iter(method.losses(State(t, nets, {}, p), batch, Rng((2,))))).value for p in method.phases()] for t in (teacher, net)]
    assert not torch.isclose(by_phase[0][0], by_phase[1][0], rtol=1e-3)  # far above rounding
    assert_close(by_phase[0][1], by_phase[1][1])
