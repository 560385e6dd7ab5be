"""Preconditioning, wrappers and closed-form denoisers against formulas worked out by hand."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.testing import assert_close

from fewstep.analytic import Gaussian, GaussianMixture
from fewstep.cond import NULL, Cond
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.precond import ConsistencyPrecond, EDMPrecond, ProcessPrecond
from fewstep.schedule import VP, Cosine, RectifiedFlow
from fewstep.wrappers import Mapped, dynamic_threshold
from support.each import each

MEAN, STD = 0.3, 0.7
SIGMAS = np.array([0.002, 0.1, 1.0, 10.0, 80.0])


class Known(nn.Module):
    """A network with one parameter (which fixes the dtype of its call) and a given function of (input, condition)."""

    def __init__(self, fn):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.fn = fn
        self.times = []

    def forward(self, x, c_noise, cond):
        self.times.append(c_noise)
        return self.fn(x, cond)


def gaussian() -> Gaussian:
    return Gaussian(torch.tensor(MEAN, dtype=torch.float64), torch.tensor(STD, dtype=torch.float64), (3,))


def test_edm_network_sees_unit_variance_and_regresses_unit_variance():
    sd = 0.4
    c_skip, c_out, c_in, c_noise = EDMPrecond(sd).coefficients(SIGMAS)
    assert_allclose(c_in**2 * (sd**2 + SIGMAS**2), np.ones(5))  # Var(c_in (x0 + sigma n)) = 1
    # The target (x0 - c_skip x) / c_out has variance ((1 - c_skip)^2 sd^2 + c_skip^2 sigma^2) / c_out^2 = 1.
    target = ((1 - c_skip) ** 2 * sd**2 + c_skip**2 * SIGMAS**2) / c_out**2
    assert_allclose(target, np.ones(5), rtol=1e-9)  # 1 - c_skip cancels to 2.5e-5 at sigma 0.002: 1e-16 / 2.5e-5 = 4e-12, squared
    assert_allclose(c_noise, np.log(SIGMAS) / 4)


def test_edm_denoiser_of_a_zero_network_is_exact_on_its_own_gaussian():
    # For x0 ~ N(0, sd^2) the posterior mean is sd^2 / (sd^2 + sigma^2) x = c_skip x, so F = 0.
    sd, x = 0.4, torch.tensor([[1.0, -3.0, 0.2]], dtype=torch.float64)
    model = Preconditioned(Known(lambda z, cond: torch.zeros_like(z)), EDMPrecond(sd), (3,), 0, (0.002, 80.0))
    exact = Gaussian(torch.zeros(1), torch.tensor(sd, dtype=torch.float64), (3,))
    for sigma in SIGMAS:
        assert_close(model(x, float(sigma)), exact(x, float(sigma)))


# c_skip, c_out, c_in at sigma_data 0.5, sigma_min 0.002: arXiv 2303.01469, appendix C, evaluated in float64 and printed to 8 decimals.
BOUNDARY = [
    (0.002, 1.0, 0.0, 1.99998400),
    (0.01, 0.99974407, 0.00799840, 1.99960012),
    (0.1, 0.96300519, 0.09609691, 1.96116135),
    (0.5853, 0.42355732, 0.37886974, 1.29905619),
    (1.0, 0.20064141, 0.44631917, 0.89442719),
    (10.0, 0.00249476, 0.49927629, 0.09987523),
    (80.0, 0.00003906, 0.49997773, 0.01249976),
]


@each(("sigma", "c_skip", "c_out", "c_in"), BOUNDARY)
def test_consistency_coefficients(sigma, c_skip, c_out, c_in):
    found = ConsistencyPrecond(0.5, 0.002).coefficients(np.asarray(sigma))[:3]
    assert_allclose(found, (c_skip, c_out, c_in), atol=5.1e-9)  # eight printed decimals


def test_consistency_boundary_holds_for_any_network():
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = Preconditioned(Known(lambda z, cond: 100 * torch.sin(z)), ConsistencyPrecond(0.5, 0.002), (3,), 0, (0.002, 80.0))
    assert torch.equal(model(x, 0.002), x)


def _exact_output(form: str, d: torch.Tensor, x: torch.Tensor, alpha: float, sigma_t: float) -> torch.Tensor:
    """What a perfect network of this form predicts, by definition of the form, at x = z / alpha."""
    eps = (x - d) * alpha / sigma_t
    return {"x0": d, "eps": eps, "v": alpha * eps - sigma_t * d, "u": eps - d}[form]


@each(
    ("form", "schedule"),
    [(form, process) for process in (VP(), Cosine()) for form in ("x0", "eps", "v")] + [(form, RectifiedFlow()) for form in ("x0", "u")],
)
@each("sigma", [0.05, 1.0, 20.0])
def test_every_form_of_a_perfect_network_is_the_same_denoiser(form, schedule, sigma):
    exact = gaussian()
    alpha, sigma_t = (float(c) for c in schedule.alpha_sigma(schedule.t(sigma)))
    assert_allclose(sigma_t / alpha, sigma, rtol=1e-10)  # the schedule's own contract
    net = Known(lambda z, cond: _exact_output(form, exact(z / alpha, sigma), z / alpha, alpha, sigma_t))
    model = Preconditioned(net, ProcessPrecond(schedule, form, time_scale=1000.0), (3,), 0, (0.01, 50.0))
    x = sigma * torch.tensor([[1.0, -0.5, 0.1], [0.3, 2.0, -1.0]], dtype=torch.float64)
    assert_close(model(x, sigma), exact(x, sigma), atol=1e-8, rtol=1e-8)  # sigma_t / alpha is sigma to 1e-10, times |x| up to 40
    assert_close(net.times[0], torch.full((2,), 1000.0 * float(schedule.t(sigma))))  # the time input is float32


def test_sigma_may_differ_per_sample():
    model = Preconditioned(Known(lambda z, cond: torch.tanh(z)), EDMPrecond(0.5), (3,), 0, (0.002, 80.0))
    x = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 4.0]], dtype=torch.float64)
    both = model(x, torch.tensor([0.3, 7.0], dtype=torch.float64))
    assert_close(both, torch.cat([model(x[:1], 0.3), model(x[1:], 7.0)]))


def test_the_network_is_called_in_its_own_dtype_and_the_state_keeps_its_own():
    seen = []
    net = Known(lambda z, cond: seen.append(z.dtype) or z).half()
    model = Preconditioned(net, EDMPrecond(0.5), (3,), 0, (0.002, 80.0))
    assert model(torch.ones(1, 3), 1.0).dtype == torch.float32
    assert seen == [torch.float16]


def test_wrappers_pass_on_what_a_sampler_asks_for():
    base = gaussian()
    wrapped = Mapped(base, dynamic_threshold)
    assert isinstance(wrapped, Denoiser)
    assert (wrapped.shape, wrapped.classes, wrapped.sigma_range, wrapped.cost(1.0)) == (base.shape, 0, base.sigma_range, 1)


def test_dynamic_threshold_by_hand():
    # 201 values 0, 0.01, ..., 2: the 0.995 quantile is the value at rank 199, 1.99; above it values are clipped, then all divided by it.
    d = torch.arange(201, dtype=torch.float64)[None] / 100
    assert_close(dynamic_threshold(d), d.clamp(max=1.99) / 1.99)
    # Below the floor of 1 nothing happens, and each sample has its own quantile.
    assert_close(dynamic_threshold(torch.cat([d / 4, -d])), torch.cat([d / 4, -d.clamp(max=1.99) / 1.99]))


def test_gaussian_flow_is_the_probability_flow_of_its_denoiser():
    # dx/dsigma = (x - D) / sigma: compare with a central difference of the closed form.
    exact, x, sigma, h = gaussian(), torch.tensor([[1.5, -0.2, 4.0]], dtype=torch.float64), 2.0, 1e-4
    slope = (exact.flow(x, sigma, sigma + h) - exact.flow(x, sigma, sigma - h)) / (2 * h)
    assert_close(slope, (x - exact(x, sigma)) / sigma, atol=1e-8, rtol=0)  # third derivative / 6 h^2 <= 1e-8, rounding 1e-16 / h = 1e-12
    there = exact.flow(x, 80.0, 1.3)
    assert_close(exact.flow(there, 1.3, 80.0), x)


def _mixture(classes: int = 0) -> GaussianMixture:
    g = torch.Generator().manual_seed(1)
    means = torch.randn(6, 2, 2, generator=g, dtype=torch.float64)
    std = torch.tensor([0.1, 0.5, 1.0, 0.2, 0.3, 0.7], dtype=torch.float64)
    return GaussianMixture(means, std, torch.log_softmax(torch.randn(6, generator=g, dtype=torch.float64), 0), classes)


def _posterior(model: GaussianMixture, x: torch.Tensor, sigma: float, components: list[int]) -> torch.Tensor:
    """E[x0 | x] of one sample by Bayes' rule written out in Python floats."""
    weights, parts = [], []
    for k in components:
        v = float(model.std[k]) ** 2 + sigma**2
        gap = (x - model.means[k]).flatten().tolist()
        weights.append(math.exp(float(model.logw[k]) - sum(c * c for c in gap) / (2 * v)) / v ** (len(gap) / 2))
        parts.append(model.means[k] + float(model.std[k]) ** 2 / v * (x - model.means[k]))
    return sum(w * p for w, p in zip(weights, parts, strict=True)) / sum(weights)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 5.0])
def test_mixture_is_bayes_rule(sigma):
    model, x = _mixture(), torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = torch.stack([_posterior(model, row, sigma, list(range(6))) for row in x])
    assert_close(model(x, sigma), expected)


def test_mixture_keeps_to_the_class_it_is_asked_for():
    model, x = _mixture(classes=3), torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    label = torch.tensor([0, 1, 2, 3])  # component k has class k mod 3; 3 is the null label
    expected = [_posterior(model, row, 0.8, [c, c + 3] if c < 3 else list(range(6))) for row, c in zip(x, label.tolist(), strict=True)]
    assert_close(model(x, 0.8, Cond(label)), torch.stack(expected))
    assert_close(model(x, 0.8, NULL), model(x, 0.8, Cond(torch.full((4,), 3))))


def test_mixture_without_spread_is_a_weighted_mean_of_the_data():
    # std 0: the denoiser of a finite set; at tiny sigma it returns the nearest point, at huge sigma the mean.
    means = torch.tensor([[-1.0], [0.0], [2.0]], dtype=torch.float64)
    model = GaussianMixture(means, torch.zeros(3), torch.log(torch.ones(3) / 3))
    x = torch.tensor([[1.8], [-0.6]], dtype=torch.float64)
    assert_close(model(x, 0.01), torch.tensor([[2.0], [-1.0]], dtype=torch.float64))
    assert_close(model(x, 1e6), torch.full((2, 1), 1 / 3, dtype=torch.float64), atol=1e-10, rtol=0)  # x (x0 - mean) / sigma^2 = 4e-12


def test_mixture_samples_have_the_mixture_s_mean():
    model = _mixture()
    x, k = model.sample(20000, torch.Generator().manual_seed(3))
    weights = model.logw.exp()
    # Each entry's standard error is at most sqrt(Var / 20000), Var < 4 for these components: 0.014; five of them.
    assert_close(x.mean(0), torch.einsum("k,kij->ij", weights, model.means), atol=0.07, rtol=0)  # see above
    assert_close(torch.bincount(k, minlength=6) / 20000, weights.float(), atol=0.018, rtol=0)  # five times sqrt(0.25 / 20000)


def test_conditions_travel_together():
    cond = Cond(label=torch.tensor([1, 2]), image=torch.ones(2, 1, 4, 4), scalars={"w": torch.tensor([0.5, 3.0])})
    one = cond[1:]
    assert one.label is not None
    assert one.label.tolist() == [2]
    assert one.scalars["w"].tolist() == [3.0]
    assert one.text is None
    free = cond.unconditional()
    assert free.label is None
    assert free.image is None
    assert free.scalars["w"].tolist() == [0.5, 3.0]
    assert cond.to("cpu").scalars["w"].tolist() == [0.5, 3.0]
