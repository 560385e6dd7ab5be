"""Every solver against the outputs of the published implementation (golden/README.md), in float64."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

from fewstep.analytic import GaussianMixture
from fewstep.denoiser import Mapped, dynamic_threshold
from fewstep.grid import make_grid
from fewstep.plan import run, with_afs
from methods.registry import get

GOLDEN = Path(__file__).parent / "golden"
# Name in the golden file -> our solver, its options, and whether the reference thresholds D.
NAMES = {
    "euler": ("euler", {}, False),
    "heun": ("heun", {}, False),
    "dpm2": ("dpm_2s", {}, False),
    "dpmpp1m": ("dpmpp_1s", {}, True),
    "dpmpp2m": ("dpmpp_2m", {}, True),
    "dpmpp3m": ("dpmpp_3m", {}, True),
    "dpmpp3m_nolof": ("dpmpp_3m", {"lower_order_final": False}, True),
}


def _name(record: dict) -> str:
    """`out/dpm2_4_polynomial_noafs` -> `dpm2`."""
    return record["key"].removeprefix("out/").split(f"_{record['num_steps']}_")[0]


RECORDS = [r for r in json.loads((GOLDEN / "solvers_index.json").read_text()) if _name(r) in NAMES]


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "solvers.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def test_every_solver_has_its_outputs():
    assert {_name(r) for r in RECORDS} == set(NAMES)
    assert len(RECORDS) == 56  # 7 names x 2 lengths x 2 grids x AFS on and off


@pytest.mark.parametrize("key", ["grid/4_polynomial_rho7", "grid/11_polynomial_rho7", "grid/4_logsnr_rho7", "grid/11_logsnr_rho7"])
def test_grids(golden, key):
    nodes, family = key.removeprefix("grid/").split("_")[:2]
    assert_allclose(make_grid(family, int(nodes) - 1, (0.002, 80.0)).sigmas, golden[key].numpy(), rtol=1e-13)  # roundings of one power


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r["key"].removeprefix("out/"))
def test_outputs(golden, record):
    name, options, thresholded = NAMES[_name(record)]
    mixture = GaussianMixture(golden["means"].view(-1, 3, 4, 4), golden["std"], golden["logw"])
    grid = make_grid(record["schedule_type"], record["num_steps"] - 1, (record["sigma_min"], record["sigma_max"]))
    plan = get("solver", name).make(**options).plan(grid)
    plan = with_afs(plan) if record["afs"] else plan
    out = run(plan, Mapped(mixture, dynamic_threshold) if thresholded else mixture, golden["latents"] * grid.sigmas[0])
    assert_close(out[plan.states[-1]], golden[record["key"]], atol=1e-10, rtol=0)  # the stated bar; the largest difference seen is 2e-12
