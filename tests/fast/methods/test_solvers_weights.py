"""Solvers against derivations of their own: weights that integrate what they must, published formulas, published slips."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

from bench.certificate.checks.parity import TwoModes
from fewstep.analytic import Gaussian
from fewstep.cond import NULL
from fewstep.errors import UsageError
from fewstep.grid import TimeGrid, make_grid
from fewstep.plugins import entries, get
from fewstep.sampling.plan import Combine, Plan
from fewstep.sampling.runner import run
from fewstep.schedule import VP
from methods.solvers.adams import adams_weights
from methods.solvers.deis import exact_weights, tabulated_weights
from methods.solvers.dpm_multistep import noise_multistep_weights
from methods.solvers.ipndm import ipndm_weights
from methods.solvers.ipndm_v import ipndm_v_weights
from methods.solvers.unipc import unipc_weights
from support.each import each

FAMILIES = entries("grid")


class UnitSlope:
    """D = x - sigma, whose slope is one."""

    shape, classes, sigma_range = (1,), 0, (0.002, 80.0)

    def cost(self, sigma):
        return 1

    def __call__(self, x, sigma, cond=NULL):
        return x - sigma


# Step from 2.5 to 1.2 after 3.1, 4.2, 5.
LEVELS = [1.2, 2.5, 3.1, 4.2, 5.0]


def test_variable_step_weights_as_published_and_exact():
    h = LEVELS[0] - LEVELS[1]
    published, exact = (np.array(of(LEVELS[:4])) / h for of in (ipndm_v_weights, adams_weights))
    assert_allclose(published, [2.30719, -1.42929, 0.12210], atol=5.1e-6)  # five printed decimals
    assert_allclose(exact, [3.01797, -2.52778, 0.50980], atol=5.1e-6)  # five printed decimals
    assert_allclose(np.array(adams_weights(LEVELS)) / h, [4.00147, -4.52771, 2.18622, -0.65998], atol=5.1e-6)  # five printed decimals


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_exact_weights_integrate_the_powers_below_their_order(order):
    levels = LEVELS[: order + 1]
    weights = np.array(adams_weights(levels))
    for power in range(order):  # the integral of sigma^power from 2.5 to 1.2
        integral = (levels[0] ** (power + 1) - levels[1] ** (power + 1)) / (power + 1)
        assert_allclose(weights @ np.array(levels[1:]) ** power, integral, rtol=1e-13)  # roundings of weights of size 5


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_on_equal_steps_all_adams_weights_are_the_classical_ones(order):
    levels = [1.0, 1.5, 2.0, 2.5, 3.0][: order + 1]
    assert_allclose(adams_weights(levels), ipndm_weights(order, -0.5), rtol=1e-13)  # roundings of weights of size 3
    if order < 4:
        assert_allclose(ipndm_v_weights(levels), ipndm_weights(order, -0.5), rtol=1e-13)  # roundings of weights of size 3
    else:  # the published sign gives the third difference 5/12 + 1/24 for 5/12 - 1/24 = 3/8
        slip = -0.5 / 12 * np.array([1, -3, 3, -1])
        assert_allclose(ipndm_v_weights(levels), np.array(ipndm_weights(4, -0.5)) + slip, rtol=1e-12)  # roundings of weights of size 3


@pytest.mark.parametrize(
    ("levels", "total"),
    # x_end - x_0 for a slope of one: what the published weights of order 4 make of it, and what it is.
    [([5.0, 4.2, 3.1, 2.5, 1.2, 0.7], -4.686), (None, -79.99831)],
)
def test_published_order_4_does_not_integrate_a_constant_slope(levels, total):
    levels = make_grid("polynomial", 6, (0.002, 80.0)).sigmas if levels is None else np.array(levels)

    def moved(name):
        plan = get("solver", name).make().plan(TimeGrid(levels))
        end = run(plan, UnitSlope(), torch.full((1, 1), levels[0], dtype=torch.float64))[plan.states[-1]]
        return float(end) - levels[0]

    assert_allclose(moved("ipndm_v_4"), total, atol=5.1e-4 if levels[0] == 5 else 5.1e-6)  # printed decimals
    assert_allclose(moved("ab_v_4"), levels[-1] - levels[0], rtol=1e-14)  # roundings


QUADRATIC = FAMILIES["time_uniform_rho2"].target(5, 0.002, 80.0)
TABLE = [
    (1, [-4.0588332, 0.8612458]),
    (2, [-1.0236971, 0.40740839, -0.086191638]),
    (3, [-0.29715537, 0.10080322, -0.029159064, 0.0037292052]),
]


@pytest.mark.parametrize(("step", "expected"), TABLE)
def test_deis_weights(step, expected):
    assert_allclose(QUADRATIC, [80, 4.1237537, 0.92625759, 0.22378104, 0.002], rtol=5e-8)  # eight printed digits
    levels = [QUADRATIC[j] for j in range(step + 1, -1, -1)]
    assert_allclose(tabulated_weights(levels), expected, rtol=6e-8)  # eight printed digits
    exact = np.array(exact_weights(levels))
    assert_allclose(exact, expected, rtol=1e-3)  # the published rule's error, about 1e-4 of the interval
    assert_allclose(exact.sum(), levels[0] - levels[1], rtol=1e-13)  # roundings of 128 terms


def test_exact_deis_weights_do_not_depend_on_where_the_range_ends():
    """One step from 80 to 0.002 with a history: an integral over the whole range against the sum of 200 short ones."""
    nodes = [80.0, 90.0, 105.0, 120.0]
    cuts = np.geomspace(80.0, 0.002, 201)
    t = VP.fitted(0.002, 80.0).t
    points, weights = np.polynomial.legendre.leggauss(20)
    total = np.zeros(4)
    for a, b in pairwise(cuts):
        s = (a + b) / 2 + (b - a) / 2 * points
        for j in range(4):
            rest = [t(n) for k, n in enumerate(nodes) if k != j]
            total[j] += (b - a) / 2 * weights @ np.prod([(t(s) - r) / (t(nodes[j]) - r) for r in rest], axis=0)
    assert_allclose(exact_weights([0.002, *nodes]), total, rtol=1e-11)  # sums of 4000 terms whose signs alternate between the four


@pytest.mark.parametrize("order", [2, 3])
def test_noise_weights_integrate_polynomials_in_lambda(order):
    """x' = x + the integral of -e^-lam times the polynomial through the slopes, worked out by quadrature."""
    lams = -np.log(LEVELS[: order + 1])
    points, weights = np.polynomial.legendre.leggauss(30)
    at = lams[1] + (lams[0] - lams[1]) * (points + 1) / 2
    kernel = -(lams[0] - lams[1]) / 2 * weights * np.exp(-at)
    found = np.array(noise_multistep_weights(order, LEVELS[: order + 1]))
    for power in range(1 if order == 2 else 3):  # order 2 replaces the first moment by its trapezoid, as published
        assert_allclose(found @ lams[1:] ** power, kernel @ at**power, rtol=1e-12)  # roundings of weights of size 5
    as_tensors = noise_multistep_weights(order, [torch.tensor(s, dtype=torch.float64) for s in LEVELS[: order + 1]])
    assert_allclose(torch.stack(as_tensors).numpy(), found, rtol=1e-14)  # the same operations


@each("scale", ["bh1", "bh2"])
@each("hh", [-1.9, 1.9, -0.3])
@each("ratios", [[-0.8, -1.5], [-0.8, 1.0], [-0.8, -1.5, 1.0]])
def test_unipc_weights_solve_the_published_system(scale, hh, ratios):
    """sum_k r_k^(j-1) rho_k = j! g_j / B, with g_1 = expm1(hh) / hh - 1 and g_(j+1) = g_j / hh - 1 / (j+1)!."""
    b = hh if scale == "bh1" else np.expm1(hh)
    g = [np.expm1(hh) / hh - 1]
    g += [g[0] / hh - 1 / 2]
    g += [g[1] / hh - 1 / 6]
    right = [factorial * value / b for factorial, value in zip((1, 2, 6), g)][: len(ratios)]
    rho = np.linalg.solve(np.array(ratios)[None, :] ** np.arange(len(ratios))[:, None], right)
    expected = b * rho / np.array(ratios)
    found = unipc_weights(scale, np.float64(hh), ratios)
    assert_allclose(found, [np.expm1(hh) - expected.sum(), *expected], rtol=1e-11)  # g_3 loses three digits at hh = 0.3


@each(("steps", "calls"), [(1, 2), (2, 3), (3, 3), (4, 4), (7, 7)])
def test_unipc_corrects_its_last_state_only_while_its_order_still_rises(steps, calls):
    assert len(get("solver", "unipc_bh2_3").make().plan(make_grid("logsnr", steps, (0.002, 80.0))).evals) == calls
    assert len(get("solver", "unipc_bh2_3").make().plan(make_grid("logsnr", steps, (0.002, 80.0), "zero")).evals) == steps


@each(
    ("name", "reaches"),
    [
        ("ipndm_4", [1, 2, 3, 4, 4, 4]),
        ("ipndm_v_3", [1, 2, 3, 3, 3, 3]),
        ("ab_v_2", [1, 2, 2, 2, 2, 2]),
        ("deis", [1, 2, 3, 4, 4, 4]),
        ("dpm_3m", [1, 2, 3, 3, 2, 1]),
        ("dpm_1s", [1] * 6),
    ],
)
@each("end", ["sigma_min", "zero"])
def test_how_many_slopes_each_step_reads(name, reaches, end):
    plan: Plan = get("solver", name).make().plan(make_grid("polynomial", 6, (0.002, 80.0), end))
    read = [sum(str(ref).startswith("D[") for ref, _ in op.terms) for op in plan.ops if isinstance(op, Combine)]
    assert read == (reaches if end == "sigma_min" else [*reaches[:-1], 1])  # a step to 0 is of order 1


@each(
    ("name", "options", "word"),
    [
        ("ipndm_4", {"order": 5}, "order must be 1 to 4, got 5"),
        ("ipndm_v_4", {"order": 1}, "order must be 2 to 4, got 1"),
        ("ab_v_4", {"order": 0}, "order must be 1 to 4"),
        ("deis", {"order": 5}, "order must be 1 to 4"),
        ("dpm_3m", {"order": 4}, "order must be 1 to 3"),
        ("unipc_bh2_3", {"order": 4}, "order must be 1 to 3"),
        ("unipc_bh2_3", {"scale": "bh3"}, "scale must be bh1 or bh2"),
        ("unipc_bh2_3", {"predicts": "v"}, "predicts must be x0 or eps"),
        ("dpm_2s", {"r": 0.0}, "r must be in"),
        ("dpmpp_2s", {"r": 1.5}, "r must be in"),
        ("edm_heun_ve", {"schedule": "cosine"}, "schedule must be one of vp, ve, linear"),
        ("edm_heun_ve", {"alpha": 0.0}, "alpha must be in"),
        ("edm_heun_vp", {"alpha": 0.5}, "alpha=0.5 needs schedule=linear"),
        ("edm_euler_linear", {"alpha": 0.5}, "alpha=0.5 needs schedule=linear and second_order=true"),
    ],
)
def test_a_field_that_a_solver_does_not_have_is_refused(name, options, word):
    with pytest.raises(UsageError, match=word) as caught:
        get("solver", name).make(**options)
    assert "\n" not in str(caught.value)


def test_the_general_sampler_in_sigma_is_heun_and_its_alpha_moves_the_second_evaluation():
    grid = make_grid("polynomial", 5, (0.002, 80.0), "zero")
    x = 80 * torch.tensor([[-1.5, -0.5, 0.25, 1.0]], dtype=torch.float64)
    ours, heun = (get("solver", n).make(**o).plan(grid) for n, o in (("edm_euler_linear", {"second_order": True}), ("heun", {})))
    assert_close(run(ours, TwoModes(), x)["x[5]"], run(heun, TwoModes(), x)["x[5]"])
    plan = get("solver", "edm_euler_linear").make(second_order=True, alpha=0.5).plan(TimeGrid([16.0, 1.0]))
    assert_allclose([float(e.sigma) for e in plan.evals], [16.0, 8.5])
    # Midpoint: x' = x + h d(mid), with x_mid = x + h / 2 d.
    d = (x - TwoModes()(x, 16.0)) / 16
    mid = x - 7.5 * d
    assert_close(run(plan, TwoModes(), x)["x[1]"], x - 15 * (mid - TwoModes()(mid, 8.5)) / 8.5)


def test_dpm_3s_is_the_published_algorithm():
    """arXiv 2206.00927, algorithm 5 with alpha = 1, where sigma_(lam) = e^-lam and the slope is the noise prediction."""
    levels, x = TimeGrid([7.0, 0.9]), 7 * torch.tensor([[-1.5, -0.5, 0.25, 1.0]], dtype=torch.float64)
    low, high = -np.log(levels.sigmas)
    h, r1, r2 = high - low, 1 / 3, 2 / 3
    s1, s2 = np.exp(-(low + r1 * h)), np.exp(-(low + r2 * h))

    def noise(x, sigma):
        return (x - TwoModes()(x, sigma)) / sigma

    eps = noise(x, 7.0)
    u1 = x - s1 * np.expm1(r1 * h) * eps
    d1 = noise(u1, s1) - eps
    u2 = x - s2 * np.expm1(r2 * h) * eps - s2 * r2 / r1 * (np.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = noise(u2, s2) - eps
    expected = x - 0.9 * np.expm1(h) * eps - 0.9 / r2 * (np.expm1(h) / h - 1) * d2
    assert_close(run(get("solver", "dpm_3s").make().plan(levels), TwoModes(), x)["x[1]"], expected)


def test_first_order_names_are_ddim():
    grid, x = make_grid("polynomial", 6, (0.002, 80.0)), 80 * torch.tensor([[-1.5, -0.5, 0.25, 1.0]], dtype=torch.float64)
    found = [run(get("solver", n).make().plan(grid), TwoModes(), x)["x[6]"] for n in ("euler", "dpm_1s", "ipndm_1", "ab_v_1")]
    for other in found[1:]:
        assert_close(other, found[0], atol=1e-13, rtol=0)  # roundings of x = 80 in the first step


@each("scale", ["bh1", "bh2"])
@each("order", [1, 2, 3])
@each(("steps", "end"), [(1, "sigma_min"), (1, "zero"), (3, "sigma_min"), (7, "zero_last")])
def test_unipc_on_eps_transports_a_constant_to_rounding(scale, order, steps, end):
    """From 80 to 0.002 in one step the corrector counts the noise of its own point e^h = 40000 times: its parts must cancel by hand."""
    data = Gaussian(torch.tensor([0.7, -0.2], dtype=torch.float64), torch.zeros(2, dtype=torch.float64), (2,))
    grid = make_grid("polynomial", steps, (0.002, 80.0), end)
    plan = get("solver", f"unipc_{scale}_{order}").make(predicts="eps").plan(grid)
    out = run(plan, data, data.mean[None] + 80)[plan.states[-1]]
    largest = max([1.0, *(float(np.max(np.abs(c))) for op in plan.ops if isinstance(op, Combine) for _, c in op.terms)])
    assert_close(
        out, data.mean[None] + grid.sigmas[-1], rtol=0, atol=1e-13 * largest
    )  # a sum rounds at 2e-16 of its largest term, 80 at most


def test_unipc_on_eps_is_the_plain_loop():
    """arXiv 2302.04867 in the noise prediction, UniPC-2 (B2), written out: two steps and the first's corrector."""
    s = [5.0, 2.0, 0.7]
    lam = -np.log(s)
    plan = get("solver", "unipc_bh2_2").make(predicts="eps", lower_order_final=False).plan(TimeGrid(s))
    x0 = 5 * torch.tensor([[-1.5, -0.5, 0.25, 1.0]], dtype=torch.float64)

    def noise(x, sigma):
        return (x - TwoModes()(x, sigma)) / sigma

    h, e0 = lam[1] - lam[0], noise(x0, s[0])
    predicted = x0 - s[1] * np.expm1(h) * e0
    e1 = noise(predicted, s[1])
    x1 = x0 - s[1] * np.expm1(h) * (e0 + (e1 - e0) / 2)
    h, r = lam[2] - lam[1], (lam[0] - lam[1]) / (lam[2] - lam[1])
    x2 = x1 - s[2] * np.expm1(h) * (e1 + (e0 - e1) / (2 * r))
    found = run(plan, TwoModes(), x0, keep=("xp[1]", "x[1]"))
    assert_close([found[name] for name in ("xp[1]", "x[1]", "x[2]")], [predicted, x1, x2])
