"""Guided distillation: guided Gaussians in closed form, both stages, both samplers, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fewstep.analytic import Gaussian
from fewstep.cond import Cond
from fewstep.data.source import Batch
from fewstep.denoiser import Preconditioned
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import make_grid
from fewstep.guidance import guide
from fewstep.nets.unet import fourier
from fewstep.noise import PhiloxNoise, Rng
from fewstep.plugins import get
from fewstep.precond import EDMPrecond, ProcessPrecond
from fewstep.sampling.plan import prediction
from fewstep.sampling.runner import run
from fewstep.schedule import Cosine
from fewstep.wrappers import Mapped, clip
from methods.distill.gd import GuidedDistillation
from methods.start import WarmStarted
from methods.training import State
from support.exactnet import V, at_nodes
from support.tiny import mixture_data, network

RANGE = (math.exp(-10), math.exp(10))
SHAPE = (1, 4, 4)
COSINE, EDM = ProcessPrecond(Cosine(), "v"), EDMPrecond(0.6)
NULL_LABEL = 1  # of one class


def gaussian_d(x, sigma, mean, variance):
    """E[x0 | x] for N(mean, variance)."""
    return mean + variance / (variance + sigma**2) * (x - mean)


class Guidable(torch.nn.Module):
    """The network whose D is that of p(x | c) = N(0.5, 0.1) and p(x) = N(0, 0.35); and with `reads_w` D guided with the scalar w."""

    def __init__(self, precond, reads_w: bool = False, off: float = 0.0) -> None:
        super().__init__()
        self.precond, self.reads_w, self.off = precond, reads_w, off
        self.dtype_tag = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, z, time, cond):
        t = time.double().numpy()
        sigma = np.exp(4 * t) if isinstance(self.precond, EDMPrecond) else Cosine().sigma(t)
        c_skip, c_out, c_in, _ = (torch.from_numpy(c).view(-1, 1, 1, 1) for c in self.precond.coefficients(sigma))
        x, s = z / c_in, torch.from_numpy(sigma).view(-1, 1, 1, 1)
        d_c, d_u = gaussian_d(x, s, 0.5, 0.1), gaussian_d(x, s, 0.0, 0.35)
        d = torch.where((cond.label == NULL_LABEL).view(-1, 1, 1, 1), d_u, d_c)
        if self.reads_w:
            d = d_u + (1 + cond.scalars["w"].double().view(-1, 1, 1, 1) + self.off) * (d - d_u)
        return (d - c_skip * x) / c_out


def denoiser(net, precond=EDM, sigma_range=(0.002, 80.0)) -> Preconditioned:
    return Preconditioned(net, precond, SHAPE, 1, sigma_range)


def batch(count: int = 512) -> Batch:
    x0 = 0.5 + 0.1**0.5 * Rng((1,)).normal((count, *SHAPE)).double()
    return Batch(x0, Cond(label=torch.zeros(count, dtype=torch.int64)))


def loss_of(method, state: State, of: Batch, seed: int = 7) -> float:
    (loss,) = method.losses(state, of, Rng((seed,)))
    assert loss.net == "student"
    return loss.value.item()


def test_the_guided_denoiser_of_two_gaussians():
    """t = 0.5 on the cosine schedule, z = 0.3: x_c, x_u and x_w = (1 + w) x_c - w x_u at w = 0, 0.3, 1, 4; w per sample."""
    w = torch.tensor([0.0, 0.3, 1.0, 4.0])
    x = torch.full((4, *SHAPE), 0.3 * 2**0.5, dtype=torch.float64)
    teacher = denoiser(Guidable(COSINE), COSINE, RANGE)
    cond = Cond(label=torch.zeros(4, dtype=torch.int64))
    found = guide(teacher, 1 + w)(x, 1.0, cond).mean((1, 2, 3))
    # Eight printed decimals; w is float32 (0.3 to 1e-8), and the network is told t = 0.5 as float32.
    assert_close(found, torch.tensor([0.49311492, 0.60805107, 0.87623544, 2.02559702], dtype=torch.float64), rtol=0, atol=2e-8)
    null = Cond(label=torch.full((4,), NULL_LABEL))
    assert_close(float(teacher(x, 1.0, null).mean()), 0.10999439, rtol=0, atol=5.1e-9)  # half of the last printed decimal
    student = denoiser(Guidable(COSINE, reads_w=True), COSINE, RANGE)
    assert_close(student(x, 1.0, replace(cond, scalars={"w": w})).mean((1, 2, 3)), found)


@pytest.mark.parametrize(("precond", "sigma_range", "grid"), [(EDM, (0.002, 80.0), "polynomial"), (COSINE, RANGE, "cosine")])
def test_stage_one_vanishes_on_the_guided_student_alone(precond, sigma_range, grid):
    """The exact student is affine in (x, w): loss 0. Without w, or with w off by a little, or read at another scale, it is not."""
    method = get("distiller", "gd").make(grid=grid, loss="l2+uniform")
    teacher, phase = denoiser(Guidable(precond), precond, sigma_range), method.phases()[0]
    assert phase.name == "guided"

    def at(net) -> float:
        return loss_of(method, State(teacher, {"student": net}, {}, phase), batch())

    assert at(Guidable(precond, reads_w=True)) < 1e-13  # 1 + w is rounded to float32: (1e-7 (D_c - D_u))^2
    assert at(Guidable(precond)) > 1e-2  # w = 2 on average, times D_c - D_u of some tenths
    assert at(Guidable(precond, reads_w=True, off=-1.0)) > 1e-3  # the papers' other convention, scale = w
    assert at(Guidable(precond, reads_w=True, off=0.01)) > 1e-7


def test_stage_one_fits_the_guided_denoiser_by_least_squares(monkeypatch):
    """Linear regression on (1, x, w, w x) at one level finds x_w to solver precision, from the method's own pairs."""
    method, state = get("distiller", "gd").make(grid="cosine"), State(denoiser(Guidable(COSINE), COSINE, (0.5, 1.0)), {}, {}, None)
    monkeypatch.setattr("methods.distill.gd.LEVELS", 2)
    drawn = batch(800)
    w = 4 * Rng((3,)).uniform((800,)).double()
    x, sigma, target = method._guided(state, drawn.x0, replace(drawn.cond, scalars={"w": w}), Rng((2,)))
    top = sigma == 1.0
    assert 300 < int(top.sum()) < 500  # 400 of the mean, 7 standard deviations
    w, z, target = w[top], x[top, 0, 0, 0], target[top, 0, 0, 0]
    features = torch.stack([torch.ones_like(z), z, w, w * z], 1)
    found = torch.linalg.lstsq(features, target[:, None]).solution[:, 0]
    d = [gaussian_d(v, 1.0, m, s) for m, s in ((0.5, 0.1), (0.0, 0.35)) for v in (0.0, 1.0)]
    wanted = [d[0], d[1] - d[0], d[0] - d[2], d[1] - d[0] - (d[3] - d[2])]
    assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-7, atol=1e-7)  # the level is told as float32: sigma to 2e-7
    assert method.sampling().w == (0.0, 4.0)


class Watching(torch.nn.Module):
    """A network that remembers w and the levels of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.tensor(0.5)), []

    def forward(self, x, time, cond):
        self.seen.append((cond.scalars["w"].clone(), torch.exp(4 * time), cond.label))
        return self.weight * x


@pytest.mark.parametrize("name", ["gd", "gd_stochastic"])
def test_teacher_and_student_share_w_and_labels_within_a_sample(name: str):
    method = get("distiller", name).make(start=4, w_min=0.5, w_max=2.0)
    nets = {"student": Watching(), "teacher": Watching()}
    teacher = denoiser(nets["teacher"])
    for phase in method.phases()[1:]:
        loss_of(method, State(teacher, nets, {}, phase), batch(), seed=int(phase.name))
        (w, sigma, label), taught = nets["student"].seen[-1], nets["teacher"].seen
        assert len(taught) == 2 + (name == "gd_stochastic" and phase.name != "4")
        for w_teacher, _, label_teacher in taught:
            assert torch.equal(w, w_teacher)
            assert torch.equal(label, label_teacher)
        assert torch.equal(sigma, taught[0][1])
        assert 0.5 <= w.min() < 0.55
        assert 1.95 < w.max() <= 2.0
        taught.clear()


def test_w_embeddings_are_distinct():
    """The lowest of our Fourier features turns half a round from w = 0 to 4, so no weights collide, as 0, 2 and 4 do under sin(pi w)."""
    w = torch.linspace(0, 4, 401)
    for channels in (32, 128):
        apart = torch.cdist(fourier(w, channels), fourier(w, channels))
        assert (apart + 10 * torch.eye(401)).min() > 0.1  # weights 0.01 apart already
        whole = apart[::100, ::100] + 10 * torch.eye(5)
        assert whole.min() > 1


@pytest.mark.parametrize("name", ["gd", "gd_stochastic"])
def test_a_student_starts_as_the_conditional_teacher(name: str):
    _, data = mixture_data()
    teacher, method = network(data), get("distiller", name).make()
    of = data.draw(16, Rng((1,)))
    cond = replace(of.cond, scalars={"w": 4 * Rng((2,)).uniform((16,))})
    nets = method.build(teacher)
    for net in nets.values():
        assert torch.equal(method.student(net, teacher)(of.x0, 1.0, cond), teacher(of.x0, 1.0, of.cond))
    assert nets["student"] is not nets["teacher"]


def ddim(sigmas: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """What each Euler step multiplies x by."""
    r = sigmas[1:] / sigmas[:-1]
    return r + (1 - r) * gains


class Gain(torch.nn.Module):
    """D = gain(sigma) x on the cosine schedule, whatever the label and w."""

    def __init__(self, gain) -> None:
        super().__init__()
        self.gain, self.dtype_tag = gain, torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, z, time, cond):
        sigma = Cosine().sigma(time.double().numpy())
        c_skip, c_out, c_in, _ = COSINE.coefficients(sigma)
        return torch.from_numpy((self.gain(sigma) - c_skip) / (c_out * c_in)).view(-1, 1, 1, 1) * z


def levels_of(steps: int) -> np.ndarray:
    return make_grid("cosine", steps, RANGE, "zero_last").sigmas


def gaussian_batch(count: int = 1024) -> Batch:
    x0 = V**0.5 * Rng((5,)).normal((count, *SHAPE)).double()
    return Batch(x0, Cond(label=torch.zeros(count, dtype=torch.int64)))


def jumps(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The nodes of the N-step grid above 0, and the gain of D that makes an exact jump over two intervals (one from the last)."""
    s = levels_of(steps)
    to = np.append(s[2:], 0.0)
    flow = np.sqrt((V + to**2) / (V + s[:-1] ** 2))
    r = to / s[:-1]
    return s[:-1], (flow - r) / (1 - r)


def exact_jumps(steps: int):
    return at_nodes(*jumps(steps))


def test_stochastic_stages_keep_exact_jumps():
    """A teacher that jumps exactly over two of its intervals is halved to a student that does: loss 0, also on the last interval."""
    method = get("distiller", "gd_stochastic").make(start=8, grid="cosine", loss="l2+uniform")
    for steps in (4, 2):
        phase = next(p for p in method.phases() if p.name == str(steps))
        nets = {"teacher": Gain(exact_jumps(2 * steps)), "student": Gain(exact_jumps(steps))}
        state = State(denoiser(nets["teacher"], COSINE, RANGE), nets, {}, phase)
        assert loss_of(method, state, gaussian_batch()) < 1e-18  # float64
        # A student for the deterministic sampler, which jumps over one interval, is another one; so is the teacher.
        s = levels_of(steps)
        r = s[1:] / s[:-1]
        one = at_nodes(s[:-1], (np.sqrt((V + s[1:] ** 2) / (V + s[:-1] ** 2)) - r) / (1 - r))
        for wrong in (one, exact_jumps(2 * steps)):
            assert loss_of(method, replace(state, nets={**nets, "student": Gain(wrong)}), gaussian_batch()) > 1e-5
        # Two half steps on the last interval (algorithm 3 in every phase) are not exact for such a teacher.
        last = levels_of(2 * steps)[-3:]
        two = np.prod(ddim(last, exact_jumps(2 * steps)(last[:-1])))
        assert abs(two - np.sqrt(V / (V + last[0] ** 2))) > 1e-3


def test_the_first_stochastic_stage_takes_eulers_steps():
    """From the guided network, whose D is the posterior mean: two Euler steps of one interval each, and two half ones at the end."""
    method = get("distiller", "gd_stochastic").make(start=4, grid="cosine", loss="l2+uniform")
    phase = method.phases()[1]
    s, fine = levels_of(4), levels_of(8)
    gains = []
    for i in range(4):
        nodes = s[i : i + 3] if i < 3 else fine[-3:]
        total, r = np.prod(ddim(nodes, V / (V + nodes[:-1] ** 2))), nodes[-1] / nodes[0]
        gains.append((total - r) / (1 - r))
    nets = {"teacher": Gain(lambda sigma: V / (V + sigma**2)), "student": Gain(at_nodes(s[:-1], np.array(gains)))}
    state = State(denoiser(nets["teacher"], COSINE, RANGE), nets, {}, phase)
    # The teacher is told its level as float32 of t: at sigma = e^10 that is 1e-3 of sigma, and 2e-6 of 1e-5 x / sigma... below all else.
    assert loss_of(method, state, gaussian_batch()) < 1e-10
    assert loss_of(method, replace(state, nets={**nets, "student": nets["teacher"]}), gaussian_batch()) > 1e-4


def test_deterministic_stages_are_progressive_distillation():
    """With w read by nobody, a halving of gd is one of pd: loss 0 at the student whose Euler step is two of its teacher's."""
    sigmas, fine = levels_of(2), levels_of(4)
    posterior = Gain(lambda sigma: V / (V + sigma**2))
    totals = [np.prod(ddim(fine[i : i + 3], V / (V + fine[i : i + 2] ** 2))) for i in (0, 2)]
    r = sigmas[1:] / sigmas[:-1]
    nets = {"teacher": posterior, "student": Gain(at_nodes(sigmas[:-1], (np.array(totals) - r) / (1 - r)))}
    method = get("distiller", "gd").make(start=2, grid="cosine", loss="l2+uniform")
    state = State(denoiser(posterior, COSINE, RANGE), nets, {}, method.phases()[1])
    assert loss_of(method, state, gaussian_batch()) < 1e-10
    assert loss_of(method, replace(state, nets={**nets, "student": posterior}), gaussian_batch()) > 1e-4


# Variances of N = 1, 2, 4, 8, 16 steps on N(0, 1/4), from the closed form, computed independently.
STOCHASTIC = {1: 1.29e-10, 2: 0.04, 4: 0.07546295, 8: 0.11168995, 16: 0.15917059}
DETERMINISTIC = {1: 1.29e-10, 2: 0.04000091, 4: 0.11118118, 8: 0.16922804, 16: 0.20604933}


def variance_of(plan, gains, slot: str) -> float:
    """The variance of a slot, from z_1 of variance 1, by linearity: the sum over all noises of the squared response to each."""
    d = denoiser(Gain(gains), COSINE, RANGE)
    labels = Cond(label=torch.zeros(1, dtype=torch.int64))

    class Impulse:
        def __init__(self, at: int) -> None:
            self.at = at

        def normal(self, slot, shape):
            return torch.full((1, *shape), float(slot.step == self.at), dtype=torch.float64)

        def labels(self, classes: int):
            return labels.label

    steps = len(plan.states) - 1
    # z_1 has variance 1: x = z_1 / alpha_1.
    starts = [(-1, math.sqrt(1 + RANGE[1] ** 2))] + [(i, 0.0) for i in range(1, steps + 1)]
    total = 0.0
    for at, x in starts:
        out = run(plan, d, torch.full((1, *SHAPE), x, dtype=torch.float64), Impulse(at), labels, [slot])[slot]
        total += float(out.mean()) ** 2
    return total


@pytest.mark.parametrize("steps", STOCHASTIC)
def test_variances_of_both_samplers_are_the_tabulated_ones(steps: int):
    """With the exact D: the stochastic sampler jumps over 2 / N, the deterministic over 1 / N. With exact jumps: 1/4 for every N."""
    grid = make_grid("cosine", steps, RANGE)  # the table's jumps end at the clipped level, sigma = e^-10, and its result is the last D
    nodes = grid.sigmas[:-1]
    exact, last = at_nodes(nodes, V / (V + nodes**2)), prediction(steps - 1)
    digits = {"rtol": 5e-3, "atol": 0} if steps == 1 else {"rtol": 0, "atol": 5.1e-9}
    assert_close(variance_of(get("solver", "nstep_stochastic").make().plan(grid), exact, last), STOCHASTIC[steps], **digits)
    assert_close(variance_of(get("solver", "euler").make().plan(grid), exact, last), DETERMINISTIC[steps], **digits)
    # Ours end at 0. The exact flow starts from the marginal at t = 1, of variance a^2 / 4 + s^2 = 1 - 1.5e-9.
    ours = get("solver", "nstep_stochastic").make().plan(make_grid("cosine", steps, RANGE, "zero_last"))
    # Ending at 0 and not at e^-10 changes the last jump by 1e-4; three printed digits for one step.
    assert_close(variance_of(ours, exact, ours.states[-1]), STOCHASTIC[steps], rtol=5e-3 if steps == 1 else 2e-4, atol=0)
    assert_close(variance_of(ours, exact_jumps(steps), ours.states[-1]), V, rtol=1e-8, atol=0)  # the 1.5e-9 above


def test_one_step_of_both_samplers_is_the_same():
    grid, x = make_grid("cosine", 1, RANGE, "zero_last"), torch.full((2, *SHAPE), RANGE[1], dtype=torch.float64)
    teacher = Gaussian(torch.zeros(()), torch.tensor(V**0.5, dtype=torch.float64), SHAPE, sigma_range=RANGE)
    both = [
        run(p, teacher, x, PhiloxNoise(torch.arange(2)))[p.states[-1]]
        for p in (get("solver", n).make().plan(grid) for n in ("euler", "nstep_stochastic"))
    ]
    assert_close(both[0], both[1], rtol=1e-12, atol=0)  # a few roundings of float64


def test_phases_copies_and_what_serves_how_many_steps():
    method = get("distiller", "gd").make(start=4, batches=10, guided=3, last=2)
    assert [(p.name, p.batches) for p in method.phases()] == [("guided", 30), ("4", 10), ("2", 20), ("1", 20)]
    assert [dict(p.copies) for p in method.phases()] == [{}] + 3 * [{"student": "ema", "teacher": "ema"}]
    assert [method.phase_for(n) for n in (1, 2, 4, 5, 32)] == ["1", "2", "4", "guided", "guided"]
    with pytest.raises(Unreachable, match="gd has students for 4, 2, 1 and more than 4 steps, not 3"):
        method.phase_for(3)
    own = method.sampling()
    assert (own.solver, own.solvers, own.end, own.w) == ("euler", (), "zero_last", (0.0, 4.0))
    assert not own.tells_steps
    stochastic = get("distiller", "gd_stochastic").make(start=4)
    assert [p.name for p in stochastic.phases()] == ["guided", "4", "2"]
    assert [stochastic.phase_for(n) for n in (1, 2, 4, 8)] == ["2", "2", "4", "guided"]
    assert stochastic.sampling().solver == "nstep_stochastic"
    alone = get("distiller", "gd_stochastic").make(start=1)
    assert [p.name for p in alone.phases()] == ["guided", "1"]
    assert alone.phase_for(1) == "1"


def test_a_two_step_stochastic_student_is_the_one_step_student():
    """What it learns at the top is the jump from there to 0, which the 1-step grid has alone."""
    method, of, teacher = get("distiller", "gd_stochastic").make(start=8, grid="cosine"), gaussian_batch(), Gain(exact_jumps(4))
    state = State(denoiser(teacher, COSINE, RANGE), {"teacher": teacher}, {}, method.phases()[-1])  # that of two steps
    x, sigma, target = method._halved(state, of.x0, of.cond, Rng((7,)))
    (highest, gain), top = np.concatenate(jumps(1)), sigma == sigma.max()
    assert sigma.max() == highest
    assert_close(target[top], gain * x[top], rtol=1e-9, atol=0)  # 22026 float64 roundings of x at the top


def test_teachers_without_classes_or_already_guided_are_refused():
    _, data = mixture_data()
    teacher = network(data)
    for name in ("gd", "gd_stochastic"):
        with pytest.raises(
            UsageError, match="gd distils guidance by class, and this teacher has no classes; use pd or cd, or a teacher with classes"
        ):
            get("distiller", name).make().build(replace(teacher, classes=0))
        with pytest.raises(UsageError, match="this teacher is guided already; give it the unguided one"):
            get("distiller", name).make().build(guide(teacher, 2.0))
        with pytest.raises(UsageError, match="this teacher is guided already"):
            get("distiller", name).make().build(Mapped(guide(teacher, 2.0), clip))


def test_a_closed_form_teacher_is_guided_itself():
    """Stage one on a WarmStarted teacher matches the closed form, not the network that the student starts from."""
    closed, data = mixture_data()
    start = network(data)
    method = GuidedDistillation(loss="l2+uniform")
    teacher = WarmStarted(closed, start)
    of = data.draw(32, Rng((1,)))
    cond = replace(of.cond, scalars={"w": torch.full((32,), 1.5)})
    x, sigma, target = method._guided(State(teacher, {}, {}, method.phases()[0]), of.x0, cond, Rng((2,)))
    assert_close(target, guide(closed, 2.5)(x, sigma, cond))
    assert sigma.min() >= 0.002
    assert sigma.max() <= 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 3}, "gd halves its steps to 1, so start must be a power of two, got 3"),
        ({"w_max": 0.0}, "gd draws guidance weights from w_min to w_max with 0 <= w_min < w_max, got w_min=0 and w_max=0"),
        ({"sampler": "heun"}, "gd trains for the sampler euler or nstep_stochastic, got 'heun'"),
        ({"guided": 0}, "at least 1 times as long, got 0 and 1"),
        ({"last": 0}, "at least 1 times as long, got 3 and 0"),
        ({"grid": "cosin"}, "unknown grid 'cosin'; did you mean cosine?"),
        ({"loss": "l2"}, "gd's loss is distance+weight, got 'l2'"),
    ],
)
def test_wrong_options_are_one_line(options: dict, message: str):
    with pytest.raises(UsageError) as err:
        get("distiller", "gd").make(**options)
    assert message in str(err.value)
    assert "\n" not in str(err.value)
