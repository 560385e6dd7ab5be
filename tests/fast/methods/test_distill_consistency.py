"""Consistency training in its three forms, and latent consistency distillation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fewstep.cond import Cond
from fewstep.data.source import Batch
from fewstep.denoiser import Preconditioned
from fewstep.errors import UsageError
from fewstep.grid import make_grid
from fewstep.guidance import guide
from fewstep.nets import perceptual
from fewstep.noise import Rng
from fewstep.plugins import get
from fewstep.precond import BoundedPrecond, ConsistencyPrecond, ProcessPrecond
from methods.distill.ct import Curriculum
from methods.distill.ect import tuned_level
from methods.distill.ict import doubled, lognormal_shares
from methods.losses.distances import huber
from methods.training import Ema, State
from support.each import each
from support.exactnet import EDM, ExactNet, V, gaussian_batch, linear_teacher, loss_of
from support.tiny import mixture_data, network

EPS = 0.002
BOUNDARY = ConsistencyPrecond(EDM.sigma_data, EPS)
PUBLISHED = perceptual.VGG16
NAMES = ("ct", "ict", "ect", "lcm")


def exact(sigma):
    """The gain of the exact consistency function of Gaussian data."""
    return np.sqrt((V + EPS**2) / (V + sigma**2))


class Recorded(torch.nn.Module):
    """A network that gives zero, and keeps what it was called with."""

    def __init__(self, form: str = "edm") -> None:
        super().__init__()
        self.tag, self.calls = torch.nn.Parameter(torch.zeros((), dtype=torch.float64)), []

    def forward(self, x: torch.Tensor, time: torch.Tensor, cond: Cond) -> torch.Tensor:
        self.calls.append((x, np.exp(4 * time.double().numpy()), cond))
        return 0 * x * self.tag


def first_loss(method, state: State, batch: Batch, seed: int = 7) -> torch.Tensor:
    (loss,) = method.losses(state, batch, Rng((seed,)))
    assert loss.net == "student"
    return loss.value


def state_of(method, teacher, student, batch: int = 0, **emas) -> State:
    (phase,) = method.phases()
    return State(teacher, {"student": student}, {"target": student} | emas, phase, batch)


# --- schedules ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "nodes", "mu"), [(0, 2, 0.900000), (1000, 6, 0.965489), (400_000, 107, 0.998033), (799_999, 151, 0.998605)]
)
def test_levels_and_decay_of_consistency_training_are_the_published_ones(batch: int, nodes: int, mu: float) -> None:
    """s1 150, mu0 0.9, 800k batches; the paper's mu, not its code's (0.81 at the start)."""
    curriculum = Curriculum(2, 150, 0.9, 800_000)
    assert curriculum.nodes(batch) == nodes
    assert abs(curriculum.at(batch) - mu) < 5.1e-7  # six printed decimals
    assert Ema("student", curriculum, ramp=False).decay_at(batch) == curriculum.at(batch)


def test_an_ema_of_a_schedule_ramps_like_any_other() -> None:
    curriculum = Curriculum(2, 2, 0.5, 1000)
    assert [Ema("student", curriculum).decay_at(k) for k in (0, 999)] == [0.1, curriculum.at(999)]
    assert curriculum.at(999) == pytest.approx(0.5 ** (2 / 3))
    assert repr(Ema("student", curriculum)) == "Ema(net='student', decay=Curriculum(s0=2, s1=2, mu0=0.5, batches=1000), ramp=True)"


def test_levels_of_improved_training_double() -> None:
    """s0 10, s1 1280, 400k batches: every 50k. K' is one batch where there are fewer batches than doublings."""
    starts = [doubled(50_000 * n, 400_000, 10, 1280) for n in range(8)]
    assert starts == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert [doubled(50_000 * n - 1, 400_000, 10, 1280) for n in range(1, 9)] == starts
    assert [doubled(k, 3, 10, 1280) for k in range(3)] == [11, 21, 41]
    assert doubled(399, 400, 10, 10) == 11


def test_shares_of_the_levels_are_the_published_ones() -> None:
    levels = make_grid("polynomial", 10, (0.002, 80.0)).sigmas
    shares = lognormal_shares(levels, -1.1, 2.0)
    published = [0.0626, 0.1817, 0.2455, 0.2135, 0.1424, 0.0806, 0.0411, 0.0196, 0.0089, 0.0040]
    np.testing.assert_allclose(shares[::-1], published, atol=5.1e-5)  # four printed decimals
    assert abs(shares.sum() - 1) < 1e-12


@each(
    ("stage", "sigma", "level"),
    [
        *((0, s, r) for s, r in ((5.0, 2.366), (80.0, 40.0), (1.0, 0.0), (0.1, 0.0))),
        *((3, s, r) for s, r in ((0.05, 0.03469), (0.5, 0.37436), (1.0, 0.80303), (5.0, 4.67077))),
        (7, 1.0, 0.98769),
    ],
)
def test_target_levels_of_easy_tuning_are_the_published_ones(stage: int, sigma: float, level: float) -> None:
    found = tuned_level(torch.tensor([sigma], dtype=torch.float64), stage, 2.0, 8.0, 1.0)
    digits = 4 if stage == 0 else 6
    assert float(found) == pytest.approx(level, abs=0.51 * 10 ** -(digits - 1))  # as many printed decimals


# --- losses on Gaussian data ----------------------------------------------------------------------------------------------------


def trained(name: str, gain, batch: int, **options) -> float:
    """A method's loss where the student is gain(sigma) x, also as its own target, with levels as at `batch` of 1000."""
    method = get("distiller", name).make(batches=1000, **options)
    precond = EDM if name == "ect" else BOUNDARY
    return loss_of(method, state_of(method, linear_teacher(), ExactNet(gain, precond), batch))


def test_consistency_training_approves_the_exact_function_on_fine_levels_only() -> None:
    """With one noise for both levels the pair differs from the flow by (x0 - D) / sigma per unit of sigma: d = O(1 / N), l2 O(1 / N^2)."""
    coarse, fine = trained("ct", exact, 0, s0=20, s1=20), trained("ct", exact, 0, s0=320, s1=320)
    assert coarse / fine > 100  # (319 / 19)^2 = 282 but for the highest level's share
    assert fine < 1e-4
    # Twice the function is no consistency function: it misses the boundary that its target has at sigma_min, and elsewhere just scales.
    wrong = trained("ct", lambda sigma: exact(sigma) * (1 + 0.3 * np.log(sigma / EPS)), 0, s0=320, s1=320)
    assert wrong > 5 * fine


def test_the_pair_shares_noise_and_labels() -> None:
    """x - x_to = (sigma - sigma_to) n with one n, whose variance is 1, and the batch's labels, for every method without a teacher."""
    for name in ("ct", "ict", "ect"):
        method = get("distiller", name).make(batches=1000)
        net = Recorded()
        first_loss(method, state_of(method, linear_teacher(), net, 999), gaussian_batch(64))
        (z_to, sigma_to, cond_to), (z, sigma, cond) = net.calls
        assert torch.equal(cond.label, cond_to.label)
        assert torch.equal(cond.label, gaussian_batch(64).cond.label)
        x, x_to = (c / EDM.coefficients(s)[2][:, None, None, None] for c, s in ((z.numpy(), sigma), (z_to.numpy(), sigma_to)))
        assert ((sigma > sigma_to) | (sigma < 0.002001)).all()  # ect also draws sigma_min, whose target is x0 itself
        x0 = gaussian_batch(64).x0.numpy()
        # sigma is told as float32 ln(sigma) / 4, off by up to 5e-7 (see ExactNet), of x0 / sigma up to 1e3: noise to 1e-3 for large sigma
        noise, noise_to = ((y - x0) / s[:, None, None, None] for y, s in ((x, sigma), (x_to, sigma_to)))
        far = sigma_to > 0.05
        assert far.sum() > 10
        np.testing.assert_allclose(noise[far], noise_to[far], atol=1e-3)  # see above
        assert abs(noise[far].std() - 1) < 0.2


def test_improved_training_weighs_by_the_gap_and_has_no_ema_in_its_target() -> None:
    """With f = x at every level each pair counts d((sigma - sigma_to) n, 0) / (sigma - sigma_to), which for l1 is mean |n| = 0.7979."""
    value = trained("ict", lambda sigma: np.ones_like(sigma), 999, loss="l1")
    assert abs(value - math.sqrt(2 / math.pi)) < 0.02  # the mean of 1024 * 16 |n|, each of standard deviation 0.6: 5e-3
    method = get("distiller", "ict").make()
    assert set(method.phases()[0].emas) == {"ema"}
    student = ExactNet(exact, BOUNDARY)
    other = ExactNet(lambda sigma: 0 * sigma, BOUNDARY)
    with_target = loss_of(method, state_of(method, linear_teacher(), student, target=other))
    assert with_target == loss_of(method, state_of(method, linear_teacher(), student))


def test_improved_training_draws_the_levels_by_their_shares() -> None:
    method = get("distiller", "ict").make()
    net = Recorded()
    first_loss(method, state_of(method, linear_teacher(), net), gaussian_batch(4096))
    levels = make_grid("polynomial", 10, (0.002, 80.0)).sigmas
    drawn = np.abs(np.log(levels)[:, None] - np.log(net.calls[1][1])).argmin(0)
    shares = np.bincount(drawn, minlength=11)[:10] / 4096
    np.testing.assert_allclose(shares, lognormal_shares(levels, -1.1, 2.0), atol=0.03)  # sqrt(p (1 - p) / 4096) < 0.007
    assert (np.bincount(drawn, minlength=11)[10:] == 0).all()  # sigma_min is a target only


def test_easy_tuning_starts_as_diffusion_training_and_ends_at_the_consistency_condition() -> None:
    """Stage 0: below sigma = 1 the target is x0, whose best student is D; the last stage: the target is f itself, one small step on."""
    small = {"p_mean": -3.0, "p_std": 0.3, "loss": "l2", "stages": 8}  # sigma from 0.02 to 0.13
    net = ExactNet(lambda sigma: V / (V + sigma**2), EDM)
    # With r = 0 the value is E (D - x0)^2 / sigma = V sigma / (V + sigma^2), whose mean over these sigma is 0.0515.
    sigma = np.exp(-3 + 0.3 * np.linspace(-4, 4, 2001))
    density = np.exp(-(np.linspace(-4, 4, 2001) ** 2) / 2)
    expected = float((V * sigma / (V + sigma**2) * density).sum() / density.sum())
    method = get("distiller", "ect").make(batches=8, **small)
    value = loss_of(method, state_of(method, linear_teacher(), net))
    assert abs(value - expected) < 0.05 * expected  # 1024 * 16 squares, and sigma of 1024 samples: 1 to 2%
    late = loss_of(method, state_of(method, linear_teacher(), ExactNet(lambda s: 1 / np.sqrt(1 + s**2 / V), EDM), 7))
    assert late < expected / 50


def test_easy_tuning_cuts_levels_to_the_teachers_range() -> None:
    """Levels beyond 80 and below 0.002 are drawn with these moments; what is told to the network is not."""
    method = get("distiller", "ect").make(p_mean=0.0, p_std=8.0)
    net = Recorded()
    assert torch.isfinite(first_loss(method, state_of(method, linear_teacher(), net, 999), gaussian_batch(256)))
    for _, told, _ in net.calls:
        assert told.min() >= 0.002 * (1 - 1e-6)
        assert told.max() <= 80 * (1 + 1e-6)
    assert np.isclose(net.calls[1][1], 80, rtol=1e-5).sum() > 50  # Phi(-ln 80 / 8) = 0.29 of 256; float32 times, see ExactNet


@pytest.mark.parametrize("name", ["ct", "ict", "ect"])
def test_a_student_trained_without_a_teacher_still_has_its_boundary(name: str) -> None:
    teacher = network(mixture_data()[1])
    method = get("distiller", name).make()
    student = method.student(method.build(teacher)["student"], teacher)
    assert isinstance(student.precond, ConsistencyPrecond)
    x = torch.randn(3, *teacher.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(student(x, 0.002), x)


@pytest.mark.parametrize("name", NAMES)
def test_teachers_of_other_forms_and_unconditional_ones_are_taken(name: str) -> None:
    """A u-prediction network (which only `BoundedPrecond` gives a boundary), and data without labels (not for lcm, which guides)."""
    _, data = mixture_data()
    teacher = replace(network(data), precond=ProcessPrecond(form="eps"))
    method = get("distiller", name).make(batch_size=4)
    net = method.build(teacher)["student"]
    assert isinstance(method.student(net, teacher).precond, BoundedPrecond)
    assert torch.isfinite(first_loss(method, state_of(method, teacher, net), data.draw(4, Rng((1,)))))
    if name != "lcm":
        bare = replace(teacher, classes=0)
        assert torch.isfinite(first_loss(method, state_of(method, bare, net), Batch(data.draw(4, Rng((1,))).x0, Cond())))


@pytest.mark.parametrize("name", ["ct", "ict"])
def test_a_student_from_scratch_has_no_weight_of_its_teacher(name: str) -> None:
    teacher = network(mixture_data()[1])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        scratch = get("distiller", name).make(init="scratch").build(teacher)["student"]
    same = get("distiller", name).make().build(teacher)["student"]
    own = teacher.net.state_dict()
    kept = {k for k, v in scratch.state_dict().items() if torch.equal(v, own[k])}
    assert all("norm" in k for k in kept)  # group norms are drawn as 1 and 0, as they were in the untrained teacher
    assert all(torch.equal(v, own[k]) for k, v in same.state_dict().items())


def test_a_network_that_cannot_be_drawn_anew_is_named() -> None:
    teacher = linear_teacher()  # its one parameter belongs to no layer of torch's
    with pytest.raises(UsageError, match=r"^ct cannot draw the weights of a ExactNet anew; use init=teacher$"):
        get("distiller", "ct").make(init="scratch").build(teacher)


# --- latent consistency distillation --------------------------------------------------------------------------------------------


def lcm_parts(seed: int = 7, **options):
    """An untrained student of a small network, the batch, and the first loss."""
    _, data = mixture_data()
    teacher, g = network(data), torch.Generator().manual_seed(5)
    for p in teacher.net.parameters():  # an untrained network has branches of zeros, and would not see its labels
        p.data += 0.1 * torch.randn(p.shape, generator=g)
    method = get("distiller", "lcm").make(**options)
    net = method.build(teacher)["student"].eval()
    batch = data.draw(32, Rng((1,)))
    return method, teacher, net, batch, first_loss(method, state_of(method, teacher, net), batch, seed)


@pytest.mark.parametrize(("skip", "nodes"), [(1, 18), (5, 20)])
def test_the_first_loss_of_lcm_is_its_teachers_guided_step(skip: int, nodes: int) -> None:
    """All from the definition: levels by index, w in [0, 3], x' = x + (sigma' - sigma) (x - D) / sigma with D = D_c + w (D_c - D_u)."""
    method, teacher, net, batch, value = lcm_parts(skip=skip, nodes=nodes, w_max=3.0)
    rng, last = Rng((7,)), nodes - 1
    i = rng.integers(last, (32,))
    w, noise = 3 * rng.uniform((32,)), rng.normal(batch.x0.shape)
    levels = torch.tensor(make_grid("polynomial", last, (0.002, 80.0)).sigmas)
    sigma, to = levels[i], levels[torch.clamp(i + skip, max=last)]
    column = (-1, 1, 1, 1)
    x = batch.x0 + sigma.float().view(column) * noise
    with torch.no_grad():
        d_c, d_u = teacher(x, sigma, batch.cond), teacher(x, sigma, Cond(torch.full((32,), teacher.classes)))
        d = d_c + w.view(column) * (d_c - d_u)
        x_to = x + ((to - sigma) / sigma).float().view(column) * (x - d)
        plain = method.student(net, teacher)  # its adapters of w are zero
        expected = huber(plain(x, sigma, batch.cond), plain(x_to, to, batch.cond)).mean()
    assert float((d_c - d_u).abs().mean()) > 0.01
    assert_close(value.detach(), expected, rtol=1e-4, atol=1e-6)  # float32: x up to 200 cancels to D of order 1
    assert_close(guide(teacher, 1 + w)(x, sigma, batch.cond), d, rtol=1e-4, atol=1e-5)  # as above


def test_lcm_reads_w_in_its_range_and_its_teacher_reads_none() -> None:
    teacher, method = linear_teacher(), get("distiller", "lcm").make(w_min=0.5, w_max=2.5)
    asked, net = Recorded(), Recorded()
    first_loss(method, state_of(method, replace(teacher, net=asked), net), gaussian_batch(512))
    (_, sigma_to, cond_to), (_, sigma, cond) = net.calls
    w = cond.scalars["w"]
    assert torch.equal(w, cond_to.scalars["w"])
    assert 0.5 <= w.min() < 0.55
    assert 2.45 < w.max() < 2.5  # the extremes of 512 draws are within 1% of the ends
    assert all("w" not in c.scalars for _, _, c in asked.calls)
    assert method.sampling().w == (0.5, 2.5)
    assert (sigma_to < sigma).all()
    levels = make_grid("polynomial", method.nodes - 1, (0.002, 80.0)).sigmas
    index = [np.abs(np.log(levels)[:, None] - np.log(s)).argmin(0) for s in (sigma, sigma_to)]
    assert set(index[0]) == set(range(method.nodes - 1))  # every level but the last is learned: 512 draws of 79
    assert ((index[1] - index[0] == method.skip) | (index[1] == method.nodes - 1)).all()


def test_lcm_reaches_the_guided_consistency_function() -> None:
    """On Gaussian data both branches of the teacher agree, so guidance does nothing and the exact function solves lcm for any w."""
    teacher = linear_teacher()
    values = []
    for nodes in (50, 400):
        method = get("distiller", "lcm").make(nodes=nodes, skip=1, loss="l2")
        values.append(loss_of(method, state_of(method, teacher, ExactNet(exact, BOUNDARY))))
    assert values[0] > 20 * values[1]  # Euler's error of a step is O(1 / N^2): its square falls by 8^4 but for rounding
    assert values[1] < 1e-6
    method = get("distiller", "lcm").make(nodes=400, skip=1, loss="l2")
    target = ExactNet(exact, BOUNDARY)
    off = loss_of(method, state_of(method, teacher, ExactNet(lambda s: 1.1 * exact(s), BOUNDARY), target=target))
    assert off > 1e-3  # (0.1 f)^2 with f of variance 1/4


def test_lcm_learns_w_when_its_adapters_do() -> None:
    """A gradient reaches the adapter's last layer in the first batch, so that w gets an effect."""
    _, _, net, _, value = lcm_parts()
    value.backward()
    assert net.embed_scalars["w"][-1].weight.grad.abs().max() > 0


# --- what is refused ------------------------------------------------------------------------------------------------------------


@each(
    ("kind", "name", "options", "line"),
    [
        ("distiller", "ct", {"loss": "lpip"}, r"unknown loss 'lpip'; did you mean lpips\?"),
        ("distiller", "ct", {"init": "teachr"}, r"ct's student starts from teacher or scratch, got init 'teachr'; did you mean teacher\?"),
        ("distiller", "ct", {"s0": 1}, "ct's levels grow from s0 >= 2 to s1 \\+ 1, got s0=1 and s1=150; use e.g. s0=2 s1=150"),
        ("distiller", "ct", {"s0": 20, "s1": 10}, "got s0=20 and s1=10"),
        ("distiller", "ct", {"mu0": 0.0}, "ct's target decays by 0 < mu0 <= 1, got 0; use e.g. mu0=0.9"),
        ("distiller", "ict", {"init": "none"}, "ict's student starts from teacher or scratch, got init 'none'"),
        ("distiller", "ict", {"s0": 0}, "ict's levels double from s0 >= 1 to s1, got s0=0"),
        ("distiller", "ict", {"p_std": 0.0}, "ict's p_std is the standard deviation of ln sigma and above 0, got 0; use e.g. 2.0"),
        ("distiller", "ect", {"q": 1.0}, "ect needs q > 1 and stages >= 1, got q=1 and stages=8; use q=2 stages=8 or q=256 stages=1"),
        ("distiller", "ect", {"stages": 0}, "got q=2 and stages=0"),
        ("distiller", "ect", {"b": -1.0}, "ect needs k >= 0, b >= 0 and p_std > 0, got 8, -1 and 2; use 8, 1 and 2"),
        ("distiller", "lcm", {"skip": 0}, "lcm skips 1 to nodes - 1 intervals, got skip=0 of nodes=80; use e.g. skip=4 nodes=80"),
        ("distiller", "lcm", {"skip": 9, "nodes": 9}, "got skip=9 of nodes=9"),
        ("distiller", "lcm", {"w_max": 0.0}, "with 0 <= w_min < w_max, got w_min=0 and w_max=0; use e.g. 0 and 4, or cd or pd"),
        ("distiller", "lcm", {"w_min": 5.0}, "lcm draws guidance weights from w_min to w_max with 0 <= w_min < w_max, got w_min=5"),
        ("distiller", "lcm", {"w_min": -1.0}, "got w_min=-1 and w_max=4"),
        ("distiller", "cd", {"nodes": 1}, "cd needs the two ends of an interval, got nodes=1; use nodes >= 2, e.g. 18"),
        ("distiller", "cd", {"teacher_solver": "gits"}, "cd runs on a solver that needs no fit, got 'gits'"),
        ("distiller", "cd", {"teacher_solver": "ddpm"}, "cd runs on a solver that draws no noise, got 'ddpm'"),
        (
            "solver",
            "consistency_search",
            {"samples": 1},
            "consistency_search needs samples >= 2, points >= 1 and rounds >= 0, got samples=1",
        ),
    ],
)
def test_wrong_options_are_refused_in_one_line(kind: str, name: str, options: dict, line: str) -> None:
    with pytest.raises(UsageError, match=line) as raised:
        get(kind, name).make(**options)
    assert "\n" not in str(raised.value)


def test_lcm_needs_classes() -> None:
    teacher = replace(network(mixture_data()[1]), classes=0)
    assert isinstance(teacher, Preconditioned)
    with pytest.raises(
        UsageError, match=r"^lcm distils guidance by class, and this teacher has no classes; use pd or cd, or a teacher with classes$"
    ):
        get("distiller", "lcm").make().build(teacher)
