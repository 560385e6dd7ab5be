"""The published outputs (bench/certificate/golden/README.md): each is claimed by a solver, whose certificate compares it."""

import pytest
from numpy.testing import assert_allclose

from bench.certificate.certify import variants
from bench.certificate.checks.parity import NAMES, golden, golden_arrays, golden_name, golden_records
from fewstep.grid import make_grid
from fewstep.plugins import get


def test_every_output_belongs_to_a_solver():
    records = [r for found in golden_records().values() for r in found]
    assert {golden_name(r) for r in records} == set(NAMES)
    assert len(records) == 144  # 18 names x 2 lengths x 2 grids x AFS on and off


@pytest.mark.parametrize("key", ["grid/4_polynomial_rho7", "grid/11_polynomial_rho7", "grid/4_logsnr_rho7", "grid/11_logsnr_rho7"])
def test_grids(key):
    nodes, family = key.removeprefix("grid/").split("_")[:2]
    levels = make_grid(family, int(nodes) - 1, (0.002, 80.0)).sigmas
    assert_allclose(levels, golden_arrays()[key].numpy(), rtol=1e-13)  # roundings of one power


@pytest.mark.parametrize("name", sorted(golden_records()))
def test_outputs(name):
    found = list(golden(name, variants(get("solver", name).make())))
    assert len(found) == len(golden_records()[name])
    assert [f.line for f in found if not f.ok] == []
