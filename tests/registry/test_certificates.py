"""Every registered solver has a certificate."""

from __future__ import annotations

import pytest

from bench.certificate.certify import certify
from fewstep.plugins import entries, get

SOLVERS = list(entries("solver"))


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers, which gives tensors to numpy


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_has_a_certificate(name):
    entry = get("solver", name)
    certificate = certify(entry.make(), name, entry.paper)
    assert not [f.line for f in certificate.failures]
    assert {f.check for f in certificate.findings} >= {"counts"}
