"""Published networks are compiled in one piece, as trainings with compile=true and timings need them."""

import pytest
import torch
from torch.testing import assert_close

from support.published import C_NOISE, COND, X, made


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "adm", "openai"])
@torch.no_grad()
def test_a_network_compiles_in_one_piece(name):
    net = made(name)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert_close(compiled(X, C_NOISE, COND), net(X, C_NOISE, COND))
