"""Guided distillation: guided Gaussians in closed form, both stages, both samplers, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fewstep.cond import Cond
from fewstep.errors import Unreachable, UsageError
from fewstep.guidance import guide
from fewstep.nets.unet import fourier
from fewstep.noise import Rng
from fewstep.plugins import get
from fewstep.precond import EDMPrecond
from fewstep.schedule import Cosine
from fewstep.wrappers import Mapped, clip
from methods.distill.gd import GuidedDistillation
from methods.start import WarmStarted, start_of
from methods.training import State
from support.each import each
from support.guided import COSINE, EDM, RANGE, SHAPE, batch, denoiser, loss_of
from support.tiny import mixture_data, network

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


@each(
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


def test_students_start_from_the_teacher_and_not_from_what_guides_it():
    """Also where both are closed forms with networks of their own beside them."""
    form, data = mixture_data()
    own, other = network(data), network(data)
    for ref in (WarmStarted(form, other), other):
        assert start_of(guide(WarmStarted(form, own), 2.0, ref=ref), "cd") is own
        assert start_of(guide(own, 2.0, ref=ref), "cd") is own
    with pytest.raises(UsageError, match=r"cd: a .* teacher has no network for a student to start from"):
        start_of(guide(Mapped(form, clip), 2.0, ref=WarmStarted(form, other)), "cd")
