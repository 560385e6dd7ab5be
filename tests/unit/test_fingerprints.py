"""Fingerprints of every registered plugin and of what all samples pass through.

Whoever changes what one of them computes must raise its `version` (SAMPLER_VERSION for the core), or caches would go stale.

`PYTHONPATH=.:tests python tests/unit/test_fingerprints.py` writes the file anew after a version was raised.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import mixture_data, network

from bench.generate import SAMPLER_VERSION
from fewstep.analytic import Gaussian
from fewstep.cond import Cond
from fewstep.grid import make_grid
from fewstep.guidance import guide
from fewstep.nets.checkpoint import load_denoiser
from fewstep.noise import Rng, Slot
from fewstep.plan import Apply, Combine, Eval, Plan, run, with_afs
from methods.distiller import State, WarmStarted
from methods.registry import entries, get
from methods.solver import draft

FILE = Path(__file__).with_name("fingerprints.json")
TRAINED = ("distiller", "pretrain")


def rounded(numbers: Iterable[Any]) -> list[float]:
    return [float(f"{float(n):.8g}") for n in numbers]


def plan_fingerprint(plan: Plan) -> tuple[str, list[float]]:
    """What a plan reads and writes, in words, and all its noise levels and coefficients, in the same order."""
    words, numbers = [], []
    for op in plan.ops:
        if isinstance(op, Eval):
            named = [f", {level}" for level in (op.sigma, op.to, op.features) if isinstance(level, str)]
            words.append(f"{op.out} = D({op.x}{''.join(named)})")
            numbers.extend(level for level in (op.sigma, op.to) if level is not None and not isinstance(level, str))
        elif isinstance(op, Combine):
            refs = [f"noise({ref.step}, {ref.role})" if isinstance(ref, Slot) else ref for ref, _ in op.terms]
            named = [f"{c} " if isinstance(c, str) else "" for _, c in op.terms]
            words.append(f"{op.out} = {' + '.join(c + ref for c, ref in zip(named, refs))}")
            numbers.extend(c for _, c in op.terms if not isinstance(c, str))
        else:
            words.append(f"{', '.join(op.outs)} = fn({', '.join(op.ins)})")
    return "; ".join([*words, f"states {' '.join(plan.states)}"]), rounded(numbers)


def solver_fingerprint(name: str) -> dict[str, Any]:
    """The plans of 1 to 4 steps, at both ends; and what they make of a Gaussian where their coefficients are known to the run only."""
    solver = draft(get("solver", name).make())
    plans = [solver.plan(make_grid("polynomial", n, (0.01, 10.0), end)) for n in (1, 2, 3, 4) for end in ("zero", "sigma_min")]
    words, numbers = zip(*map(plan_fingerprint, plans))
    found = [n for part in numbers for n in part]
    if any(isinstance(op, Apply) for plan in plans for op in plan.ops):
        teacher, x = Gaussian(torch.tensor([0.5, -0.2]), torch.tensor([0.3, 2.0]), (2,)), torch.tensor([[7.0, -4.0]], dtype=torch.float64)
        found += rounded(v for plan in plans for v in run(plan, teacher, x)[plan.states[-1]].flatten())
    return {"plans": list(words), "numbers": found}


def guidance_fingerprint() -> dict[str, Any]:
    """D of a closed form under guidance 2, in float64."""
    teacher, _ = mixture_data()
    x, cond = Rng((3,)).normal((2, *teacher.shape)).double(), Cond(label=torch.tensor([0, 1]))
    levels = [guide(teacher, 2.0)(x * (1 + s), s, cond)[:, 0, 0] for s in (0.1, 1.0, 10.0)]
    return {"plans": [], "numbers": rounded(torch.stack(levels).flatten())}


def afs_fingerprint() -> dict[str, Any]:
    """Two steps, the first one analytical."""
    plans = [with_afs(get("solver", name).make().plan(make_grid("polynomial", 2, (0.01, 10.0)))) for name in ("euler", "heun")]
    words, numbers = zip(*map(plan_fingerprint, plans))
    return {"plans": list(words), "numbers": [n for part in numbers for n in part]}


def teacher_fingerprint() -> dict[str, Any]:
    """D of the shipped digits teacher with and without a label: preconditioning, U-Net and weights."""
    teacher, _ = load_denoiser("digits_edm")
    x, cond = Rng((4,)).normal((2, *teacher.shape)), Cond(label=torch.tensor([3, teacher.classes]))
    with torch.inference_mode():
        levels = [teacher(x * (0.3 + s), s, cond)[:, 0, 3] for s in (0.05, 1.0, 20.0)]
    return {"plans": [], "numbers": rounded(torch.stack(levels).flatten())}


# What every sample passes through, under `bench.generate.SAMPLER_VERSION`; and how exactly each is reproduced elsewhere.
CORE: dict[str, tuple[Callable[[], dict[str, Any]], dict[str, float]]] = {
    "guidance": (guidance_fingerprint, {"rtol": 1e-7, "atol": 0}),  # eight printed digits
    "afs": (afs_fingerprint, {"rtol": 1e-7, "atol": 0}),  # eight printed digits
    # float32 convolutions: sums of a few hundred terms in another order move the fifth digit, and values near 0 the fifth decimal.
    "digits_teacher": (teacher_fingerprint, {"rtol": 1e-4, "atol": 1e-5}),
}


def training_fingerprint(kind: str, name: str) -> dict[str, Any]:
    """The first losses of each phase on a fixed batch, and the whole recipe."""
    teacher_form, data = mixture_data()
    teacher = network(data)
    if name == "warm_start":
        teacher = WarmStarted(teacher_form, teacher)
    method = get(kind, name).make()
    if name == "classifier":
        return {"recipe": repr(method.phases()), "losses": []}  # its network takes 8x8 images; its recipe is what can change
    nets = method.build(teacher)
    losses = []
    for phase in method.phases():
        emas = {e: nets[spec.net] for e, spec in phase.emas.items()}
        batch = data.draw(64, Rng((1,)))
        for loss in method.losses(State(teacher, nets, emas, phase), batch, Rng((2,))):
            losses.append(float(loss.value.detach()))
    return {"recipe": repr(method.phases()), "losses": losses}


def fingerprints() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, entry in entries("solver").items():
        found[f"solver/{name}"] = {"version": entry.make().version, **solver_fingerprint(name)}
    for kind in TRAINED:
        for name, entry in entries(kind).items():
            found[f"{kind}/{name}"] = {"version": entry.make().version, **training_fingerprint(kind, name)}
    for name, (compute, _) in CORE.items():
        found[f"core/{name}"] = {"version": SAMPLER_VERSION, **compute()}
    return found


def renamed(op: Eval | Combine, old: tuple[Any, ...], new: tuple[Any, ...]) -> Eval | Combine:
    """The op with its reads `old` replaced by `new`; its coefficients stay in place."""
    if isinstance(op, Eval):
        return replace(op, x=new[0]) if (op.x,) == old else op
    return replace(op, terms=tuple(zip(new, (c for _, c in op.terms)))) if tuple(r for r, _ in op.terms) == old else op


RECORDED = json.loads(FILE.read_text()) if FILE.exists() else {}
ADVICE = "the numbers changed: raise its version, then run PYTHONPATH=.:tests python tests/unit/test_fingerprints.py"


@pytest.mark.parametrize("name", entries("solver"))
def test_solver_numbers_belong_to_their_version(name: str) -> None:
    recorded, now = RECORDED[f"solver/{name}"], solver_fingerprint(name)
    assert get("solver", name).make().version == recorded["version"]
    assert now["plans"] == recorded["plans"], ADVICE
    # Eight printed digits; the last may round the other way on another processor.
    np.testing.assert_allclose(now["numbers"], recorded["numbers"], rtol=1e-7, atol=0, err_msg=ADVICE)


@pytest.mark.parametrize("name", CORE)
def test_core_numbers_belong_to_the_sampler_version(name: str) -> None:
    compute, budget = CORE[name]
    recorded, now = RECORDED[f"core/{name}"], compute()
    assert recorded["version"] == SAMPLER_VERSION
    assert now["plans"] == recorded["plans"], ADVICE
    np.testing.assert_allclose(now["numbers"], recorded["numbers"], **budget, err_msg=ADVICE)


def test_a_plan_that_reads_another_slot_has_another_fingerprint() -> None:
    """The same numbers on other slots: noise of another step, history in another order, another state in an evaluation."""
    plan = get("solver", "consistency").make().plan(make_grid("polynomial", 2, (0.01, 10.0)))
    words, numbers = plan_fingerprint(plan)
    for old, new in ((("D[0]", Slot(1)), ("D[0]", Slot(0))), (("D[0]", Slot(1)), (Slot(1), "D[0]")), (("x[1]",), ("x[0]",))):
        ops = tuple(renamed(op, old, new) for op in plan.ops)
        assert ops != plan.ops
        changed, same = plan_fingerprint(Plan(ops, plan.states))
        assert changed != words
        assert same == numbers


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k in TRAINED for n in entries(k)])
def test_training_numbers_belong_to_their_version(kind: str, name: str) -> None:
    recorded, now = RECORDED[f"{kind}/{name}"], training_fingerprint(kind, name)
    assert get(kind, name).make().version == recorded["version"]
    assert now["recipe"] == recorded["recipe"], ADVICE
    # float32 network passes: sums of a few hundred terms in another order move the fifth digit.
    np.testing.assert_allclose(now["losses"], recorded["losses"], rtol=1e-4, err_msg=ADVICE)  # float32 passes, see above


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(json.dumps(fingerprints(), indent=1) + "\n")
    print(f"wrote {FILE}")
