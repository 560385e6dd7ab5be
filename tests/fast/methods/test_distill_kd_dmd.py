"""Knowledge distillation and distribution matching: exact gradients and optima on Gaussian data, alternation, bad options."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from fewstep.analytic import Gaussian
from fewstep.cond import Cond
from fewstep.data.source import Batch
from fewstep.denoiser import Preconditioned
from fewstep.errors import Unreachable, UsageError
from fewstep.noise import Rng, noised
from fewstep.plugins import get
from methods.distill import dmd
from methods.distiller import Paired
from methods.start import WarmStarted
from methods.training import State
from support.each import each
from support.exactnet import EDM, ExactNet, V, gaussian_batch, linear_teacher, posterior
from support.tiny import data_of, mixture_data, network, sampled

SIZE = (1, 4, 4)
MAX = 80.0
NAMES = ("kd", "dmd", "dmd2")


def gaussian(mean: float, variance: float) -> Gaussian:
    return Gaussian(torch.tensor(mean, dtype=torch.float64), torch.tensor(variance**0.5, dtype=torch.float64), SIZE)


def normals(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unconditional() -> Preconditioned:
    """A network without classes on the mixture's shape."""
    _, data = mixture_data()
    return network(replace(data, classes=0))


# Knowledge distillation


def pair_loss(name: str, gain: float, loss: str) -> float:
    """The loss of a student D = gain x at sigma_max, on pairs that the exact flow of N(0, V) makes."""
    teacher = linear_teacher()
    batch = gaussian_batch()
    flow = (V / (V + MAX**2)) ** 0.5  # the exact flow from sigma_max to 0
    noise = normals(len(batch.x0), 5)
    pairs = Batch(flow * MAX * noise, batch.cond, noise)
    method = get("distiller", name).make(loss=loss)
    student = ExactNet(lambda sigma: np.full_like(sigma, gain), EDM)
    (found,) = method.losses(State(teacher, {"student": student}, {}, method.phases()[0]), pairs, Rng((7,)))
    assert found.net == "student"
    return found.value.item()


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_kd_loss_vanishes_on_the_exact_flow_map(loss: str) -> None:
    flow = (V / (V + MAX**2)) ** 0.5
    assert pair_loss("kd", flow, loss) < 1e-5  # x0 is told to 1e-6 (see ExactNet), so that |x0| errs by some 1e-6 V^(1/2)
    # E |0.1 x0|: 0.1 (2 V / pi)^(1/2) = 0.040, E (0.1 x0)^2 = 0.0025
    expected = {"l1": 0.1 * (2 * V / np.pi) ** 0.5, "l2": 0.01 * V}[loss]
    np.testing.assert_allclose(pair_loss("kd", 1.1 * flow, loss), expected, rtol=0.03)  # 16384 draws: 1% standard error
    assert pair_loss("kd", posterior(MAX), loss) > 0.1  # the teacher's own D at sigma_max is the data's mean


def test_kd_reads_pairs_and_not_data() -> None:
    method = get("distiller", "kd").make()
    assert isinstance(method, Paired)
    assert vars(method.pairs()) == {"solver": "dpmpp_2m", "steps": 10, "grid": "polynomial", "end": "zero", "count": 10000}
    state = State(linear_teacher(), {"student": ExactNet(posterior, EDM)}, {}, method.phases()[0])
    with pytest.raises(UsageError, match=r"a batch of images has no noise that a teacher made them from; train on pairs"):
        next(method.losses(state, gaussian_batch(), Rng((7,))))


def test_a_one_step_student_is_sampled_as_its_d_at_sigma_max() -> None:
    """Both one-step samplers give exactly D(sigma_max n, sigma_max)."""
    teacher = unconditional()
    seeds = torch.arange(8)
    found = [sampled(get("distiller", name).make(), teacher, 1, seeds) for name in NAMES]
    from fewstep.noise import LATENT, PhiloxNoise

    x = PhiloxNoise(seeds).normal(LATENT, teacher.shape) * MAX
    with torch.no_grad():
        expected = teacher(x, MAX)
    for images in found:
        torch.testing.assert_close(images, expected)


# The distribution-matching gradient


def test_the_matching_gradient_is_that_of_the_scores() -> None:
    """Two Gaussians: sigma^2 (s_fake - s_real) / mean |x0 - D_real|, with the scores -(x - m) / (v + sigma^2) in closed form."""
    real, fake = gaussian(0.3, 0.25), gaussian(-0.2, 0.6)
    x0, sigma = -0.2 + 0.6**0.5 * normals(64, 0), torch.logspace(-2, 1.5, 64, dtype=torch.float64)
    x = noised(x0, normals(64, 1), sigma)
    s = sigma.view(-1, 1, 1, 1)
    score = {name: -(x - m) / (v + s**2) for name, m, v in (("real", 0.3, 0.25), ("fake", -0.2, 0.6))}
    weight = s**2 / (x0 - real(x, sigma)).abs().mean((1, 2, 3), keepdim=True)
    found = dmd.matching_gradient(x0, real(x, sigma), fake(x, sigma))
    torch.testing.assert_close(found, weight * (score["fake"] - score["real"]), rtol=1e-9, atol=1e-12)  # float64, cancelled at small sigma
    # Where the generator's mean is too low, descent along -gradient raises it: the two variances are those of x, the same for both here.
    low = dmd.matching_gradient(x0, real(x, sigma), gaussian(-0.2, 0.25)(x, sigma))
    assert (low < 0).all()


def test_the_matching_gradient_vanishes_where_the_generator_matches() -> None:
    real = gaussian(0.3, 0.25)
    x0 = 0.3 + 0.5 * normals(16, 0)
    d = real(x0, 1.0)
    assert dmd.matching_gradient(x0, d, d).abs().max() == 0
    assert dmd.matching_gradient(d, d, d).abs().max() == 0  # no 0 / 0 where x0 is D_real itself


def matching(generator_variance: float, fake_variance: float) -> tuple[float, float]:
    """Value and derivative, in the gain g of the generator x0 = g n, of its loss against N(0, V) data."""
    teacher, fake = gaussian(0.0, V), gaussian(0.0, fake_variance)
    g = torch.tensor(generator_variance**0.5, dtype=torch.float64, requires_grad=True)
    value = dmd.matching_loss(g * normals(4096, 3), teacher, fake, Cond(), Rng((2,)))
    value.backward()
    assert g.grad is not None
    return value.item(), g.grad.item()


def test_the_matching_loss_pulls_the_generators_variance_to_the_datas() -> None:
    """d loss / d g = E [gradient . n] / d has the sign of g^2 - V, is the closed form in expectation, and is 0 at the match."""
    assert matching(V, V) == (0.0, 0.0)
    value, slope = matching(0.36, 0.36)
    assert slope > 0.01
    assert value > 0
    assert matching(0.16, 0.16)[1] < -0.01
    # E over n, e of (D_f - D_r) n with x = g n + sigma e is (k_f - k_r) g, k = v / (v + sigma^2); the normalisation, a sample's own mean
    # |x0 - D_r| of 16 pixels, is near its expectation (2 var / pi)^(1/2), var = (1 - k_r)^2 g^2 + k_r^2 sigma^2. The sample's own mean
    # varies with it by 1 / 16^(1/2), and 1 / mean is convex: a few percent.
    sigma = dmd.random_levels((0.002, MAX), 4096, Rng((2,))).numpy()
    g, k_f, k_r = 0.6, 0.36 / (0.36 + sigma**2), V / (V + sigma**2)
    scale = np.sqrt(2 / np.pi * ((1 - k_r) ** 2 * g**2 + k_r**2 * sigma**2))
    np.testing.assert_allclose(slope, np.mean((k_f - k_r) * g / scale), rtol=0.1)  # see above


def test_the_matching_loss_leaves_the_denoisers_alone() -> None:
    """Its gradient reaches the generator only: not through the teacher, nor through the fake denoiser."""
    _, data = mixture_data()
    teacher, fake = network(data), network(data, seed=1)
    x0 = torch.zeros(4, *SIZE, requires_grad=True)
    dmd.matching_loss(x0, teacher, fake, Cond(), Rng((1,))).backward()
    assert x0.grad is not None
    assert x0.grad.abs().max() > 0
    assert all(p.grad is None for net in (teacher.net, fake.net) for p in net.parameters())


# What the fake denoiser and the head learn


def fake_loss(name: str, factor: float) -> float:
    """The fake denoiser's loss at D = factor times the exact D of the generator's samples x0 = g x at sigma_max."""
    teacher, variance = linear_teacher(), 0.09
    gain = variance**0.5 / MAX

    def believed(sigma):
        return factor * variance / (variance + sigma**2)

    # x at sigma_max is MAX n here (no data in it): x0 = gain MAX n has exactly this variance.
    nets = {"student": ExactNet(lambda sigma: np.full_like(sigma, gain), EDM), "fake": ExactNet(believed, EDM)}
    method = get("distiller", name).make(**({"gan": 0.0} if name == "dmd2" else {}))
    first = next(method.losses(State(teacher, nets, {}, method.phases()[0]), gaussian_batch(8192), Rng((7,))))
    assert first.net == "fake"
    return first.value.item()


@pytest.mark.parametrize("name", ["dmd", "dmd2"])
def test_the_fake_denoisers_loss_is_least_at_the_exact_one(name: str) -> None:
    exact = fake_loss(name, 1.0)
    assert fake_loss(name, 0.95) > exact * 1.0001
    assert fake_loss(name, 1.05) > exact * 1.0001


def test_the_fake_denoisers_weight_is_edms() -> None:
    teacher, sigma = linear_teacher(), torch.tensor([0.01, 0.5, 30.0], dtype=torch.float64)
    d, x0 = normals(3, 0), normals(3, 1)
    expected = (((d - x0) ** 2).mean((1, 2, 3)) * (sigma**-2 + EDM.sigma_data**-2)).mean()
    torch.testing.assert_close(dmd.denoising_loss(d, x0, sigma, teacher), expected)


def test_levels_are_uniform_in_index_between_both_ends_left_out() -> None:
    levels = dmd.random_levels((0.002, 80.0), 20000, Rng((0,))).numpy()
    place = (levels ** (1 / 7) - 80.0 ** (1 / 7)) / (0.002 ** (1 / 7) - 80.0 ** (1 / 7)) * 999
    assert 19.99 < place.min() < 25
    assert 975 < place.max() < 979.01
    np.testing.assert_allclose(place.mean(), 499.5, atol=8)  # 960 places, 20000 draws: standard error 2


def test_gan_losses() -> None:
    real, fake = torch.tensor([[2.0], [0.5]]), torch.tensor([[-3.0], [0.25]])
    nets = {"head": nn.Identity()}
    for name, expected in (("softplus", softplus(fake) + softplus(-real)), ("hinge", (1 + fake).clamp(min=0) + (1 - real).clamp(min=0))):
        method = dmd.DistributionMatching2(loss=name)
        torch.testing.assert_close(method._gan(nets["head"], fake, real), expected.mean())
    torch.testing.assert_close(dmd.GANS["softplus"][1](fake), softplus(-fake))
    torch.testing.assert_close(dmd.GANS["hinge"][1](fake), -fake)


@pytest.mark.parametrize("loss", ["softplus", "hinge"])
def test_the_student_wants_its_logits_high_and_the_critic_low(loss: str) -> None:
    _, generator = dmd.GANS[loss]
    h = torch.tensor([-0.5, 0.5], requires_grad=True)
    generator(h).sum().backward()
    critic = torch.tensor([-0.5, 0.5], requires_grad=True)
    dmd.GANS[loss][0](critic).sum().backward()
    assert h.grad is not None
    assert critic.grad is not None
    assert (h.grad < 0).all()  # the student wants its logits high,
    assert (critic.grad > 0).all()  # the critic wants those of generated samples low


# The order of updates, and who is touched


def steps_of(name: str, **options):
    """The names of the nets in the order of one batch's losses, and after each loss the nets that it has gradients for."""
    _, data = mixture_data()
    teacher = network(data)
    method = get("distiller", name).make(count=64, **options) if name == "dmd" else get("distiller", name).make(**options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = method.build(teacher)
    batch = data_of(method, teacher, data).draw(8, Rng((1,)))
    order, reached = [], []
    for loss in method.losses(State(teacher, nets, {}, method.phases()[0]), batch, Rng((2,))):
        order.append(loss.net)
        loss.value.backward()
        reached.append({n for n, net in nets.items() if any(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())})
        for net in nets.values():
            net.zero_grad()
    return order, reached


@pytest.mark.parametrize("updates", [1, 3])
def test_updates_alternate_and_the_critics_leave_the_student_alone(updates: int) -> None:
    order, reached = steps_of("dmd", fake_updates=updates)
    assert order == ["fake"] * updates + ["student"]
    assert reached == [{"fake"}] * updates + [{"student"}]

    order, reached = steps_of("dmd2", fake_updates=updates)
    assert order == ["fake", "head"] * updates + ["student"]
    assert reached[:-1] == [{"fake", "head"}, {"head"}] * updates  # the engine steps the named net only
    assert "student" in reached[-1]

    order, _ = steps_of("dmd2", fake_updates=updates, gan=0.0)
    assert order == ["fake"] * updates + ["student"]
    assert "head" not in dmd.DistributionMatching2(gan=0.0).phases()[0].optims


def test_without_regression_and_gan_a_student_whose_fake_is_the_teacher_stays() -> None:
    """At the start fake and teacher are one: matching alone has nothing to say, the pairs and the head do."""
    _, data = mixture_data()
    teacher = network(data)
    for name, weight in (("dmd", "regression"), ("dmd2", "gan")):
        for value, moves in ((0.0, False), (0.25, True)):
            method = get("distiller", name).make(**{weight: value})
            with torch.random.fork_rng():
                nets = method.build(teacher)
            batch = data_of(replace(method, count=64) if name == "dmd" else method, teacher, data).draw(8, Rng((1,)))
            *_, last = method.losses(State(teacher, nets, {}, method.phases()[0]), batch, Rng((2,)))
            last.value.backward()
            assert any(p.grad.abs().max() > 0 for p in nets["student"].parameters() if p.grad is not None) == moves


# Several steps


def test_backward_simulation_is_the_students_own_trajectory() -> None:
    """The inputs at each level are those that multistep consistency sampling gives: a student D = k x has known second moments."""
    k, levels, seen = 0.5, np.array([80.0, 10.0, 1.0]), {}

    class Linear(nn.Module):
        shape, classes, sigma_range = SIZE, 0, (0.002, 80.0)

        def forward(self, x, sigma, cond):
            if isinstance(sigma, torch.Tensor):
                for level in levels:
                    seen[level] = x[sigma == level].square().mean().item()
            return k * x

    x0 = dmd.generated(Linear(), levels, Cond(), 6000, Rng((3,)))
    assert x0.shape == (6000, *SIZE)
    moment = 80.0**2
    for i, level in enumerate(levels):
        # 2000 samples of 16 pixels each: the standard error of a second moment is 0.8%
        np.testing.assert_allclose(seen[level], moment, rtol=0.03)
        moment = k**2 * moment + (levels[i + 1] ** 2 if i < 2 else 0)


def test_only_the_last_call_of_a_simulation_has_gradients() -> None:
    student = network(mixture_data()[1])
    calls = []
    student.net.register_forward_pre_hook(lambda module, inputs: calls.append(torch.is_grad_enabled()))
    x0 = dmd.generated(student, np.array([80.0, 5.0, 0.5]), Cond(), 4, Rng((0,)))
    assert calls == [False, False, True]
    assert x0.requires_grad


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_multistep_student_trains_at_the_levels_it_is_sampled_at(steps: int) -> None:
    method = get("distiller", "dmd2").make(steps=steps, fake_updates=1)
    teacher, levels = unconditional(), set()
    nets = method.build(teacher)

    def note(module, inputs):
        levels.update(round(4 * float(c), 3) for c in inputs[1])

    nets["student"].register_forward_pre_hook(note)
    data = replace(mixture_data()[1], classes=0)
    for _ in method.losses(State(teacher, nets, {}, method.phases()[0]), Batch(data.draw(32, Rng((0,))).x0, Cond()), Rng((2,))):
        pass
    trained = set(levels)
    levels.clear()
    sampled(method, replace(teacher, net=nets["student"]), steps, torch.arange(4))
    assert levels == trained
    assert len(levels) == steps
    assert method.phase_for(steps) == "dmd2"


# Any teacher, and bad input


@pytest.mark.parametrize("name", NAMES)
@each("kind", ["unconditional", "warm_started"])
def test_other_teachers(name: str, kind: str) -> None:
    form, data = mixture_data()
    teacher = unconditional() if kind == "unconditional" else WarmStarted(form, network(data))
    method = get("distiller", name).make(**({} if name == "dmd2" else {"count": 32}))
    batch = data_of(method, teacher, data).draw(8, Rng((1,)))
    if kind == "unconditional":
        batch = Batch(batch.x0, Cond(), batch.noise)
    with torch.random.fork_rng():
        nets = method.build(teacher)
    found = list(method.losses(State(teacher, nets, {}, method.phases()[0]), batch, Rng((2,))))
    assert all(torch.isfinite(loss.value) for loss in found)
    assert found[-1].net == "student"


ERRORS = [
    ("kd", {"loss": "l3"}, "unknown loss 'l3'"),
    ("kd", {"teacher_solver": "hoin"}, "unknown solver 'hoin'; did you mean heun"),
    ("kd", {"teacher_solver": "ddpm"}, "kd runs on a solver that draws no noise, got 'ddpm'"),
    ("kd", {"teacher_solver": "amed"}, "kd runs on a solver that needs no fit, got 'amed'"),
    ("kd", {"count": 0}, "kd needs at least one pair of at least one step, got 0 of 10"),
    ("dmd", {"teacher_steps": 0}, "dmd needs at least one pair of at least one step, got 5000 of 0"),
    ("dmd", {"fake_updates": 0}, "dmd needs regression >= 0 and fake_updates >= 1, got 0.25 and 0; e.g. 0.25 and 1"),
    ("dmd", {"regression": -1.0}, "dmd needs regression >= 0"),
    ("dmd", {"loss": "softplus"}, "unknown loss 'softplus'"),
    ("dmd2", {"loss": "l2"}, "unknown loss 'l2' of dmd2's GAN; known: hinge, softplus"),
    ("dmd2", {"loss": "hinges"}, "did you mean hinge"),
    ("dmd2", {"steps": 0}, "dmd2 needs steps >= 1, gan >= 0 and fake_updates >= 1, got 0, 0.003 and 5"),
    ("dmd2", {"gan": -0.1}, "dmd2 needs steps >= 1"),
    ("dmd2", {"fake_updates": 0}, "dmd2 needs steps >= 1"),
]


@each(("name", "options", "message"), ERRORS)
def test_bad_options_are_refused_in_one_line(name: str, options: dict, message: str) -> None:
    with pytest.raises(UsageError) as err:
        get("distiller", name).make(**options)
    assert message in str(err.value)
    assert len(str(err.value).splitlines()) == 1


def test_step_counts_without_a_student() -> None:
    for name, message in (
        ("kd", "kd has a student for 1 step, not 2"),
        ("dmd", "dmd has a student for 1 step, not 2"),
        ("dmd2", "trained for 1"),
    ):
        with pytest.raises(Unreachable, match=message):
            get("distiller", name).make().phase_for(2)
        assert get("distiller", name).make().phase_for(1) == name


def test_a_network_without_a_deepest_map_needs_no_gan() -> None:
    teacher = linear_teacher()
    with pytest.raises(UsageError, match=r"dmd2: a ExactNet hands out no features for a head to read; use gan=0, or a unet teacher"):
        get("distiller", "dmd2").make().build(teacher)
    assert set(get("distiller", "dmd2").make(gan=0.0).build(teacher)) == {"student", "fake"}
