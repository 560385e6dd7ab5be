"""Fingerprints of every registered plugin and of what all samples pass through.

Whoever changes what one of them computes must raise its `version` (SAMPLER_VERSION for the core), or caches would go stale.

`PYTHONPATH=.:tests python tests/registry/test_fingerprints.py` writes the file anew after a version was raised.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.evaluate import exact_flow as exact
from bench.jobs.fits.pairs import probe_pairs
from bench.training.engine import Engine, Settings
from fewstep.analytic import Gaussian
from fewstep.cond import Cond
from fewstep.grid import make_grid
from fewstep.guidance import guide
from fewstep.nets.loading import load_denoiser
from fewstep.noise import Rng, Slot
from fewstep.plugins import entries, get
from fewstep.sampling.draw import SAMPLER_VERSION
from fewstep.sampling.plan import Apply, Combine, Eval, Plan, with_afs
from fewstep.sampling.runner import run
from methods.distiller import Paired
from methods.recipe import Recipe
from methods.solver import Fitting, Learned, draft
from methods.start import WarmStarted
from methods.training import Ema, Optim, State, Trainable, described
from metrics import declared, metrics_by_name
from support.components import (
    BRANCHES,
    CONFIGS,
    branch_numbers,
    coefficient_numbers,
    degradation_numbers,
    metric_numbers,
    network_numbers,
    noise_numbers,
)
from support.tiny import VARIANTS, data_of, made, mixture_data, network, teacher_of

METRICS = metrics_by_name()

FILE = Path(__file__).with_name("fingerprints.json")
TRAINED = ("distiller", "pretrain")
LEARNED = [name for name, entry in entries("solver").items() if isinstance(entry.make(), Learned)]


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


def engine_fingerprint() -> dict[str, Any]:
    """Schedules of learning rates and averages, and what a short training leaves of a net and of its average."""
    optims = (Optim(lr=1.0, warmup=4, anneal_from=0.5), Optim(lr=1.0, anneal_from=0.5, drop=True))
    numbers = [optim.lr_at(batch, 12) for optim in optims for batch in (0, 5, 6, 11)]
    numbers += [Ema("student", 0.9, ramp).decay_at(batch) for ramp in (False, True) for batch in (0, 20, 200)]
    _, data = mixture_data()
    # Adam moves every weight by about lr, a hundred times what the budget below allows.
    method = get("distiller", "gd").make(start=1, guided=1, batches=4, batch_size=16, lr=0.01)
    teacher = network(data)
    teacher.net.double()  # Adam makes as much of a small gradient as of a large one, and of its rounding in float32
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(method, teacher, data, Path(folder), Settings(recipe=Recipe(accumulate=2), progress=False))
        engine.run()
    kept = [net.state_dict()["conv_in.weight"].flatten()[:4] for net in (engine.nets["student"], engine.emas["ema"])]
    return {"plans": [], "numbers": rounded([*numbers, *torch.cat(kept)])}


def teacher_fingerprint() -> dict[str, Any]:
    """D of the shipped digits teacher with and without a label: preconditioning, U-Net and weights."""
    teacher, _ = load_denoiser("digits_edm")
    x, cond = Rng((4,)).normal((2, *teacher.shape)), Cond(label=torch.tensor([3, teacher.classes]))
    with torch.inference_mode():
        levels = [teacher(x * (0.3 + s), s, cond)[:, 0, 3] for s in (0.05, 1.0, 20.0)]
    return {"plans": [], "numbers": rounded(torch.stack(levels).flatten())}


def wrap_numbers(name: str) -> list[torch.Tensor]:
    """A named function of D, on values inside and outside of [-1, 1]."""
    return [*get("wrapper", name).target(Rng((6,)).normal((1, 1, 4, 4)).double()).flatten()]


def exact_fingerprint() -> dict[str, Any]:
    """End points of the exact flow of a mixture and of a Gaussian."""
    mixture, _ = mixture_data()
    gaussian = Gaussian(torch.tensor(0.1), torch.tensor(0.5), mixture.shape)
    x = 80 * Rng((7,)).normal((2, *mixture.shape)).double()
    return {
        "plans": [],
        "numbers": rounded(v for teacher in (mixture, gaussian) for v in exact.solve(teacher, x, steps=20).images[:, 0, 0].flatten()),
    }


EIGHT_DIGITS = {"rtol": 1e-7, "atol": 0.0}  # as many are printed
# float32 convolutions: sums of a few hundred terms in another order move the fifth digit, and values near 0 the fifth decimal.
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
LEVELS = {"rtol": 0.0, "atol": 1e-3}  # of 8 bits
# What samples or the truth pass through: how to compute it, how exactly it is reproduced elsewhere, and the version it belongs to.
CORE: dict[str, tuple[Callable[[], dict[str, Any]], dict[str, float], int]] = {
    "guidance": (guidance_fingerprint, EIGHT_DIGITS, SAMPLER_VERSION),
    "afs": (afs_fingerprint, EIGHT_DIGITS, SAMPLER_VERSION),
    "noise": (lambda: {"plans": [], "numbers": rounded(noise_numbers())}, FLOAT32, SAMPLER_VERSION),
    "coefficients": (lambda: {"plans": [], "numbers": rounded(coefficient_numbers())}, EIGHT_DIGITS, SAMPLER_VERSION),
    "engine": (engine_fingerprint, FLOAT32, SAMPLER_VERSION),
    "digits_teacher": (teacher_fingerprint, FLOAT32, SAMPLER_VERSION),
    "exact": (exact_fingerprint, EIGHT_DIGITS, exact.VERSION),
}


def runs(branch: str) -> bool:
    """Whether what a branch needs is installed."""
    return branch != "lora" or importlib.util.find_spec("peft") is not None


# Components with a version of their own: how to compute their numbers, how exactly they are reproduced elsewhere, and the version. What a
# metric reads of weights that are not shipped (LPIPS) is not among them.
OWN: dict[str, tuple[Callable[[], Iterable[Any]], dict[str, float], int]] = {
    **{f"network/{arch}": (partial(network_numbers, arch), FLOAT32, cls.version) for arch, cls in entries("network").items()},
    **{f"branch/{name}": (partial(branch_numbers, name), FLOAT32, entries("branch")[name].version) for name in BRANCHES if runs(name)},
    **{f"degradation/{name}": (partial(degradation_numbers, name), LEVELS, of.version) for name, of in entries("degradation").items()},
    **{f"wrap/{name}": (partial(wrap_numbers, name), EIGHT_DIGITS, wrap.version) for name, wrap in entries("wrapper").items()},
    **{f"metric/{m}": (partial(metric_numbers, m), EIGHT_DIGITS, METRICS[m].version) for m in METRICS if not declared(METRICS[m]).files},
}


def fit_fingerprint(name: str) -> dict[str, Any]:
    """What a small fit of a learned solver finds: levels and cost of a search, or the losses of a training's first batch."""
    teacher, data = mixture_data()
    losses: list[float] = []

    def train(method: Trainable) -> dict[str, torch.Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            nets = method.build(teacher)
        state = State(teacher, nets, {}, method.phases()[0])
        losses.extend(float(loss.value.detach()) for loss in method.losses(state, data.draw(16, Rng((1,))), Rng((2,))))
        return nets["student"].state_dict()

    task = Fitting(teacher, lambda n: make_grid("polynomial", n, (0.01, 10.0)), 4, True, 0, "cpu", train, data)
    found = get("solver", name).make().fit(task)
    searched = [v for key in ("levels", "cost", "distances") if key in found for v in found[key].flatten()[:200]]
    return {"plans": [], "numbers": losses or rounded(searched)}


def training(kind: str, name: str) -> Trainable:
    """The training of a name, or of a distiller's variant."""
    return made(name) if kind == "distiller" else get(kind, name).make()


def training_fingerprint(kind: str, name: str) -> dict[str, Any]:
    """The losses of the first and of the last batch of each phase, on the same data, and the whole recipe."""
    teacher_form, data = mixture_data()
    teacher = teacher_of(name, data)
    if name == "warm_start":
        teacher = WarmStarted(teacher_form, teacher)
    method = training(kind, name)
    recipe = f"{described(method)} {method.phases()!r}"
    if name == "classifier":
        return {"recipe": recipe, "losses": []}  # its network takes 8x8 images; its recipe is what can change
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of layers that no teacher has
        nets = method.build(teacher)
        for p in (p for net in nets.values() for p in net.parameters() if not p.any()):
            torch.nn.init.normal_(p, std=0.1)  # adapters of scalars start at zero, and would hide them
    losses = []
    for phase in method.phases():
        emas = {e: nets[spec.net] for e, spec in phase.emas.items()}
        source = probe_pairs(data) if isinstance(method, Paired) else data_of(method, teacher, data)
        batch = source.draw(64, Rng((1,)))
        for number in (0, phase.batches - 1):
            for loss in method.losses(State(teacher, nets, emas, phase, number), batch, Rng((2,))):
                losses.append(float(loss.value.detach()))
    return {"recipe": recipe, "losses": losses}


def trained(kind: str) -> list[str]:
    """The names of a kind, and of distillers their variants."""
    return [*entries(kind), *(VARIANTS if kind == "distiller" else ())]


def fingerprints() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, entry in entries("solver").items():
        found[f"solver/{name}"] = {"version": entry.make().version, **solver_fingerprint(name)}
    for kind in TRAINED:
        for name in trained(kind):
            found[f"{kind}/{name}"] = {"version": training(kind, name).version, **training_fingerprint(kind, name)}
    for name in LEARNED:
        found[f"fit/{name}"] = {"version": get("solver", name).make().version, **fit_fingerprint(name)}
    for name, (compute, _, version) in CORE.items():
        found[f"core/{name}"] = {"version": version, **compute()}
    for name, (numbers, _, version) in OWN.items():
        found[name] = {"version": version, "numbers": rounded(numbers())}
    return found


def renamed(op: Eval | Combine, old: tuple[Any, ...], new: tuple[Any, ...]) -> Eval | Combine:
    """The op with its reads `old` replaced by `new`; its coefficients stay in place."""
    if isinstance(op, Eval):
        return replace(op, x=new[0]) if (op.x,) == old else op
    return replace(op, terms=tuple(zip(new, (c for _, c in op.terms)))) if tuple(r for r, _ in op.terms) == old else op


RECORDED = json.loads(FILE.read_text()) if FILE.exists() else {}
ADVICE = "the numbers changed: raise its version, then run PYTHONPATH=.:tests python tests/registry/test_fingerprints.py"


@pytest.mark.parametrize("name", entries("solver"))
def test_solver_numbers_belong_to_their_version(name: str) -> None:
    recorded, now = RECORDED[f"solver/{name}"], solver_fingerprint(name)
    assert get("solver", name).make().version == recorded["version"]
    assert now["plans"] == recorded["plans"], ADVICE
    # Eight printed digits; the last may round the other way on another processor.
    np.testing.assert_allclose(now["numbers"], recorded["numbers"], rtol=1e-7, atol=0, err_msg=ADVICE)


@pytest.mark.parametrize("name", LEARNED)
def test_what_a_fit_finds_belongs_to_its_version(name: str) -> None:
    recorded, now = RECORDED[f"fit/{name}"], fit_fingerprint(name)
    assert get("solver", name).make().version == recorded["version"]
    np.testing.assert_allclose(now["numbers"], recorded["numbers"], **FLOAT32, err_msg=ADVICE)


@pytest.mark.parametrize("name", CORE)
def test_core_numbers_belong_to_the_sampler_version(name: str) -> None:
    compute, budget, version = CORE[name]
    recorded, now = RECORDED[f"core/{name}"], compute()
    assert recorded["version"] == version
    assert now["plans"] == recorded["plans"], ADVICE
    np.testing.assert_allclose(now["numbers"], recorded["numbers"], **budget, err_msg=ADVICE)


@pytest.mark.parametrize("name", OWN)
def test_numbers_of_a_component_belong_to_its_version(name: str) -> None:
    numbers, budget, version = OWN[name]
    recorded = RECORDED[name]
    assert recorded["version"] == version
    np.testing.assert_allclose(rounded(numbers()), recorded["numbers"], **budget, err_msg=ADVICE)


def test_every_architecture_and_every_branch_has_a_fingerprint() -> None:
    assert set(CONFIGS) == set(entries("network"))
    assert set(BRANCHES) == set(entries("branch"))


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


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k in TRAINED for n in trained(k)])
def test_training_numbers_belong_to_their_version(kind: str, name: str) -> None:
    recorded, now = RECORDED[f"{kind}/{name}"], training_fingerprint(kind, name)
    assert training(kind, name).version == recorded["version"]
    assert now["recipe"] == recorded["recipe"], ADVICE
    # float32 network passes: sums of a few hundred terms in another order move the fifth digit.
    np.testing.assert_allclose(now["losses"], recorded["losses"], rtol=1e-4, err_msg=ADVICE)  # float32 passes, see above


if __name__ == "__main__":
    torch.set_num_threads(1)
    lines = (f" {json.dumps(name)}: {json.dumps(found)}" for name, found in fingerprints().items())
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"wrote {FILE}")
