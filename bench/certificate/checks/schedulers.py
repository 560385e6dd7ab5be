"""Solvers against the schedulers of diffusers, where its conventions can be matched and it is installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch

from bench.certificate.checks.parity import Variant
from bench.certificate.checks.scheduler_runs import Scheduler, discrete, given, ours, own
from bench.certificate.finding import Finding
from fewstep.grid import TimeGrid
from fewstep.sampling.plan import Combine, Plan, prediction

# What their results may differ by: roundings of the final state, of size 3, unless a step carries on larger ones from sigma = 80.
DATA = 1e-12  # predictions of D, float64: a thousand roundings of 4e-16 and some slack; earlier roundings shrink with sigma
SLOPES = 1e-11  # x is of size 240 at sigma 80, and rounds by 3e-14; few long steps along a slope carry that on whole, some hundred times
TWICE = 1e-10  # a single step: that 3e-14 is divided by the inner sigma = 0.9 in its slope, which makes a step of 80, some tens of times
FLOAT32 = 3e-6  # a float32 state: ten roundings of 2e-7 at size 3
LONG = 3e-5  # a float32 state in a few long steps along a slope: at sigma 80 z rounds by 1e-7, and two products of size 240 by 8e-6 each
STEPS = (1, 2, 3, 4, 10)


def _unchanged(plan: Plan, grid: TimeGrid) -> Plan:
    return plan


@dataclass(frozen=True)
class Case:
    """A scheduler that computes what one of our solvers does with `options`, at these step counts, to a tolerance.

    `passes`: how many of their steps are one of ours. `change`: of our plan, for a known mistake of theirs that `note` declares.
    """

    theirs: Scheduler
    tolerance: float
    grid: str = "its own levels"
    steps: tuple[int, ...] = STEPS
    options: Mapping[str, Any] = field(default_factory=dict)
    passes: int = 1
    change: Callable[[Plan, TimeGrid], Plan] = _unchanged
    note: str = ""


def _placed(name: str, settings: Mapping[str, Any], form: str, tolerance: float, family: str, end: str = "sigma_min", **case: Any) -> Case:
    """A variance-preserving scheduler on one of our grids."""
    made = {"use_karras_sigmas": True, "prediction_type": form, **settings}
    return Case(
        Scheduler(name, made, form, given(family, end)), tolerance, f"{family} from 80 to {'0' if end == 'zero' else '0.01'}", **case
    )


def _multistep() -> Iterator[tuple[str, Case]]:
    """DPM-Solver++ in EDM's coordinates and in variance-preserving ones, and DPM-Solver on the noise prediction."""
    edm, vp = "EDMDPMSolverMultistepScheduler", "DPMSolverMultistepScheduler"
    for name, order in (("dpmpp_1s", 1), ("dpmpp_2m", 2), ("dpmpp_3m", 3)):
        theirs = {"use_karras_sigmas": True, "prediction_type": "sample", "solver_order": order}
        yield name, Case(Scheduler(edm, {"solver_order": order}, "F", own, False), DATA)
        yield name, Case(Scheduler(vp, theirs, "sample", own), FLOAT32)
    long = Scheduler(edm, {"solver_order": 3}, "F", own, False)
    yield "dpmpp_3m", Case(long, DATA, steps=(20,), options={"lower_order_final": False})  # they lower the last below 15 steps only
    for name, order in (("dpm_1s", 1), ("dpm_2m", 2), ("dpm_3m", 3)):
        theirs = {"solver_order": order, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
        few = STEPS[:-1] if order < 3 else (3, 4)  # they lower order 3 sooner on two steps
        yield name, _placed(vp, theirs, "epsilon", LONG, "polynomial", steps=few)
        yield name, _placed(vp, theirs, "epsilon", FLOAT32, "polynomial", steps=(10,))


def _single() -> Iterator[tuple[str, Case]]:
    """Their inner level is a level of their own grid: the geometric midpoint where gaps of log sigma are equal."""
    for name, kind, form in (("dpmpp_2s", "dpmsolver++", "sample"), ("dpm_2s", "dpmsolver", "epsilon")):
        theirs = {"solver_order": 2, "algorithm_type": kind, "lower_order_final": False, "final_sigmas_type": "sigma_min"}
        yield name, _placed("DPMSolverSinglestepScheduler", theirs, form, TWICE, "logsnr", steps=(1, 2, 5), passes=2)


def _adams() -> Iterator[tuple[str, Case]]:
    """Adams-Bashforth in sigma. A step to 0 is of order 1 in ours, so the grid ends above it."""
    for order in (1, 2, 3, 4):
        made = {"use_karras_sigmas": True, "prediction_type": "epsilon"}
        theirs = Scheduler("LMSDiscreteScheduler", made, "epsilon", given("polynomial"), False, step={"order": order})
        yield f"ab_v_{order}", Case(theirs, SLOPES, "polynomial from 80 to 0.01", note=f"order={order}")


def _unipc() -> Iterator[tuple[str, Case]]:
    """From three steps on, below which their order is lowered sooner; to 0 with bh2 only, where bh1 divides infinity by infinity there."""
    for scale in ("bh1", "bh2"):
        for order in (1, 2, 3):
            name, theirs = f"unipc_{scale}_{order}", {"solver_order": order, "solver_type": scale}
            for form, predicts in (("sample", "x0"), ("epsilon", "eps")):
                made = {**theirs, "predict_x0": predicts == "x0"}
                options = {"predicts": predicts}
                yield name, _placed("UniPCMultistepScheduler", made, form, SLOPES, "polynomial", steps=(3, 4, 10), options=options)
            if scale == "bh2":
                yield name, _placed("UniPCMultistepScheduler", theirs, "sample", DATA, "polynomial", "zero")


def _ancestral() -> Iterator[tuple[str, Case]]:
    """Schedulers over the discrete times of the VP process."""
    plain = {"prediction_type": "sample", "clip_sample": False}
    for eta in (0.0, 0.3, 1.0):
        theirs = Scheduler("DDIMScheduler", plain, "sample", discrete, noise=torch.float64, step={"eta": eta})
        yield "ddim_eta", Case(theirs, DATA, options={"eta": eta}, note=f"eta={eta}")
    for name, variance in (("ddpm", "fixed_small"), ("ddpm_large", "fixed_large")):
        theirs = Scheduler("DDPMScheduler", {"variance_type": variance, **plain}, "sample", discrete, noise=torch.float64)
        yield name, Case(theirs, DATA)
    euler = Scheduler("EulerAncestralDiscreteScheduler", {"prediction_type": "epsilon"}, "epsilon", own, False, torch.float64)
    yield "ddpm", Case(euler, LONG, steps=STEPS[1:])  # their one step starts at sigma = 0.03, and shows little


def with_wrong_sign(plan: Plan, grid: TimeGrid) -> Plan:
    """dpmpp_3m_sde with diffusers' weight of D2 in its steps of order 3: (1 - e^-2h - 2h) / (2h)^2 - 1/2.

    The solution of the SDE and k-diffusion have + 1/2 (the weight must vanish as h does); the difference is D2 once.
    """
    lam, ops = -np.log(grid.sigmas[grid.sigmas > 0]), []
    for op in plan.ops:
        if isinstance(op, Combine) and sum(str(ref).startswith("D[") for ref, _ in op.terms) == 3:
            i = plan.states.index(op.out) - 1
            h = lam[i + 1] - lam[i]
            r0, r1 = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h
            second = np.array([1 / r0, -1 / r0 - 1 / r1, 1 / r1]) / (r0 + r1)
            op = Combine(op.out, (*op.terms, *((prediction(i - k), -c) for k, c in enumerate(second))))
        ops.append(op)
    return Plan(tuple(ops), plan.states)


def _stochastic() -> Iterator[tuple[str, Case]]:
    """SDE-DPM-Solver++; in EDM's coordinates they have it to order 2."""
    sde = {"algorithm_type": "sde-dpmsolver++"}
    for name, order in (("dpmpp_1s_sde", 1), ("dpmpp_2m_sde", 2), ("dpmpp_3m_sde", 3)):
        made = {**sde, "solver_order": order}
        if order < 3:
            edm = Scheduler("EDMDPMSolverMultistepScheduler", made, "F", own, False, torch.float64)
            yield name, Case(edm, DATA)
        vp = {"use_karras_sigmas": True, "prediction_type": "sample", **made}
        theirs = Scheduler("DPMSolverMultistepScheduler", vp, "sample", own, noise=torch.float32)
        change, note = (with_wrong_sign, "with the wrong sign of theirs before 1/2 in the weight of D2") if order == 3 else (_unchanged, "")
        yield name, Case(theirs, FLOAT32, change=change, note=note)


@cache
def cases() -> Mapping[str, tuple[Case, ...]]:
    """Our solver -> the schedulers that compute the same. Known without diffusers."""
    karras = {"use_karras_sigmas": True}
    found = {
        "euler": [Case(Scheduler("EDMEulerScheduler", {}, "F", own, False), FLOAT32)],
        "heun": [Case(Scheduler("HeunDiscreteScheduler", karras, "epsilon", own, False), SLOPES)],
    }
    for group in (_multistep, _single, _adams, _unipc, _ancestral, _stochastic):
        for name, case in group():
            found.setdefault(name, []).append(case)
    return {name: tuple(of) for name, of in found.items()}


def _compared(case: Case, steps: int, variant: Variant, version: str) -> Finding:
    driven = case.theirs.drive(steps * case.passes)
    grid = TimeGrid(driven.levels[:: case.passes])
    plan = case.change(variant(case.options, {}).plan(grid), grid)
    off = float((driven.x - ours(plan, grid, driven.noise)).abs().max())
    note = "; ".join([f"largest difference from diffusers {version} {case.theirs.label}", *([case.note] if case.note else [])])
    return Finding("diffusers", f"{case.grid}, {steps} steps", case.tolerance, off, off <= case.tolerance, note)


def diffusers(name: str, variant: Variant) -> Iterator[Finding]:
    """The same results as the schedulers of diffusers that compute the same, at 1 to 20 steps. Recorded where it is not installed."""
    found = cases().get(name, ())
    if found and importlib.util.find_spec("diffusers") is None:
        yield Finding("diffusers", "its own", "parity", "not installed", True, "parity with diffusers was not checked")
        return
    for case in found:
        for steps in case.steps:
            yield _compared(case, steps, variant, importlib.import_module("diffusers").__version__)
