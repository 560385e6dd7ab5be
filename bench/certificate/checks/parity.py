"""Solvers against printed outputs: check vectors to ten decimals, whose source each states, and golden arrays of published code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.certificate.finding import Finding
from fewstep.analytic import GaussianMixture
from fewstep.cond import NULL, Cond
from fewstep.denoiser import Denoiser, Sigma
from fewstep.grid import TimeGrid, make_grid
from fewstep.noise import Slot
from fewstep.plugins import get
from fewstep.sampling.plan import Plan, with_afs
from fewstep.sampling.runner import run
from fewstep.wrappers import Mapped, dynamic_threshold
from methods.solver import Solver

HERE = Path(__file__).parents[1]
VECTORS = HERE / "vectors.json"
GOLDEN = HERE / "golden"
PRINTED = 5.1e-11  # half a unit of the tenth digit, and what float64 adds to it
AGREED = 1e-10  # of golden arrays of size 3: published code rounds in another order, 20 steps of up to 100 roundings each
# How a certificate makes its solver with other options, and a learned one with an artefact: both change nothing else of it.
Variant = Callable[[Mapping[str, Any], Mapping[str, Tensor]], Solver]


@dataclass(frozen=True)
class TwoModes:
    """Elementwise mixture of two Gaussians at +-m, m = 1/2, of standard deviation s = 1/10.

    D = (s^2 x + sigma^2 m tanh(m x / v)) / v with v = s^2 + sigma^2.
    """

    shape: tuple[int, ...] = (4,)
    classes: int = 0
    sigma_range: tuple[float, float] = (0.002, 80.0)

    def cost(self, sigma: float) -> int:
        return 1

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        s = sigma.to(x).reshape(-1, 1) if isinstance(sigma, Tensor) else torch.tensor(float(sigma), dtype=torch.float64).to(x)
        v = 0.01 + s**2
        return (0.01 * x + s**2 * 0.5 * torch.tanh(0.5 * x / v)) / v


@dataclass(frozen=True)
class Level:
    """Noise whose every draw is one value."""

    value: float

    def normal(self, slot: Slot, shape: Sequence[int]) -> Tensor:
        return torch.full((1, *shape), self.value, dtype=torch.float64)

    def labels(self, classes: int) -> Tensor:
        return torch.zeros(1, dtype=torch.int64)


@cache
def _vectors() -> dict[str, list[dict[str, Any]]]:
    content = json.loads(VECTORS.read_text(encoding="utf-8"))
    found: dict[str, list[dict[str, Any]]] = {}
    for record in content["vectors"]:
        found.setdefault(record["solver"], []).append(record)
    return found


def _levels(record: Mapping[str, Any]) -> TimeGrid:
    if "levels" in record:
        return TimeGrid(record["levels"])
    lo, hi = record["range"]
    if "rho" not in record:
        return make_grid(record["grid"], record["nodes"] - 1, (lo, hi), record["end"])
    return TimeGrid(get("grid", record["grid"]).target(record["nodes"], lo, hi, rho=record["rho"]))


def _label(record: Mapping[str, Any]) -> str:
    """The grid of a vector in words."""
    grid = [f"{record['nodes']} nodes", record["grid"], f"end {record['end']}"] if "grid" in record else ["levels of its own"]
    return ", ".join([*grid, *(f"{k}={v}" for k, v in record["options"].items()), *(["AFS"] if record["afs"] else [])])


def vectors(name: str, variant: Variant) -> Iterator[Finding]:
    """Printed outputs, to their ten decimals, with the evaluations they took; the note says whose. x_0 = sigma_0 (-3/2, -1/2, 1/4, 1)."""
    for record in _vectors().get(name, []):
        artefact = {k: torch.tensor(v, dtype=torch.float64) for k, v in record.get("artefact", {}).items()}
        grid = _levels(record)
        plan = variant(record["options"], artefact).plan(grid)
        plan = with_afs(plan) if record["afs"] else plan
        x = grid.sigmas[0] * torch.tensor([[-1.5, -0.5, 0.25, 1.0]], dtype=torch.float64)
        noise = Level(record.get("noise", 0.0))
        found, expected = run(plan, TwoModes(), x, noise)[plan.states[-1]][0], torch.tensor(record["output"], dtype=torch.float64)
        off, evals = float((found - expected).abs().max()), len(plan.evals)
        said = "largest difference from the output" if evals == record["evals"] else f"{evals} evaluations, not {record['evals']} as those"
        note = f"{said} of {record['source']}"
        yield Finding("vectors", _label(record), PRINTED, off, off <= PRINTED and evals == record["evals"], note)


@dataclass(frozen=True)
class Golden:
    """Our counterpart of a sampler of the golden arrays, and whether that one thresholds D at every evaluation."""

    solver: str
    thresholded: bool = False
    options: Mapping[str, Any] | None = None


NAMES = {
    "euler": Golden("euler"),
    "heun": Golden("heun"),
    "dpm2": Golden("dpm_2s"),
    **{f"ipndm{p}": Golden(f"ipndm_{p}") for p in (2, 3, 4)},
    **{f"ipndmv{p}": Golden(f"ipndm_v_{p}") for p in (2, 3, 4)},
    "dpmpp1m": Golden("dpmpp_1s", True),
    "dpmpp2m": Golden("dpmpp_2m", True),
    "dpmpp3m": Golden("dpmpp_3m", True),
    "dpmpp3m_nolof": Golden("dpmpp_3m", True, {"lower_order_final": False}),
    "dpm3m_eps": Golden("dpm_3m"),
    "unipc3_bh1": Golden("unipc_bh1_3", True),
    "unipc3_bh2": Golden("unipc_bh2_3", True),
    "deis_tab2": Golden("deis_tab_2"),
    "deis_tab3": Golden("deis_tab_3"),
}


def golden_name(record: Mapping[str, Any]) -> str:
    """`out/dpm2_4_polynomial_noafs` -> `dpm2`."""
    return record["key"].removeprefix("out/").split(f"_{record['num_steps']}_")[0]


@cache
def golden_arrays() -> dict[str, Tensor]:
    """The golden arrays by key, float64."""
    with np.load(GOLDEN / "solvers.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@cache
def golden_records() -> dict[str, list[dict[str, Any]]]:
    """What the golden outputs were made with, by our solver's name."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in json.loads((GOLDEN / "solvers_index.json").read_text(encoding="utf-8")):
        found.setdefault(NAMES[golden_name(record)].solver, []).append(record)
    return found


def _golden_plan(record: Mapping[str, Any], variant: Variant) -> tuple[Plan, TimeGrid]:
    grid = make_grid(record["schedule_type"], record["num_steps"] - 1, (record["sigma_min"], record["sigma_max"]))
    plan = variant(NAMES[golden_name(record)].options or {}, {}).plan(grid)
    return (with_afs(plan) if record["afs"] else plan), grid


def golden(name: str, variant: Variant) -> Iterator[Finding]:
    """Outputs of the published implementation (zju-pi/diff-sampler at 68d5ce4) on a mixture of five Gaussians, float64."""
    if name not in golden_records():
        return
    arrays = golden_arrays()
    mixture = GaussianMixture(arrays["means"].view(-1, 3, 4, 4), arrays["std"], arrays["logw"])
    for record in golden_records()[name]:
        key = golden_name(record)
        plan, grid = _golden_plan(record, variant)
        model: Denoiser = Mapped(mixture, dynamic_threshold) if NAMES[key].thresholded else mixture
        out = run(plan, model, arrays["latents"] * grid.sigmas[0])[plan.states[-1]]
        off = float((out - arrays[record["key"]]).abs().max())
        yield Finding("golden", record["key"].removeprefix("out/"), AGREED, off, off <= AGREED, "largest difference")
