"""Numeric fingerprints of every registered plugin: change what it computes and its `version` must rise, or caches would go stale.

`PYTHONPATH=.:tests python tests/unit/test_fingerprints.py` writes the file anew after a version was raised.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import mixture_data, network

from fewstep.grid import make_grid
from fewstep.noise import Rng
from fewstep.plan import Combine, Eval
from methods.distiller import State
from methods.registry import entries, get

FILE = Path(__file__).with_name("fingerprints.json")
TRAINED = ("distiller", "pretrain")


def solver_fingerprint(name: str) -> list[float]:
    """All noise levels and coefficients of the plans of 1 to 4 steps, at both ends."""
    numbers: list[float] = []
    solver = get("solver", name).make()
    for steps in (1, 2, 3, 4):
        for end in ("zero", "sigma_min"):
            for op in solver.plan(make_grid("polynomial", steps, (0.01, 10.0), end)).ops:
                if isinstance(op, Eval):
                    numbers.append(float(op.sigma))
                elif isinstance(op, Combine):
                    numbers.extend(float(c) for _, c in op.terms)
    return [float(f"{n:.8g}") for n in numbers]


def training_fingerprint(kind: str, name: str) -> dict[str, Any]:
    """The first losses of each phase on a fixed batch, and the whole recipe."""
    teacher_form, data = mixture_data()
    teacher = network(data)
    if name == "warm_start":
        from dataclasses import replace

        teacher = replace(teacher_form, init=teacher)
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
        found[f"solver/{name}"] = {"version": entry.make().version, "numbers": solver_fingerprint(name)}
    for kind in TRAINED:
        for name, entry in entries(kind).items():
            found[f"{kind}/{name}"] = {"version": entry.make().version, **training_fingerprint(kind, name)}
    return found


RECORDED = json.loads(FILE.read_text()) if FILE.exists() else {}
ADVICE = "the numbers changed: raise its version, then run PYTHONPATH=.:tests python tests/unit/test_fingerprints.py"


@pytest.mark.parametrize("name", entries("solver"))
def test_solver_numbers_belong_to_their_version(name: str) -> None:
    recorded = RECORDED[f"solver/{name}"]
    assert get("solver", name).make().version == recorded["version"]
    # Eight printed digits; the last may round the other way on another processor.
    np.testing.assert_allclose(solver_fingerprint(name), recorded["numbers"], rtol=1e-7, atol=0, err_msg=ADVICE)  # eight digits


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
