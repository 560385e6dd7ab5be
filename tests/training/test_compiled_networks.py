"""Published networks are compiled in one piece, as trainings with compile=true and timings need them."""

import pytest
import torch
from torch.testing import assert_close

from fewstep.nets.published.edm import SongUNet
from support.each import each
from support.published import C_NOISE, COND, NETS, X, golden_state, made


@each("name", list(NETS))
@torch.no_grad()
def test_a_network_is_traced_in_one_piece(name):
    net = made(name)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert_close(compiled(X, C_NOISE, COND), net(X, C_NOISE, COND))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # of which nearly all is the C++ compiler's, on a core that others may share
def test_compiled_code_computes_the_same():
    """What `compile=true` runs, forward and backward: the machine's own compiler makes it."""
    net = SongUNet((3, 8, 8), 3, {"channels": 8, "mult": [1], "blocks": 1, "attention": []})
    net.load_state_dict(golden_state(net))
    compiled = torch.compile(net.train(), fullgraph=True)
    found, expected = compiled(X, C_NOISE, COND), net(X, C_NOISE, COND)
    assert_close(found, expected, rtol=1e-4, atol=1e-4)  # fused sums are in another order, in float32
    slopes = [torch.autograd.grad(out.square().mean(), list(net.parameters())) for out in (found, expected)]
    for one, other in zip(*slopes, strict=True):
        assert_close(one, other, rtol=1e-3, atol=1e-4)  # as above, through twice the layers
