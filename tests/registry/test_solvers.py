"""Every registered solver, by identities and closed forms: a new one is picked up from the registry by itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

from fewstep.analytic import Gaussian
from fewstep.cond import NULL
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import ENDS, TimeGrid, make_grid
from fewstep.noise import LATENT, PhiloxNoise, Slot
from fewstep.plugins import entries, get
from fewstep.sampling.plan import prediction, state
from fewstep.sampling.runner import run
from methods.solver import draft, steps_for_nfe
from methods.solvers.dpm_multistep import PUBLISHED, multistep_terms
from methods.solvers.gits import GITS
from support.each import each

RANGE = (0.002, 80.0)
STD = torch.tensor([0.3, 0.8, 1.0, 2.5], dtype=torch.float64)
START = torch.tensor([[1.0, -0.5, 2.0, 0.3]], dtype=torch.float64)
EXACT = Gaussian(torch.zeros(4, dtype=torch.float64), STD, (4,))
# Solvers of the probability flow on a denoiser draw no noise; the others sample by another rule.
FLOW = [
    name
    for name, e in entries("solver").items()
    if not draft(e.make()).plan(make_grid("polynomial", 3, RANGE)).noises and e.make().claims.evaluates == "denoiser"
]


class Constant:
    """D = c everywhere: the flow is x(sigma') = c + sigma' / sigma (x - c), which every linear solver must transport exactly."""

    shape, classes, sigma_range = (2,), 0, RANGE

    def __init__(self):
        self.c = torch.tensor([0.7, -0.2], dtype=torch.float64)

    def cost(self, sigma):
        return 1

    def __call__(self, x, sigma, cond=NULL):
        return self.c.expand_as(x)


@pytest.mark.slow  # the certificate measures the orders of all
@pytest.mark.parametrize("name", FLOW)
def test_halving_the_step_long_enough_gives_the_exact_flow(name):
    made = get("solver", name).make()
    made = replace(made, teacher_steps=500) if isinstance(made, GITS) else made  # as many levels as it can have
    out = run(draft(made).plan(make_grid("polynomial", 500, RANGE)), EXACT, 80 * START)["x[500]"]
    # Euler's error at 500 steps of rho 7 is below 2% of the solution; the others are far below it.
    assert_close(out, EXACT.flow(80 * START, 80.0, 0.002), rtol=0.02, atol=0)  # see above


@pytest.mark.parametrize("name", [n for n in FLOW if not n.startswith("edm_") or n == "edm_euler_linear"])  # native times have no such step
def test_one_step_to_zero_is_the_denoiser(name):
    """With one evaluation and sigma' = 0 the only consistent first-order update is x' = D."""
    plan = draft(get("solver", name).make()).plan(make_grid("polynomial", 1, RANGE, "zero"))
    assert_close(run(plan, EXACT, 80 * START)["x[1]"], EXACT(80 * START, 80.0))


@pytest.mark.parametrize("name", entries("solver"))
@each("end", ENDS)
def test_levels_may_differ_per_sample(name, end):
    """A plan on a grid [nodes, B] is the plans of its columns side by side."""
    grids = [make_grid("polynomial", 4, (lo, hi), end) for lo, hi in ((0.002, 80.0), (0.01, 50.0))]
    solver, seeds = draft(get("solver", name).make()), torch.arange(2)
    together = solver.plan(TimeGrid(np.stack([g.sigmas for g in grids], axis=1)))
    out = run(together, EXACT, 10 * START.expand(2, 4), PhiloxNoise(seeds))[together.states[-1]]
    for b, grid in enumerate(grids):
        plan = solver.plan(grid)
        alone = run(plan, EXACT, 10 * START, PhiloxNoise(seeds[b : b + 1]))[plan.states[-1]]
        assert_close(out[b : b + 1], alone, atol=1e-10, rtol=1e-10)  # float64, ten operations a step


def test_the_exact_third_order_update_adds_the_other_half_of_the_second_difference():
    """Newton's divided differences: integrating e^(lam - lam') times the quadratic part of D gives -2 p3 D2; published is -p3 D2."""
    levels = np.exp(-np.cumsum([0.0, 0.3, 0.25, 0.4]))
    lams = [-np.log(s) for s in levels[::-1]]
    h, g0, g1 = lams[0] - lams[1], lams[1] - lams[2], lams[2] - lams[3]
    # Second divided difference of D over lam_0, lam_-1, lam_-2, times the integral of e^-(lam' - l) (l - lam_0)(l - lam_-1) by quadrature:
    # what the quadratic interpolant adds to the linear one. The linear one alone is the order-2 part of the exact update.
    nodes, weights = np.polynomial.legendre.leggauss(20)
    at = h * (nodes + 1) / 2  # l - lam_0
    weights = weights * h / 2 * np.exp(-(h - at))
    basis = [(at + g0) * (at + g0 + g1) / (g0 * (g0 + g1)), -at * (at + g0 + g1) / (g0 * g1), at * (at + g0) / (g1 * (g0 + g1))]
    assert_allclose(
        multistep_terms(3, lams), [float(weights @ b) for b in basis], rtol=1e-12
    )  # 20 nodes are exact; p3 loses four digits to cancellation
    second = h**2 * np.array([1 / (g0 * (g0 + g1)), -1 / (g0 * g1), 1 / (g1 * (g0 + g1))])  # D2 = h^2 times the divided difference
    p3 = (np.expm1(-h) / h + 1) / h - 0.5
    half = np.array(multistep_terms(3, lams)) - np.array(multistep_terms(3, lams, PUBLISHED))
    assert_allclose(half, -p3 * second, rtol=1e-11)  # a difference of weights twice as large, see above


def test_dpmpp_1s_is_ddim():
    grid = make_grid("logsnr", 6, RANGE)
    a, b = (run(get("solver", n).make().plan(grid), EXACT, 80 * START)["x[6]"] for n in ("dpmpp_1s", "euler"))
    assert_close(a, b)


def test_euler_is_ddim_in_the_variance_preserving_state():
    # y = x / sqrt(1 + sigma^2), alpha = 1 / sqrt(1 + sigma^2): y' = alpha' D + sqrt(1 - alpha'^2) eps (arXiv 2010.02502, equation 12).
    s, to = 7.0, 1.5
    x = s * START
    d = EXACT(x, s)
    eps = (x - d) / s
    alpha = (1 + to**2) ** -0.5
    y = alpha * d + (1 - alpha**2) ** 0.5 * eps
    out = run(get("solver", "euler").make().plan(TimeGrid([s, to])), EXACT, x)["x[1]"]
    assert_close(out / (1 + to**2) ** 0.5, y)


def test_dpm_2s_midpoint_is_geometric_and_r_is_its_exponent():
    plan = get("solver", "dpm_2s").make().plan(TimeGrid([16.0, 1.0]))
    assert_allclose([float(e.sigma) for e in plan.evals], [16.0, 4.0])
    plan = get("solver", "dpm_2s").make(r=0.25).plan(TimeGrid([16.0, 1.0]))
    assert_allclose([float(e.sigma) for e in plan.evals], [16.0, 8.0])  # 16^(3/4)


@each(
    ("name", "options", "steps", "history"),
    [
        # The order rises 1, 2, 3; with lower_order_final it falls to 2, 1 once it has risen fully; short runs never fall.
        ("dpmpp_3m", {}, 6, [1, 2, 3, 3, 2, 1]),
        ("dpmpp_3m", {}, 4, [1, 2, 2, 1]),
        ("dpmpp_3m", {}, 3, [1, 2, 1]),
        ("dpmpp_3m", {}, 2, [1, 2]),
        ("dpmpp_3m", {}, 1, [1]),
        ("dpmpp_3m", {"lower_order_final": False}, 5, [1, 2, 3, 3, 3]),
        ("dpmpp_2m", {}, 4, [1, 2, 2, 1]),
        ("dpmpp_2m", {}, 2, [1, 1]),
        ("dpmpp_1s", {}, 3, [1, 1, 1]),
    ],
)
def test_how_the_multistep_order_rises_and_falls(name, options, steps, history):
    plan = get("solver", name).make(**options).plan(make_grid("logsnr", steps, RANGE))
    combines = [op for op in plan.ops if hasattr(op, "terms")]
    assert [sum(str(ref).startswith("D[") for ref, _ in op.terms) for op in combines] == history


def test_a_multistep_step_to_zero_is_of_order_one():
    plan = get("solver", "dpmpp_3m").make(lower_order_final=False).plan(make_grid("logsnr", 5, RANGE, "zero"))
    assert dict(plan.ops[-1].terms) == {state(4): 0.0, prediction(4): 1.0}


class ExactConsistency:
    """f(x, sigma) = x sqrt((v + lo^2) / (v + sigma^2)) for data N(0, v): the whole flow to sigma = lo in one call."""

    shape, classes, sigma_range = (1,), 0, RANGE
    v = 0.25

    def cost(self, sigma):
        return 1

    def __call__(self, x, sigma, cond=NULL):
        return x * ((self.v + 0.002**2) / (self.v + sigma**2)) ** 0.5


class Draws:
    """A noise source that returns a chosen value, so that a linear sampler shows its gain."""

    def __init__(self, value: float):
        self.value = value

    def normal(self, slot, shape):
        return torch.full((1, *shape), self.value)

    def labels(self, classes):
        return torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("middle", "variance"),
    # Data N(0, 0.25), start N(0, 80^2): arXiv 2303.01469's algorithm 1 in closed form, printed with eight decimals.
    [((), 0.24999423), ((0.5853,), 0.24999988), ((0.821,), 0.25000136), ((1.3824,), 0.25000287)],
)
def test_consistency_sampling_of_the_exact_function_keeps_the_variance(middle, variance):
    plan = get("solver", "consistency").make().plan(TimeGrid([80.0, *middle, 0.002]))

    def gain(start, draw):
        x = torch.tensor([[start]], dtype=torch.float64)
        return float(run(plan, ExactConsistency(), x, Draws(draw))[plan.states[-1]])

    assert_allclose(gain(80.0, 0.0) ** 2 + gain(0.0, 1.0) ** 2, variance, atol=5.1e-9)  # eight printed decimals


def test_levels_by_hand_fix_the_number_of_steps():
    consistency, teacher = get("solver", "consistency").make(), Constant()

    def count(steps: int) -> int:
        return consistency.plan(make_grid("at 5 0.821", steps, RANGE)).nfe(teacher)

    assert steps_for_nfe(count, 3, "consistency") == 3
    for nfe in (2, 4):
        with pytest.raises(Unreachable, match=r"a grid at 5 0.821 has 3 steps and no other number"):
            steps_for_nfe(count, nfe, "consistency")


@each("end", ENDS)
@each("steps", [1, 2, 3])
def test_consistency_jumps_to_the_end_whatever_came_before(end, steps):
    grid, model = make_grid("polynomial", steps, RANGE, end), Constant()
    plan = get("solver", "consistency").make().plan(grid)
    noise = PhiloxNoise(torch.arange(2))
    out = run(plan, model, 80 * noise.normal(LATENT, (2,)).double(), noise, keep=plan.states)
    assert_close(out[plan.states[-1]], model.c.expand(2, 2))
    for i in range(1, steps):  # the state at node i carries noise of variance sigma_i^2 - sigma_end^2 on top of the jump
        added = np.sqrt(grid.sigmas[i] ** 2 - grid.sigmas[-1] ** 2) * noise.normal(Slot(i), (2,)).double()
        assert_close(out[state(i)], model.c + added)
    assert plan.noises == tuple(Slot(i) for i in range(1, steps))


# Solvers with one formula for sigma' = 0 and above.
ANY_END = {"euler", "gits_euler", "edm_euler_linear", "edm_euler_vp", "ddim_eta", "ddpm", "nstep_stochastic", "consistency"}
ANY_END |= {"repaint"}
ANY_END |= {"consistency_search", "ctm_gamma", "ctm_gamma_0", "ctm_gamma_1"}


@pytest.mark.parametrize("name", list(entries("solver")))
def test_a_grid_that_ends_at_zero_for_some_samples_is_right_or_refused(name):
    grids = [[80.0, 9.0, 1.1, 0.0], [40.0, 7.0, 0.9, 0.3]]
    made, both = draft(get("solver", name).make()), TimeGrid(np.transpose(grids))
    if name not in ANY_END:
        with pytest.raises(UsageError, match="node 3 is 0 for 1 of 2 samples; end all of them at 0 or none, or use euler"):
            made.plan(both)
        return
    plan = made.plan(both)
    out = run(plan, EXACT, torch.cat([80 * START, 40 * START]), PhiloxNoise(torch.tensor([3, 4])))[plan.states[-1]]
    for row, levels in enumerate(grids):
        own = made.plan(TimeGrid(levels))
        alone = run(own, EXACT, levels[0] * START, PhiloxNoise(torch.tensor([3 + row])))
        assert_close(out[row : row + 1], alone[own.states[-1]])


def test_euler_may_end_at_zero_for_some_samples():
    grid = TimeGrid([[2.0, 3.0], [0.0, 1.0]])
    assert not grid.at_zero(0)
    out = run(get("solver", "euler").make().plan(grid), EXACT, torch.cat([2 * START, 3 * START]))["x[1]"]
    d = EXACT(3 * START, 3.0)
    assert_close(out, torch.cat([EXACT(2 * START, 2.0), d + (3 * START - d) / 3]))
