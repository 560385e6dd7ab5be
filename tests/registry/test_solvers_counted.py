"""Every solver asks its network as often as its plan says."""

import pytest
import torch

from fewstep.analytic import Counting, Gaussian
from fewstep.cond import Cond
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import ENDS, make_grid
from fewstep.guidance import guide
from fewstep.noise import PhiloxNoise
from fewstep.plugins import entries, get
from fewstep.sampling.plan import with_afs
from fewstep.sampling.runner import run
from methods.solver import draft
from support.each import each

RANGE = (0.002, 80.0)


X = torch.tensor([[1.0, -2.0], [0.5, 0.1]], dtype=torch.float64)


SOLVERS = list(entries("solver"))


def model() -> Gaussian:
    return Gaussian(torch.tensor([0.2, -0.1]), torch.tensor([0.5, 1.5]), (2,))


@pytest.mark.parametrize("name", SOLVERS)
@each("end", ENDS)
@each("afs", [False, True])
@each("steps", [1, 2, 3, 4, 5])
def test_counted_calls_are_the_plan_s_evaluations_and_carry_the_condition(name, end, afs, steps):
    plan = draft(get("solver", name).make()).plan(make_grid("polynomial", steps, RANGE, end))
    if afs and plan.evals[0].x != plan.states[0]:
        with pytest.raises(UsageError, match=r"one-step grid|first evaluation is at the initial state"):
            with_afs(plan)
        return
    if afs and steps == 1:
        with pytest.raises(Unreachable, match="one-step grid"):
            with_afs(plan)
        return
    plan = with_afs(plan) if afs else plan
    counting, cond = Counting(model()), Cond(torch.tensor([0, 0]))
    run(plan, counting, X * 80, PhiloxNoise(torch.arange(2)), cond)
    assert counting.calls == len(plan.evals) == plan.nfe(counting)
    assert all(c is cond for c in counting.conds)
    assert plan.nfe(guide(counting, 2.0)) == 2 * counting.calls
