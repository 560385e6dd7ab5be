"""Solvers that draw noise, by exact moments: on an affine denoiser a plan is affine in its start and noises, so nothing is sampled."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

from fewstep.analytic import Gaussian, GaussianMixture
from fewstep.cond import NULL
from fewstep.errors import UsageError
from fewstep.grid import ENDS, TimeGrid, make_grid
from fewstep.noise import EDMNoise, PhiloxNoise, Slot
from fewstep.plugins import entries, get
from fewstep.sampling.plan import Combine, state, with_afs
from fewstep.sampling.runner import run
from support.each import each
from support.leaves import Leaves

FAMILIES = entries("grid")

RANGE = (0.002, 80.0)
KEEPING = ["ddim_eta", "ddpm", "dpmpp_1s_sde", "dpmpp_2s_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "nstep_stochastic", "ctm_gamma"]
ALL = [*KEEPING, "ddpm_large", "edm_churn", "consistency"]
STD = torch.tensor([0.3, 0.8, 1.0, 2.5], dtype=torch.float64)
MEAN = torch.tensor([0.4, -0.7, 0.2, 1.0], dtype=torch.float64)
GAUSSIAN = Gaussian(MEAN, STD, (4,))
POINT = Gaussian(MEAN, torch.zeros(4), (4,))  # D = MEAN, and Euler's step is the exact flow


def plan(name, grid, **options):
    return get("solver", name).make(**options).plan(grid)


class FlowGaussian:
    """The exact flow map of the Gaussian; called as a denoiser it is the exact consistency function to the level `end`."""

    shape, classes, sigma_range = (4,), 0, RANGE

    def __init__(self, end):
        self.end = end

    def cost(self, sigma):
        return 1

    def jump(self, x, sigma, sigma_to, cond=NULL):
        return GAUSSIAN.flow(x, sigma, sigma_to)

    def __call__(self, x, sigma, cond=NULL):
        return GAUSSIAN.flow(x, sigma, self.end)


def moments(plan, model, variance, nodes):
    """Mean and variance of the states at `nodes` when the start has the data's mean and this variance: all noises are independent."""
    x, noise, found = MEAN[None].clone().requires_grad_(), Leaves(), []
    out = run(plan, model, x, noise, keep=[state(i) for i in nodes])
    for i in nodes:
        sources = [x, *noise.drawn.values()]
        gains = torch.autograd.grad(out[state(i)].sum(), sources, retain_graph=True, allow_unused=True)
        start, *fresh = [torch.zeros_like(x) if g is None else g for g in gains]
        found.append((out[state(i)][0].detach(), (start**2 * variance + sum(g**2 for g in fresh))[0]))
    return found


GRIDS = [*(family for family in FAMILIES if family != "lcm"), "uneven"]  # that one cannot be refined: it has fifty times
GAPS = [1.0, 1.3, 0.8, 1.1, 0.9, 1.2, 1.0]


def _grid(family, steps):
    """Sigma 5 to 0.3. Uniform native time ends at u = 1/5: its usual end 1/1000 needs well over 1000 steps to be resolved."""
    if family == "uneven":
        lam = np.cumsum([0.0, *np.resize(GAPS, steps)])
        return TimeGrid(5 * 0.06 ** (lam / lam[-1]))
    return TimeGrid(FAMILIES[family].target(steps + 1, 0.3, 5.0, **({"eps_s": 0.2} if family.startswith("time_uniform") else {})))


def _errors(name, family, steps, **options):
    """Distance of the final mean and relative variance from the exact marginal's, started from the exact marginal."""
    found = []
    for n in steps:
        grid = _grid(family, n)
        ((mean, var),) = moments(plan(name, grid, **options), GAUSSIAN, STD**2 + grid.sigmas[0] ** 2, [n])
        found.append(float(torch.cat([mean - MEAN, var / (STD**2 + grid.sigmas[-1] ** 2) - 1]).norm()))
    return found


@pytest.mark.slow  # the certificate measures them too, in another way
@each("family", GRIDS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in (*KEEPING, "ddpm_large") if name != "ctm_gamma"),
        ("ddim_eta", {"eta": 1.0}),
        ("dpmpp_2s_sde", {"r": 0.7}),
        ("dpmpp_3m_sde", {"lower_order_final": False}),
        ("edm_churn", {"s_noise": 1.0, "s_churn": 5.0}),
    ],
)
def test_the_weak_order_is_the_declared_one(name, options, family):
    """Error of the marginal while the steps double three times (whole patterns of uneven gaps): its exponent to 0.2."""
    errors = _errors(name, family, [84, 168, 336, 672], **options)
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    order = get("solver", name).make(**options).claims.order_at(family)
    assert (np.abs(slopes - order) < 0.2).all(), slopes


@pytest.mark.slow
@each("family", GRIDS)
def test_churn_with_more_noise_than_it_needs_does_not_converge(family):
    """Each churn pulls the variance towards s_noise^2 times the right one; five e-folds of churn (s_churn 5) get it there within 1%."""
    errors = _errors("edm_churn", family, [336, 672], s_churn=5.0)
    assert abs(np.log2(errors[0] / errors[1])) < 0.2


@pytest.mark.parametrize("name", KEEPING)
@each("family", FAMILIES)
@each("end", ENDS)
@each("steps", [1, 2, 3, 7])
def test_point_data_keeps_its_variance_at_every_node(name, family, end, steps):
    """With D = c a sampler's mean is c and its variance at level sigma is sigma^2: no more noise than the level says, no less."""
    grid = make_grid(family, steps, RANGE, end)
    found = moments(plan(name, grid), POINT, grid.sigmas[0] ** 2, range(steps + 1))
    for sigma, (mean, var) in zip(grid.sigmas, found):
        assert_close(mean, MEAN, atol=1e-13, rtol=0)  # a few roundings of coefficients that sum to 1
        assert_close(var, torch.full_like(var, sigma**2), rtol=1e-10, atol=0)  # sums of coefficients near 1 and -1 round at sigma 0.002


@each(("name", "options"), [("consistency", {}), *(("ctm_gamma", {"gamma": g}) for g in (0.0, 0.3, 0.5, 1.0))])
@each("end", ENDS)
@each("steps", [1, 2, 3, 7])
def test_an_exact_student_keeps_the_marginal_whatever_the_step(name, options, end, steps):
    """An exact jump to s has variance std^2 + s^2, and the noise adds the rest."""
    grid = make_grid("polynomial", steps, RANGE, end)
    exact = FlowGaussian(float(grid.sigmas[-1]))
    found = moments(plan(name, grid, **options), exact, STD**2 + grid.sigmas[0] ** 2, range(steps + 1))
    for sigma, (mean, var) in zip(grid.sigmas, found):
        assert_close(mean, MEAN)
        assert_close(var, STD**2 + sigma**2)


def _declared(name, **options):
    return next(d.size for d in get("solver", name).make(**options).claims.defects if d.grid == "polynomial")


def _excess(name, **options):
    """Relative excess of the final variance on point data, 6 polynomial steps over (0.002, 80)."""
    grid = make_grid("polynomial", 6, RANGE)
    ((_, var),) = moments(plan(name, grid, **options), POINT, 80.0**2, [6])
    return float(var[0] / 0.002**2 - 1), grid.sigmas


def test_the_large_variance_of_ddpm_is_too_large_by_the_declared_amount():
    found, s = _excess("ddpm_large")
    ratio = 1.0  # of the variance at node i to sigma_i^2: the step keeps (sigma' / sigma)^2 of it and adds b (1 + sigma'^2)
    for a, b in pairwise(s):
        ratio = (b / a) ** 2 * ratio + (1 - (b / a) ** 2) * a**2 * (1 + b**2) / (b**2 * (1 + a**2))
    assert_allclose(found, ratio - 1, rtol=1e-9)  # the last level rounds at 1e-13 of the first
    assert_allclose(_declared("ddpm_large"), found, rtol=1e-6)  # six printed digits


def test_churn_inflates_the_variance_by_the_declared_amount():
    """Of the six levels only 80 is above s_max; at the others gamma is sqrt(2) - 1, so that an excess e becomes (e + s_noise^2 - 1) / 2."""
    found, _ = _excess("edm_churn")
    assert_allclose(found, (1.003**2 - 1) * (1 - 2.0**-5), rtol=1e-7)  # 1e-10 of the variance, 1 + 0.006
    assert_allclose(_declared("edm_churn"), found, rtol=1e-7)  # 1e-10 of the variance rounds
    assert_allclose(_excess("edm_churn", s_noise=1.0)[0], 0, atol=1e-10)  # rounding at sigma 0.002
    for options in ({"s_noise": 1.0}, {"s_churn": 0.0}, {"s_min": 60.0, "s_max": 70.0}):  # the last churns no level of these grids
        assert get("solver", "edm_churn").make(**options).claims.defects == ()


@pytest.mark.parametrize("options", [{"s_churn": 1.0}, {"s_churn": 0.3, "s_noise": 1.1}, {"s_min": 0.5, "s_max": 5.0, "s_noise": 0.98}])
def test_the_declared_excess_of_other_churns_is_theirs(options):
    assert_allclose(_declared("edm_churn", **options), _excess("edm_churn", **options)[0], rtol=1e-6)  # 1e-10 of the variance rounds


def _end(name, grid, noise=None, **options):
    made = plan(name, grid, **options)
    start = grid.sigmas[0] * torch.tensor([[1.0, -0.5, 2.0, 0.3]], dtype=torch.float64)
    return run(made, GAUSSIAN, start, noise or PhiloxNoise(torch.tensor([5])))[made.states[-1]]


@pytest.mark.parametrize("end", ENDS)
def test_solvers_that_are_the_same(end):
    grid = make_grid("polynomial", 5, RANGE, end)
    assert_close(_end("ddim_eta", grid, eta=0.0), _end("euler", grid))
    assert_close(_end("ddim_eta", grid, eta=1.0), _end("ddpm", grid))
    assert_close(_end("dpmpp_1s_sde", grid), _end("ddpm", grid))
    assert_close(_end("edm_churn", grid, s_churn=0.0), _end("heun", grid))
    assert_close(_end("ctm_gamma", grid, gamma=0.0), _end("euler", grid))  # on a denoiser the jump is Euler's
    for name, options in (("ddim_eta", {"eta": 0.0}), ("edm_churn", {"s_churn": 0.0}), ("ctm_gamma", {"gamma": 0.0})):
        assert plan(name, grid, **options).noises == ()


@pytest.mark.parametrize("name", ALL)
@each("end", ENDS)
@each("steps", [1, 2, 3, 4])
def test_noise_is_named_once_in_order_and_never_added_at_the_last_level_zero(name, end, steps):
    grid = make_grid("polynomial", steps, RANGE, end)
    made = plan(name, grid)
    assert list(made.noises) == sorted(set(made.noises))
    assert all(1 <= slot.step <= steps for slot in made.noises)
    if grid.sigmas[-1] == 0:
        assert not any(isinstance(ref, Slot) for ref, _ in made.ops[-1].terms)
    assert torch.isfinite(_end(name, grid, EDMNoise(torch.tensor([5])))).all()  # the published noise must be drawn in order


@pytest.mark.parametrize("name", ALL)
def test_one_step_to_zero_is_the_denoiser(name):
    grid = TimeGrid([80.0, 0.0])  # above the levels that are churned
    start = 80 * torch.tensor([[1.0, -0.5, 2.0, 0.3]], dtype=torch.float64)
    assert_close(_end(name, grid), GAUSSIAN(start, 80.0))


@pytest.mark.parametrize("name", ALL)
def test_grids_of_one_level_per_sample(name):
    """Two grids side by side give what each gives alone; in the first, churn skips a level that it raises in the second."""
    grids = [[80.0, 9.0, 1.1, 0.02, 0.0], [40.0, 7.0, 0.9, 0.3, 0.0]]
    start = torch.tensor([[1.0, -0.5, 2.0, 0.3], [0.4, 0.6, -1.0, 0.1]], dtype=torch.float64)
    both = TimeGrid(np.transpose(grids))
    made = plan(name, both)
    out = run(made, GAUSSIAN, start * torch.from_numpy(both.sigmas[0].copy())[:, None], PhiloxNoise(torch.tensor([3, 4])))
    for row, levels in enumerate(grids):
        own = plan(name, TimeGrid(levels))
        alone = run(own, GAUSSIAN, levels[0] * start[row : row + 1], PhiloxNoise(torch.tensor([3 + row])))
        assert_close(out[made.states[-1]][row : row + 1], alone[own.states[-1]])


def test_ddpm_in_the_variance_preserving_state():
    """z = x / sqrt(1 + sigma^2), abar = 1 / (1 + sigma^2): mean and variances of arXiv 2006.11239, equation 7 and section 3.2."""
    s, to = 7.0, 1.5
    x, noise = s * torch.tensor([[1.0, -0.5, 2.0, 0.3]], dtype=torch.float64), PhiloxNoise(torch.tensor([5]))
    abar, abar_to = 1 / (1 + s**2), 1 / (1 + to**2)
    a = abar / abar_to
    b = 1 - a
    mean = abar_to**0.5 * b / (1 - abar) * GAUSSIAN(x, s) + a**0.5 * (1 - abar_to) / (1 - abar) * x * abar**0.5
    for name, variance in (("ddpm", (1 - abar_to) / (1 - abar) * b), ("ddpm_large", b)):
        expected = mean + variance**0.5 * noise.normal(Slot(1), (4,)).double()
        assert_close(run(plan(name, TimeGrid([s, to])), GAUSSIAN, x, noise)["x[1]"] * abar_to**0.5, expected)


@pytest.mark.parametrize("r", [0.5, 0.3])
def test_the_single_step_sde_form(r):
    """First order to sigma_m, then first order with the extrapolated D; the step's noise contains the midpoint's as the SDE's does."""
    s, to = 7.0, 1.5
    x = torch.tensor([[3.0, -8.0, 5.0, 1.0]], dtype=torch.float64)
    made = plan("dpmpp_2s_sde", TimeGrid([s, to]), r=r)
    mid = float(made.evals[1].sigma)
    assert_allclose(np.log(s / mid), r * np.log(s / to))
    z1, z2 = (PhiloxNoise(torch.tensor([5])).normal(slot, (4,)).double() for slot in (Slot(1, 0), Slot(1, 1)))

    def decay(a, b):
        return (b / a) ** 2

    def spread(a, b):
        return b * np.sqrt(1 - decay(a, b))

    d = GAUSSIAN(x, s)
    xm = decay(s, mid) * x + (1 - decay(s, mid)) * d + spread(s, mid) * z1
    both = (1 - 1 / (2 * r)) * d + GAUSSIAN(xm, mid) / (2 * r)
    noise = decay(mid, to) * spread(s, mid) * z1 + spread(mid, to) * z2
    assert_allclose((decay(mid, to) * spread(s, mid)) ** 2 + spread(mid, to) ** 2, spread(s, to) ** 2)
    expected = decay(s, to) * x + (1 - decay(s, to)) * both + noise
    assert_close(run(made, GAUSSIAN, x, PhiloxNoise(torch.tensor([5])))["x[1]"], expected)


@pytest.mark.parametrize(
    ("name", "steps", "history"),
    [("dpmpp_3m_sde", 6, [1, 2, 3, 3, 2, 1]), ("dpmpp_3m_sde", 2, [1, 2]), ("dpmpp_2m_sde", 4, [1, 2, 2, 1]), ("dpmpp_1s_sde", 2, [1, 1])],
)
def test_how_the_multistep_order_rises_and_falls(name, steps, history):
    combines = [op for op in plan(name, make_grid("logsnr", steps, RANGE)).ops if isinstance(op, Combine)]
    assert [sum(str(ref).startswith("D[") for ref, _ in op.terms) for op in combines] == history


class Always:
    """A noise source that returns one value."""

    def normal(self, slot, shape):
        return torch.full((4, *shape), 0.3, dtype=torch.float64)

    def labels(self, classes):
        return torch.zeros(1, dtype=torch.int64)


CHURN = {"s_churn": 3.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003}


def test_churn_against_the_published_sampler():
    """NVlabs/edm at 008a4e5 on data near +-1/2, six levels and 0, every draw replaced by 0.3; x_0 = 80 z."""
    made = plan("edm_churn", make_grid("polynomial", 6, RANGE, "zero"), **CHURN)
    assert len(made.evals) == 11
    assert made.noises == (Slot(2), Slot(3), Slot(4), Slot(5))  # 80 and 0.002 are outside [s_min, s_max]
    modes = GaussianMixture(torch.tensor([[0.5], [-0.5]], dtype=torch.float64), torch.full((2,), 0.1, dtype=torch.float64), torch.zeros(2))
    out = run(made, modes, 80 * torch.tensor([[-1.5], [-0.5], [0.25], [1.0]], dtype=torch.float64), Always())["x[6]"]
    expected = torch.tensor([[-1.2255200009], [1.2667015047], [1.2790716939], [1.2989166765]], dtype=torch.float64)
    assert_close(out, expected, atol=5.1e-11, rtol=0)  # ten printed decimals


def test_churn_raises_the_level_by_its_share_and_at_most_to_twice_the_variance():
    grid = TimeGrid([8.0, 4.0, 2.0])
    assert_allclose([float(e.sigma) for e in plan("edm_churn", grid, s_churn=0.5).evals], [10.0, 4.0, 5.0, 2.0])  # gamma 0.5 / 2 steps
    assert_allclose([float(e.sigma) for e in plan("edm_churn", grid).evals], [8 * 2**0.5, 4.0, 4 * 2**0.5, 2.0])


def test_afs_needs_a_first_level_without_churn():
    quiet = with_afs(plan("edm_churn", make_grid("polynomial", 4, RANGE)))  # 80 is above s_max
    assert len(quiet.evals) == 7
    assert isinstance(quiet.ops[0], Combine)
    with pytest.raises(UsageError, match="first evaluation is at the initial state; use afs=false"):
        with_afs(plan("edm_churn", make_grid("polynomial", 4, (0.002, 40.0))))


@each(
    ("name", "options", "message"),
    [
        ("ddim_eta", {"eta": 1.5}, "eta must lie in"),
        ("ctm_gamma", {"gamma": -0.1}, "gamma must lie in"),
        ("ddpm", {"variance": "smal"}, "did you mean small"),
        ("edm_churn", {"s_churn": -1.0}, "need s_churn >= 0"),
        ("dpmpp_2m_sde", {"order": 4}, "order must be 1 to 3, got 4"),
        ("dpmpp_2s_sde", {"r": 1.0}, "r must be in"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        get("solver", name).make(**options)
