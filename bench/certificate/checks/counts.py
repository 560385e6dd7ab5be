"""The network passes that a plan announces are those that a run makes."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from bench.certificate.closed import MEAN, START, STD, Basis
from bench.certificate.finding import Finding
from bench.certificate.levels import RANGE, build
from fewstep.analytic import Counting, Gaussian
from fewstep.errors import Unreachable, UsageError
from fewstep.guidance import guide
from fewstep.sampling.plan import Plan, interpret, with_afs
from methods.solver import Solver

STEPS = range(1, 21)
GRID = "polynomial"


def _counted(plan: Plan, scale: float) -> tuple[int, int]:
    """(announced, counted) passes per sample; guidance runs both branches as one doubled batch, which counts twice."""
    seen = Counting(Gaussian(MEAN, STD, tuple(MEAN.shape), classes=2))
    denoiser, basis = guide(seen, scale), Basis(plan.noises)
    x: Tensor = RANGE[1] * START.expand(2 + len(plan.noises), -1)
    interpret(plan, denoiser, x, basis)
    return plan.nfe(denoiser), sum(1 if c.label is None else len(c.label) // len(x) for c in seen.conds)


def _analytical(plan: Plan) -> Plan | str:
    """The plan with AFS, or why the solver does not admit it."""
    try:
        return with_afs(plan)
    except UsageError as err:
        return str(err)


def counts(solver: Solver) -> Iterator[Finding]:
    """Announced and counted passes are equal for 1 to 20 steps, at both ends, with and without AFS and guidance.

    AFS saves one evaluation, and is not looked at where the solver does not admit it. Step counts that a solver cannot do are left out.
    """
    for end in ("sigma_min", "zero"):
        for afs in (False, True):
            for scale in (1.0, 2.0):
                yield _all_steps(solver, end, afs, scale)


def _all_steps(solver: Solver, end: str, afs: bool, scale: float) -> Finding:
    wrong, refused, looked_at = [], "", 0
    for steps in STEPS:
        try:
            plain = solver.plan(build(GRID, steps, end))
        except Unreachable:
            continue
        plan = _analytical(plain) if afs else plain
        if isinstance(plan, str):
            refused = plan
            continue
        looked_at += 1
        announced, counted = _counted(plan, scale)
        saved = len(plain.evals) - len(plan.evals)
        if announced != counted or saved != int(afs):
            wrong.append(f"{steps} steps: announced {announced}, counted {counted}, evaluations saved {saved}")
    what = f"{GRID}, end {end}, {'AFS, ' if afs else ''}guidance {scale:g}"
    if not looked_at:
        return Finding("counts", what, "as announced", "not admitted" if afs else "no plan", afs, refused)
    return Finding("counts", what, "as announced", wrong[0] if wrong else "as announced", not wrong, f"{looked_at} step counts")
