"""Closed-form denoisers against log-density gradients, numerical integration and sampling; the fine-grid solution against closed forms."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from bench.evaluate.exact_flow import run_fine, runge_kutta, solve
from fewstep.analytic import Analytic, Gaussian, GaussianMixture, image_set
from fewstep.arenas import arena_digits, arena_gaussian, arena_mixture, walsh_basis
from fewstep.cond import NULL, Cond
from fewstep.data.arena import HELDOUT, TRAIN
from fewstep.data.digits import digits
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.grid import make_grid
from fewstep.guidance import guide
from fewstep.plugins import get
from fewstep.sampling.runner import run

F64 = torch.float64


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def tilted() -> Gaussian:
    """Four correlated pixels: any orthonormal basis will do."""
    basis = torch.linalg.qr(random(4, 4)).Q
    return Gaussian(random(1, 2, 2, seed=1), torch.tensor([2.0, 0.7, 0.1, 0.0], dtype=F64), (1, 2, 2), basis=basis)


def mixture() -> GaussianMixture:
    """Five components of three classes, of unequal mass and not in turn."""
    std = torch.tensor([0.1, 0.6, 0.3, 0.2, 0.4], dtype=F64)
    logw = torch.log(torch.tensor([0.1, 0.2, 0.25, 0.4, 0.05], dtype=F64))
    return GaussianMixture(random(5, 1, 2, 2, seed=2), std, logw, 3, component_class=torch.tensor([0, 0, 2, 1, 2]))


def log_density(model: GaussianMixture, x: torch.Tensor, sigma: float, keep: list[int]) -> torch.Tensor:
    """log p_sigma(x) of the named components, written with torch.distributions; only its gradient is used."""
    spread = torch.sqrt(model.std[keep] ** 2 + sigma**2)
    means = model.means[keep].flatten(1)
    parts = torch.distributions.Normal(means, spread[:, None]).log_prob(x.flatten(1)[:, None]).sum(2)
    return torch.logsumexp(model.logw[keep] + parts, dim=1)


def score(model: GaussianMixture, x: torch.Tensor, sigma: float, keep: list[int]) -> torch.Tensor:
    at = x.clone().requires_grad_()
    return torch.autograd.grad(log_density(model, at, sigma, keep).sum(), at)[0]


# --- Gaussian -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.01, 1.0, 80.0])
def test_tilted_gaussian_is_the_score_of_its_density(sigma):
    model, x = tilted(), random(3, 1, 2, 2, seed=3)
    mean, cov = model.moments()
    at = x.clone().requires_grad_()
    density = torch.distributions.MultivariateNormal(mean, cov + sigma**2 * torch.eye(4, dtype=F64))
    gradient = torch.autograd.grad(density.log_prob(at.flatten(1)).sum(), at)[0]
    assert_close(model(x, sigma), x + sigma**2 * gradient)


def test_tilted_gaussian_with_the_unit_basis_is_the_plain_one():
    std = torch.tensor([2.0, 0.7, 0.1, 0.0], dtype=F64)
    plain = Gaussian(torch.tensor(0.3, dtype=F64), std.view(1, 2, 2), (1, 2, 2))
    same = Gaussian(torch.tensor(0.3, dtype=F64), std, (1, 2, 2), basis=torch.eye(4, dtype=F64))
    x = random(3, 1, 2, 2)
    assert_close(same(x, 0.5), plain(x, 0.5))
    assert_close(same.flow(x, 0.5, 0.1), plain.flow(x, 0.5, 0.1))
    assert_close(same.moments(), plain.moments())


def test_tilted_flow_solves_the_flow_and_a_level_per_sample_is_allowed():
    model, x, h = tilted(), random(3, 1, 2, 2), 1e-4
    sigma = torch.tensor([0.5, 2.0, 40.0], dtype=F64)
    slope = (model.flow(x, sigma, sigma + h) - model.flow(x, sigma, sigma - h)) / (2 * h)
    expected = (x - model(x, sigma)) / sigma.view(-1, 1, 1, 1)
    assert_close(slope, expected, atol=1e-7, rtol=0)  # h^2 / 6 times a third derivative below 40, and 1e-16 / h
    assert_close(model.flow(model.flow(x, sigma, 0.002), 0.002, sigma), x)


@pytest.mark.parametrize("make", [tilted, mixture])
def test_moments_are_those_of_exact_samples(make):
    model, count = make(), 40_000
    labels = torch.arange(count) % max(model.classes, 1)
    x = model.draw(labels, torch.Generator().manual_seed(0)).flatten(1)
    mean, cov = model.moments()
    # Five standard errors; var(x_i x_j) is bounded by the largest fourth moment seen, which is itself known to a few percent.
    assert (x.mean(0) - mean).abs().max() < 5 * math.sqrt(float(cov.diag().max()) / count)
    assert (torch.cov(x.T) - cov).abs().max() < 5 * math.sqrt(float(((x - mean) ** 4).mean(0).max()) / count)


# --- mixture --------------------------------------------------------------------------------------------------------------------


CLASS_OF = {0: [0, 1], 1: [3], 2: [2, 4]}
ALL = [0, 1, 2, 3, 4]


@pytest.mark.parametrize("sigma", [0.05, 1.0, 80.0])
def test_mixture_denoiser_is_the_score_of_its_density(sigma):
    model, x = mixture(), random(3, 1, 2, 2) * (1 + sigma)
    assert_close(model(x, sigma), x + sigma**2 * score(model, x, sigma, ALL))
    for label, keep in CLASS_OF.items():
        cond = Cond(torch.full((3,), label))
        assert_close(model(x, sigma, cond), x + sigma**2 * score(model, x, sigma, keep))


def test_guided_mixture_is_the_guided_score():
    model, x, sigma, scale = mixture(), random(3, 1, 2, 2), 0.7, 3.0
    plain = score(model, x, sigma, ALL)
    guided = [plain[i] + scale * (score(model, x, sigma, CLASS_OF[i])[i] - plain[i]) for i in range(3)]
    found = guide(model, scale)(x, sigma, Cond(torch.arange(3)))
    assert_close(found, x + sigma**2 * torch.stack(guided))


def test_balanced_weights_and_draws_by_class():
    model = mixture()
    # Class masses 0.3, 0.4, 0.3: each becomes 1/3.
    assert_close(model.weights(), torch.tensor([0.1 / 0.9, 0.2 / 0.9, 0.25 / 0.9, 1 / 3, 0.05 / 0.9], dtype=F64))
    assert_close(model.weights(balanced=False), model.logw.exp())
    mean, cov = model.moments(balanced=False)
    second = sum(
        w * (torch.outer(m, m) + s**2 * torch.eye(4, dtype=F64)) for w, m, s in zip(model.logw.exp(), model.means.flatten(1), model.std)
    )
    assert_close(cov, second - torch.outer(mean, mean))
    x = model.draw(torch.full((4000,), 1), torch.Generator().manual_seed(0))  # one component: mean 3, standard deviation 0.2
    assert (x.mean(0) - model.means[3]).abs().max() < 5 * 0.2 / math.sqrt(4000)


def test_a_float32_state_loses_nothing_at_small_noise():
    """Two images 0.1 apart: the posterior at sigma 0.02 is decided by differences of squares that float32 has lost at |x|^2 = 64."""
    means = torch.ones(2, 1, 8, 8, dtype=F64)
    means[1, 0, 0, 0] = 0.9
    model = GaussianMixture(means, torch.zeros(2, dtype=F64), torch.zeros(2, dtype=F64))
    x = means[:1] + 0.02 * random(1, 1, 8, 8)
    x[0, 0, 0, 0] = 0.952
    exact = model(x.float().double(), 0.02)
    found = model(x.float(), 0.02)
    assert found.dtype == torch.float32
    assert_close(found.double(), exact, atol=1e-7, rtol=0)  # rounding of the result, half of 2^-23


# --- image sets -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.002, 0.1, 1.0, 80.0])
def test_image_set_is_a_softmax_over_images(sigma):
    data = digits()
    images, labels = torch.from_numpy(data.train_x[:200]).double(), torch.from_numpy(data.train_y[:200])
    model = image_set(images, labels, 10)
    x = images[:4] + sigma * random(4, 1, 8, 8)
    wanted = torch.stack([torch.where(labels == c, 0.0, -math.inf) for c in (labels[0], 3, 7)] + [torch.zeros(200)])
    gaps = ((x[:, None] - images[None]) ** 2).flatten(2).sum(2)
    r = torch.softmax(wanted - gaps / (2 * sigma**2), dim=1)
    found = model(x, sigma, Cond(torch.tensor([int(labels[0]), 3, 7, 10])))
    assert_close(found, torch.einsum("bn,nchw->bchw", r, images))


def test_image_set_moments_and_draws_are_the_images():
    images, labels = random(6, 1, 2, 2), torch.tensor([0, 0, 0, 1, 1, 1])
    model = image_set(images, labels, 2)
    mean, cov = model.moments()
    assert_close(mean, images.flatten(1).mean(0))
    assert_close(cov, torch.cov(images.flatten(1).T, correction=0))
    drawn = model.draw(labels, torch.Generator().manual_seed(0))
    same = (drawn[:, None] == images[None]).flatten(2).all(2)
    assert same.any(1).all()
    assert (labels[same.int().argmax(1)] == labels).all()


@pytest.mark.parametrize("labels", [torch.tensor([0, 1]), torch.tensor([0, 1, 2]), torch.tensor([0, -1, 1])])
def test_labels_that_do_not_fit_are_refused(labels):
    with pytest.raises(UsageError, match=r"labels in 0\.\.1"):
        image_set(random(3, 1, 2, 2), labels, 2)


# --- arenas ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [arena_gaussian, arena_mixture, arena_digits])
def test_arenas_are_analytic_denoisers_with_an_identity(make):
    model = make()
    assert isinstance(model, Denoiser)
    assert isinstance(model, Analytic)
    assert model.identity() == make().identity()
    x = random(2, *model.shape)
    assert model(x, 1.0, Cond(torch.tensor([0, 1])) if model.classes else NULL).shape == x.shape
    values = model.draw(torch.arange(1000) % max(model.classes, 1), torch.Generator().manual_seed(0))
    assert (values.abs() > 1).double().mean() < 0.01


def test_identity_sees_every_number():
    model = arena_mixture()
    parts = (model.means, model.std, model.logw)
    changed = [
        GaussianMixture(*(p * (1 + 1e-6 * (i == j)) for i, p in enumerate(parts)), 10, component_class=model.owner) for j in range(3)
    ]
    other = [GaussianMixture(*parts, 10), GaussianMixture(*parts, 10, (0.002, 40.0), component_class=model.owner)]
    named = {m.identity() for m in (model, *changed, *other)}
    assert len(named) == 6
    assert GaussianMixture(*parts, 10, component_class=model.owner).identity() == model.identity()


def test_walsh_basis_is_orthonormal_and_starts_with_the_constant():
    basis = walsh_basis(4)
    assert_close(basis.T @ basis, torch.eye(16, dtype=F64))
    assert_close(basis[:, 0], torch.full((16,), 0.25, dtype=F64))


@pytest.mark.parametrize("name", ["arena_mixture", "arena_gaussian"])
def test_arena_images_are_balanced_exact_samples(name):
    data = get("data", name).make()
    assert data.name == name
    assert (data.train_x.shape, data.heldout_x.shape) == ((TRAIN, 1, 8, 8), (HELDOUT, 1, 8, 8))
    assert data.train_x.dtype == np.float32
    assert data.digest() == get("data", name).make().digest()
    if data.classes:
        assert (np.bincount(data.train_y) == TRAIN // data.classes).all()
        model = arena_mixture()
        nearest = torch.cdist(torch.from_numpy(data.train_x).double().flatten(1), model.means.flatten(1)).argmin(1)
        # Own means are at most 0.2 sqrt(64) = 1.6 away, those of other classes about sqrt(64 * 2 * (0.5^2 + 0.3^2) / 3) = 3.8.
        assert (model.owner[nearest].numpy() == data.train_y).mean() > 0.99


# --- the fine-grid solution -----------------------------------------------------------------------------------------------------


def test_runge_kutta_is_of_order_four():
    model, x = tilted(), 80 * random(3, 1, 2, 2)
    exact = model.flow(x, 80.0, 0.002)
    errors = [float((run_fine(model, x, NULL, n) - exact).abs().max()) for n in (100, 200)]
    assert 14 < errors[0] / errors[1] < 18  # 2^4 and a term of the next order


def test_one_runge_kutta_step_of_a_constant_denoiser_by_hand():
    # D = 0: x' = x (1 + h + h^2 / 2 + h^3 / 6 + h^4 / 24) with h = log(sigma' / sigma), the Taylor polynomial of e^h.
    zero = GaussianMixture(torch.zeros(1, 1, 1, 1, dtype=F64), torch.zeros(1, dtype=F64), torch.zeros(1, dtype=F64))
    plan, x, h = runge_kutta(make_grid("logsnr", 1, (0.5, 1.0))), torch.ones(1, 1, 1, 1, dtype=F64), -math.log(2)
    assert_close(run(plan, zero, x)["x[1]"].item(), 1 + h + h**2 / 2 + h**3 / 6 + h**4 / 24)


def test_the_bound_holds_and_a_gaussian_needs_none():
    model, x = mixture(), 80 * random(20, 1, 2, 2)
    cond = Cond(torch.arange(20) % 3)
    coarse, fine = solve(model, x, cond, 25), solve(model, x, cond, 400)
    error = float((coarse.images - fine.images).square().mean().sqrt())
    # Fourth order: the finer solution is about 15 times better than the bound, which is the difference of the two.
    assert 5 < coarse.error / error < 40
    assert fine.error < 1e-3 * coarse.error
    exact = solve(tilted(), x)
    assert exact.error < 1e-14
    assert_close(exact.images, tilted().flow(x, 80.0, 0.002))


FLOW = Gaussian(torch.tensor(0.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64), (1,))


def straight(z: float, t: float, r: float) -> float:
    """The flow from t to r in the coordinates z = (1 - t) x0 + t n, of N(0, 1/4): z = (1 - t) x with x at sigma = t / (1 - t)."""
    t = min(t, 1 - 1e-10)  # sigma is infinite at 1
    x = FLOW.flow(torch.tensor([[z / (1 - t)]], dtype=torch.float64), t / (1 - t), r / (1 - r))
    return (1 - r) * float(x)


def test_average_velocities_along_straight_paths_are_the_published_ones() -> None:
    """u = (z_t - z_r) / (t - r), its two identities, and the velocity v = (z - D) / t itself; eight printed decimals."""

    def average(z: float, t: float, r: float) -> float:
        return (z - straight(z, t, r)) / (t - r)

    assert [round(average(*ztr), 8) for ztr in ((1, 1, 0), (1, 1, 0.5), (1, 0.8, 0.3))] == [0.5, 0.88196601, 0.85645625]
    d = FLOW(torch.tensor([[1 / 0.2]], dtype=torch.float64), 0.8 / 0.2)
    v = (1 - float(d)) / 0.8
    assert round(v, 8) == 1.15384615
    middle = straight(1, 0.8, 0.55)
    assert round((average(1, 0.8, 0.55) + average(middle, 0.55, 0.3)) / 2, 8) == 0.85645625  # two half steps
    h = 1e-5  # du/dt along the path, by central differences of error h^2
    along = (average(1 + h * v, 0.8 + h, 0.3) - average(1 - h * v, 0.8 - h, 0.3)) / (2 * h)
    assert round(v - 0.5 * along, 8) == 0.85645625  # u = v - (t - r) du/dt
