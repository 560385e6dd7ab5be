"""Every registered solver over ranges far wider than images need: finite plans, and constants transported to rounding."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from bench.certificate.checks.transport import OPS, rounding_bound, slots_of
from bench.certificate.closed import POINT, points
from bench.certificate.finding import ROUNDING
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import ENDS, TimeGrid, make_grid
from fewstep.noise import PhiloxNoise, Slot
from fewstep.plugins import entries, get
from fewstep.sampling.plan import Apply, Coef, Combine, Eval, Op, Plan, interpret, with_afs
from fewstep.sampling.runner import run
from methods.solver import draft
from support.each import each

FAMILIES = entries("grid")

RANGES = ((4.54e-5, 22026.0), (1e-4, 1e4), (0.002, 80.0), (1e-6, 1e3))  # the first is that of the clipped cosine schedule
STEPS = (1, 2, 3, 4, 7, 20)
SCALED = ("edm_euler_vp", "edm_heun_vp", "edm_heun_ve")  # of the time or the state of another process: no step to 0 is x = D


def numbers(plan: Plan) -> np.ndarray:
    """Every level, coefficient and noise weight that is known before the run."""
    sums = [c for op in plan.ops if isinstance(op, Combine) for _, c in op.terms]
    levels = [level for op in plan.evals for level in (op.sigma, op.to)]
    return np.array([v for v in (*sums, *levels) if v is not None and not isinstance(v, str)], dtype=np.float64)


@pytest.mark.parametrize("name", entries("solver"))
def test_every_plan_is_finite(name: str) -> None:
    """And is made without a warning: a division by 0 on the way is one that some other range turns into a number."""
    made = draft(get("solver", name).make())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for family, end, steps, ends in product(FAMILIES, ENDS, STEPS, RANGES):
            plan = made.plan(make_grid(family, steps, ends, end))
            assert np.isfinite(numbers(plan)).all(), (family, end, steps, ends)
            try:
                rewritten = with_afs(plan)
            except Unreachable:
                continue
            assert np.isfinite(numbers(rewritten)).all(), (family, end, steps, ends)


def runs(name: str) -> Iterator[tuple[Plan, TimeGrid]]:
    made = draft(get("solver", name).make())
    for family, end, steps, ends in product(("polynomial", "logsnr"), ("zero", "sigma_min"), (1, 2, 4), RANGES):
        grid = make_grid(family, steps, ends, end)
        yield made.plan(grid), grid


def departures(plan: Plan, grid: TimeGrid) -> tuple[torch.Tensor, float]:
    """Distances from c + sigma / sigma_max (x_0 - c) at the nodes [nodes, 2], for x_0 = c + sigma_max and x_0 = c, where D = c.

    And their budget: that of the certificate, and as many roundings of x_0, whose coefficient may be a small difference of numbers near 1;
    where slopes at an inserted state have predicted weights, these make that larger.
    """
    top = float(grid.sigmas[0])
    starts = torch.tensor([[top], [0.0]], dtype=torch.float64)
    slots = interpret(plan, points(), POINT + starts, PhiloxNoise(torch.arange(2)), keep=slots_of(plan))
    gone = [(slots[name] - POINT - starts * float(s) / top).abs().amax(1) for name, s in zip(plan.states, grid.sigmas, strict=True)]
    predicted = [c for op in plan.ops if isinstance(op, Combine) for _, c in op.terms if isinstance(c, str)]
    weight = max([1.0, *(float(slots[c].abs().max()) for c in predicted)])
    return torch.stack(gone), rounding_bound(plan, slots) + OPS * len(plan.ops) * ROUNDING * top * weight


@pytest.mark.parametrize("name", entries("solver"))
def test_constants_are_transported(name: str) -> None:
    """Every node, of a solver of the flow without a declared departure; the end at 0, of all but those that step in scaled states."""
    claims = get("solver", name).make().claims
    exact = claims.evaluates == "denoiser" and not any(d.check == "transport" for d in claims.defects)
    for plan, grid in runs(name):
        gone, budget = departures(plan, grid)
        if exact and not plan.noises:
            assert gone.max() <= budget, (grid.sigmas, gone)
        if grid.sigmas[-1] == 0 and name not in SCALED:
            assert gone[-1].max() <= budget, (grid.sigmas, gone[-1])
        if name == "edm_heun_ve":  # exact where the state is the constant already
            assert gone[:, 1].max() <= budget, (grid.sigmas, gone[:, 1])


@pytest.mark.parametrize("ends", RANGES)
def test_heun_in_squared_sigma_is_what_exact_arithmetic_says(ends: tuple[float, float]) -> None:
    """One step over the range: before, its second evaluation was at sigma 0 where (sigma' / sigma)^2 is below 1e-16.

    t = sigma^2 is a rational number, and so is every coefficient: x1 = x + h a (x - D), x' = x + h/2 (a (x - D) + a' (x1 - D1)).
    """
    grid = make_grid("polynomial", 1, ends)
    hi, lo = (Fraction(float(s)) ** 2 for s in grid.sigmas)
    h, a, a_to = lo - hi, 1 / (2 * hi), 1 / (2 * lo)
    first = (1 + h * a, -h * a)
    last = (1 + h / 2 * (a + a_to * first[0]), h / 2 * (-a + a_to * first[1]), -h / 2 * a_to)
    plan = get("solver", "edm_heun_ve").make().plan(grid)
    assert [float(e.sigma) for e in plan.evals] == [ends[1], ends[0]]
    inner, step = (op for op in plan.ops if isinstance(op, Combine))
    # A few products and quotients of sigma^2; the differences are of numbers of unlike size.
    assert_allclose([float(c) for _, c in inner.terms], [float(c) for c in first], rtol=1e-15)  # five roundings of 1.1e-16
    assert_allclose([float(c) for _, c in step.terms], [float(c) for c in last], rtol=5e-15)  # about twenty of them


NAN, INF = float("nan"), float("inf")
EVAL = Eval("D[0]", "x[0]", 2.0)


def sums(c: Coef, ref: str | Slot = "D[0]") -> Combine:
    return Combine("x[1]", (("x[0]", 0.5), (ref, c)))


@each(
    ("ops", "line"),
    [
        ((EVAL, sums(NAN)), r"plan sums 'x\[1\]' with nan times 'D\[0\]'; coefficients are finite: check the grid's levels"),
        ((EVAL, sums(np.float64(-INF))), r"plan sums 'x\[1\]' with -inf times 'D\[0\]'"),
        ((EVAL, sums(np.array([1.0, INF]))), r"plan sums 'x\[1\]' with inf times 'D\[0\]'"),
        ((EVAL, sums(INF, Slot(1))), r"plan sums 'x\[1\]' with inf times 'Slot\(step=1, role=0\)'"),
        ((Eval("D[0]", "x[0]", NAN), sums(1.0)), r"plan evaluates 'D\[0\]' at level nan; levels are finite and >= 0"),
        ((Eval("D[0]", "x[0]", np.array([1.0, -2.0])), sums(1.0)), r"plan evaluates 'D\[0\]' at level -2; levels are finite and >= 0"),
        ((Eval("D[0]", "x[0]", 2.0, to=np.float64(INF)), sums(1.0)), r"plan evaluates 'D\[0\]' at level inf"),
        (
            (EVAL, sums(np.ones((2, 2)))),
            r"plan sums 'x\[1\]' with an array \[2, 2\] times 'D\[0\]'; it is a float, an array",
        ),
        ((EVAL, sums(torch.tensor(1.0))), r"plan sums 'x\[1\]' with a Tensor times 'D\[0\]'"),  # pyright: ignore[reportArgumentType]
        ((EVAL, Combine("x[1]", ())), r"plan sums 'x\[1\]' of nothing; give terms"),
        ((Eval("D[0]", "x[0]", np.ones((2, 2))), sums(1.0)), r"plan evaluates 'D\[0\]' at an array \[2, 2\]; a level is a float, an array"),
        (("D[0]",), "a plan holds Eval, Combine and Apply, got a str"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_a_plan_refuses_numbers_that_are_none(ops: tuple[Op, ...], line: str) -> None:
    with pytest.raises(UsageError, match=line) as raised:
        Plan(ops, ("x[0]", "x[1]"))
    with pytest.raises(UsageError, match="a plan has a tuple of states, from the first to the result, got"):
        Plan(ops, "x[0]" if len(ops) > 1 else ())  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("backend", ["auto", "reference", "cpu"])
def test_what_is_finite_for_the_plan_but_not_in_float32_is_refused_where_it_is_lowered(backend: str) -> None:
    plan = Plan((EVAL, sums(1e300)), ("x[0]", "x[1]"))
    with torch.no_grad(), pytest.raises(UsageError, match=r"1e\+300; every one must be finite in torch.float32: check the grid"):
        run(plan, points(), torch.zeros(2, 2), backend=backend)
    assert torch.isfinite(run(plan, points(), torch.zeros(2, 2, dtype=torch.float64))["x[1]"]).all()


def test_a_coefficient_that_only_the_run_knows_is_left_to_it() -> None:
    ops = (Apply(("c",), lambda x: (x.new_full((len(x),), 2.0),), ("x[0]",)), Combine("x[1]", (("x[0]", "c"),)))
    out = run(Plan(ops, ("x[0]", "x[1]")), points(), torch.ones(2, 2, dtype=torch.float64))["x[1]"]
    assert (out == 2).all()
