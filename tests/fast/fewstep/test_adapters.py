"""Scalars that networks learn to read: identity at the start, bound for a call, guided and unguided."""

import pytest
import torch
from torch import nn

from fewstep.cond import Cond
from fewstep.denoiser import Preconditioned
from fewstep.errors import UsageError
from fewstep.grid import make_grid
from fewstep.guidance import guide
from fewstep.nets.adapters import with_scalars
from fewstep.nets.unet import UNet
from fewstep.noise import Rng
from fewstep.plugins import get
from fewstep.precond import EDMPrecond
from fewstep.sampling.plan import interpret
from fewstep.sampling.runner import run
from fewstep.wrappers import WithScalars

X, C = Rng((1,)).normal((3, 1, 8, 8)), torch.tensor([0.1, 0.2, -0.3])


def network():
    torch.manual_seed(0)
    net = UNet((1, 8, 8), 3, channels=(16, 32))
    for p in net.parameters():  # its zeros would hide what the embedding does
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return net


def cond(**scalars):
    return Cond(torch.tensor([0, 1, 2]), scalars={k: torch.full((3,), v) for k, v in scalars.items()})


def taught(net):
    """The network with adapters that do something."""
    for p in net.embed_scalars.parameters():
        nn.init.normal_(p, std=0.3)
    return net


def test_an_adapted_network_is_its_teacher_at_the_start_and_learns():
    net = network()
    adapted = with_scalars(net, ["w", "steps"])
    assert torch.equal(adapted(X, C, cond(w=2.0, steps=4.0)), net(X, C, cond()))
    adapted(X, C, cond(w=2.0)).square().sum().backward()
    last = adapted.embed_scalars["w"][-1]
    assert last.weight.grad.abs().sum() > 0
    assert adapted.embed_scalars["steps"][-1].weight.grad is None
    assert not net.embed_scalars


def test_scalars_change_what_a_taught_network_says():
    adapted = taught(with_scalars(network(), ["w"]))
    plain, one, two = (adapted(X, C, c) for c in (cond(), cond(w=1.0), cond(w=2.0)))
    assert not torch.allclose(one, two)
    assert not torch.allclose(plain, one)
    again = with_scalars(adapted, ["w"])
    assert torch.equal(again(X, C, cond(w=2.0)), two)


def test_a_network_without_room_is_refused():
    with pytest.raises(UsageError, match="a Linear reads no scalars, and the method needs w; use a unet teacher"):
        with_scalars(nn.Linear(2, 2), ["w"])


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_bound_values_reach_the_network_however_it_is_run(scale):
    base = Preconditioned(taught(with_scalars(network(), ["w"])), EDMPrecond(0.5), (1, 8, 8), 3, (0.02, 20.0))
    bound = guide(WithScalars(base, {"w": 1.5}), scale)
    with torch.no_grad():
        torch.testing.assert_close(bound(X, 1.0, cond()), guide(base, scale)(X, 1.0, cond(w=1.5)))
        plan = get("solver", "dpmpp_2m").make().plan(make_grid("polynomial", 4, (0.02, 20.0)))
        found, expected = (f(plan, bound, 20 * X, cond=cond()) for f in (run, interpret))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # float32 through four passes
