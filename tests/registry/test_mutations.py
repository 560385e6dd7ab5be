"""A certificate that cannot fail says nothing: small mistakes in any registered solver, of which it must notice every one.

One weight, noise level or learned output of one kind of op in one position is off by 1%, or a sum keeps transporting constants exactly
and loses its order. Parity with diffusers is left out, so that nothing rests on an optional package.
"""

from __future__ import annotations

import numpy as np
import pytest

from bench.certificate.certify import findings
from bench.certificate.levels import build
from bench.certificate.mutants import RARE, Mutant, mutants, mutated_variants, rare
from fewstep.plugins import entries, get
from fewstep.sampling.plan import Apply, Combine, Eval, Plan
from methods.solver import draft
from support.each import each
from support.registered import chosen

# One-step and multistep, a corrector, variable steps, noise, and a learned step: what the certificate tells apart.
NOW = ("heun", "dpmpp_3m", "unipc_bh2_3", "ipndm_v_4", "dpmpp_2m_sde", "amed")
CHECKS = ("transport", "variance", "vectors", "golden", "steps", "order")


def noticed(name: str, mutant: Mutant, checks: tuple[str, ...] = CHECKS) -> bool:
    solver = get("solver", name).make()
    return not all(f.ok for f in findings(solver, name, mutated_variants(solver, mutant.change), checks))


@pytest.mark.parametrize("name", chosen("solver", NOW))
def test_every_mistake_is_noticed(name):
    made = list(mutants(draft(get("solver", name).make())))
    assert len(made) >= 15
    assert not [m.label for m in made if not noticed(name, m)]


@pytest.mark.parametrize("name", chosen("solver", NOW))
def test_mistakes_in_few_plans_alone_are_noticed(name):
    """Those that end at 0, or of at most 3 steps: no declared defect may hide them, and none hides what every run must be."""
    made = list(rare(draft(get("solver", name).make())))
    assert not [m.label for m in made if not noticed(name, m, ("transport", "variance"))]


@pytest.mark.parametrize("name", [name for name in entries("solver") if draft(get("solver", name).make()).claims.defects])
def test_few_plans_are_few(name):
    """Each mistake of either kind is one in its own plans, and none in others."""
    solver = draft(get("solver", name).make())
    assert {label.rpartition(" of plans ")[2] for label in (m.label for m in rare(solver))} == {words[6:] for words in RARE}
    for mutant in rare(solver):
        for words, (_, steps, end) in RARE.items():
            grid = build("polynomial", steps, end)
            changed = numbers(mutant.change(solver.plan(grid), grid)) != numbers(solver.plan(grid))
            assert changed == mutant.label.endswith(words)


def numbers(plan: Plan) -> list[float]:
    found = [c for op in plan.ops if isinstance(op, Combine) for _, c in op.terms]
    found += [level for op in plan.ops if isinstance(op, Eval) for level in (op.sigma, op.to) if level is not None]
    return [float(v) for v in found if not isinstance(v, str)]


@pytest.mark.parametrize("name", entries("solver"))
def test_every_mistake_is_one(name):
    """A change of a plan's numbers by at most a few percent, or of what a learned op writes; nothing else."""
    solver, grid = draft(get("solver", name).make()), build("polynomial", 8)
    right = solver.plan(grid)
    labels = [m.label for m in mutants(solver)]
    assert len(set(labels)) == len(labels)
    for mutant in mutants(solver):
        wrong = mutant.change(right, grid)
        same = numbers(wrong) == numbers(right)
        assert same == any(a is not b for a, b in zip(wrong.ops, right.ops) if isinstance(a, Apply))
        assert [type(op) for op in wrong.ops] == [type(op) for op in right.ops]


@each("name", ["heun", "dpmpp_3m", "unipc_bh2_3", "ipndm_4", "ddpm"])
def test_every_number_of_a_plan_is_mistaken_once(name):
    """Each weight that is not zero and each level, in every op: by exactly 1% of itself in some mutant."""
    solver, grid = get("solver", name).make(), build("polynomial", 8)
    right = np.array(numbers(solver.plan(grid)))
    hit = np.zeros(len(right), dtype=bool)
    for mutant in mutants(solver):
        if "moved" not in mutant.label:
            with np.errstate(invalid="ignore", divide="ignore"):
                hit |= np.abs(np.array(numbers(mutant.change(solver.plan(grid), grid))) / right - 1.01) < 1e-12
    assert hit[right != 0].all()


@each(
    ("name", "movable"),
    # One prediction and no noise: exact transport fixes both weights, and nothing can move.
    [("euler", False), ("ipndm_1", False), ("heun", True), ("dpmpp_2m", True), ("ddim_eta", True), ("amed", True)],
)
def test_where_weight_can_move(name, movable):
    assert any("moved" in m.label for m in mutants(draft(get("solver", name).make()))) == movable
