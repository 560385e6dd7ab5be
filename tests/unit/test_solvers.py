"""Every registered solver, by identities and closed forms: a new one is picked up from the registry by itself."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

from fewstep.analytic import Gaussian
from fewstep.cond import NULL
from fewstep.grid import ENDS, FAMILIES, TimeGrid, make_grid
from fewstep.noise import LATENT, PhiloxNoise, Slot
from fewstep.plan import Apply, Combine, Plan, prediction, run, state
from methods.registry import entries, get

RANGE = (0.002, 80.0)
PROBE = make_grid("polynomial", 3, RANGE)
# A solver of the probability flow draws no noise; the others sample by another rule and have their own tests below.
FLOW = [name for name, e in entries("solver").items() if not e.make().plan(PROBE).noises]


class Constant:
    """D = c everywhere: the flow is x(sigma') = c + sigma' / sigma (x - c), which every linear solver must transport exactly."""

    shape, classes, sigma_range = (2,), 0, RANGE

    def __init__(self):
        self.c = torch.tensor([0.7, -0.2], dtype=torch.float64)

    def cost(self, sigma):
        return 1

    def __call__(self, x, sigma, cond=NULL):
        return self.c.expand_as(x)


@pytest.mark.parametrize("name", FLOW)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_a_constant_prediction_is_transported_exactly(name, family, end, steps):
    grid, model = make_grid(family, steps, RANGE, end), Constant()
    x = 80 * torch.tensor([[1.0, -0.3], [0.2, 2.0]], dtype=torch.float64)
    out = run(get("solver", name).make().plan(grid), model, x, keep=(state(1),))
    for node in {1, steps}:
        ratio = float(grid.sigmas[node] / grid.sigmas[0])
        assert_close(out[state(node)], model.c + ratio * (x - model.c), atol=1e-11, rtol=0)  # 80 * 2 * 1e-16 a step, 40 ops


STD = torch.tensor([0.3, 0.8, 1.0, 2.5], dtype=torch.float64)
START = torch.tensor([[1.0, -0.5, 2.0, 0.3]], dtype=torch.float64)
FROM, STEP = 3, 4  # the measured step starts at node 3, which every order-3 history reaches, and is not among the last two


def _local_error(plan_of, h: float, gaps: list[float]) -> float:
    """Error of one step from exact states (so with an exact history), levels exp(-h * cumulated gaps) around sigma 1."""
    grid = TimeGrid(np.exp(-h * np.cumsum([0.0, *gaps])))
    exact = Gaussian(torch.zeros(4, dtype=torch.float64), STD, (4,))
    plan = plan_of(grid)
    ops = []
    for op in plan.ops:
        node = next((j for j in range(1, FROM + 1) if getattr(op, "out", None) == state(j)), None)
        if node is not None:  # the state at an earlier node comes from the closed form instead
            op = Apply((state(node),), lambda x, to=grid.sigmas[node]: (exact.flow(x, float(grid.sigmas[0]), float(to)),), (state(0),))
        ops.append(op)
    found = run(Plan(tuple(ops), plan.states), exact, START, keep=(state(STEP),))[state(STEP)]
    return float((found - exact.flow(START, 1.0, float(grid.sigmas[STEP]))).norm())


@pytest.mark.parametrize("name", FLOW)
@pytest.mark.parametrize("gaps", [[1.0] * 7, [1.0, 1.3, 0.8, 1.1, 0.9, 1.2, 1.0]], ids=["even", "uneven"])
def test_local_error_falls_as_fast_as_the_declared_order_says(name, gaps):
    """A method of order p makes a local error of h^(p + 1) from an exact history; halving h shows the exponent.

    Several standard deviations in one vector, so that no coefficient error hides in a symmetric problem.
    """
    order = get("solver", name).make().claims.order
    assert abs(_slope(get("solver", name).make().plan, gaps) - (order + 1)) < 0.2  # the next power of h moves it by O(h): 0.16 at most


def _slope(plan_of, gaps: list[float]) -> float:
    errors = [_local_error(plan_of, h, gaps) for h in (0.02, 0.01)]
    return float(np.log2(errors[0] / errors[1]))


def _with_the_whole_second_difference(grid: TimeGrid) -> Plan:
    """dpmpp_3m with its second-difference term - p3 D2 doubled in the measured step, worked out from Newton's divided differences.

    Integrating e^(lam - lam') times the second-order part of the quadratic through three predictions gives -2 p3 D2, of which the
    published update has half.
    """
    plan, lam = get("solver", "dpmpp_3m").make().plan(grid), -np.log(grid.sigmas)
    h = lam[STEP] - lam[FROM]
    r0, r1 = (lam[FROM] - lam[FROM - 1]) / h, (lam[FROM - 1] - lam[FROM - 2]) / h
    p3 = (np.expm1(-h) / h + 1) / h - 0.5
    second = np.array([1 / r0, -1 / r0 - 1 / r1, 1 / r1]) / (r0 + r1)
    missing = tuple((prediction(FROM - k), -p3 * c) for k, c in enumerate(second))
    ops = (Combine(op.out, (*op.terms, *missing)) if getattr(op, "out", None) == state(STEP) else op for op in plan.ops)
    return Plan(tuple(ops), plan.states)


@pytest.mark.parametrize("gaps", [[1.0] * 7, [1.0, 1.3, 0.8, 1.1, 0.9, 1.2, 1.0]], ids=["even", "uneven"])
def test_the_published_third_order_update_lacks_half_of_its_second_difference(gaps):
    assert abs(_slope(_with_the_whole_second_difference, gaps) - 4) < 0.2  # order 3 once the term is whole


def test_halving_the_step_long_enough_gives_the_exact_flow():
    exact = Gaussian(torch.zeros(4, dtype=torch.float64), STD, (4,))
    for name in FLOW:
        out = run(get("solver", name).make().plan(make_grid("polynomial", 1000, RANGE)), exact, 80 * START)["x[1000]"]
        # Euler's error at 1000 steps of rho 7 is below 1% of the solution; the others are far below it.
        assert_close(out, exact.flow(80 * START, 80.0, 0.002), rtol=0.01, atol=0)  # see above


@pytest.mark.parametrize("name", FLOW)
def test_one_step_to_zero_is_the_denoiser(name):
    """With one evaluation and sigma' = 0 the only consistent first-order update is x' = D."""
    exact = Gaussian(torch.zeros(4, dtype=torch.float64), STD, (4,))
    plan = get("solver", name).make().plan(make_grid("polynomial", 1, RANGE, "zero"))
    assert_close(run(plan, exact, 80 * START)["x[1]"], exact(80 * START, 80.0))


def test_dpmpp_1s_is_ddim():
    exact = Gaussian(torch.zeros(4, dtype=torch.float64), STD, (4,))
    grid = make_grid("logsnr", 6, RANGE)
    a, b = (run(get("solver", n).make().plan(grid), exact, 80 * START)["x[6]"] for n in ("dpmpp_1s", "euler"))
    assert_close(a, b)


def test_euler_is_ddim_in_the_variance_preserving_state():
    # y = x / sqrt(1 + sigma^2), alpha = 1 / sqrt(1 + sigma^2): y' = alpha' D + sqrt(1 - alpha'^2) eps (arXiv 2010.02502, equation 12).
    exact = Gaussian(torch.zeros(4, dtype=torch.float64), STD, (4,))
    s, to = 7.0, 1.5
    x = s * START
    d = exact(x, s)
    eps = (x - d) / s
    alpha = (1 + to**2) ** -0.5
    y = alpha * d + (1 - alpha**2) ** 0.5 * eps
    out = run(get("solver", "euler").make().plan(TimeGrid([s, to])), exact, x)["x[1]"]
    assert_close(out / (1 + to**2) ** 0.5, y)


def test_dpm_2s_midpoint_is_geometric_and_r_is_its_exponent():
    plan = get("solver", "dpm_2s").make().plan(TimeGrid([16.0, 1.0]))
    assert_allclose([float(e.sigma) for e in plan.evals], [16.0, 4.0])
    plan = get("solver", "dpm_2s").make(r=0.25).plan(TimeGrid([16.0, 1.0]))
    assert_allclose([float(e.sigma) for e in plan.evals], [16.0, 8.0])  # 16^(3/4)


@pytest.mark.parametrize(
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


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("steps", [1, 2, 3])
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
