"""Networks computed in fewer bits: what is reduced and what is not."""

from __future__ import annotations

import pytest
import torch

from fewstep.analytic import GaussianMixture
from fewstep.cond import Cond
from fewstep.denoiser import leaf, unfold
from fewstep.errors import UsageError
from fewstep.grid import make_grid
from fewstep.guidance import guide
from fewstep.nets.reduced import Reduced, full, reduced
from fewstep.plugins import get
from fewstep.sampling.plan import Plan
from fewstep.sampling.runner import run
from support.tiny import mixture_data, network


def test_only_the_network_is_computed_in_fewer_bits():
    """Its rounding is bfloat16's, the state is float32, and the compiled program gives what the denoiser gives."""
    _, data = mixture_data(64)
    whole = guide(network(data), 2.0)
    torch.manual_seed(0)
    for parameter in leaf(whole).net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, cond = torch.randn(3, *data.shape), Cond(label=torch.tensor([0, 1, 1]))
    short = reduced(whole, "bf16")
    exact, d = whole(x, 1.0, cond), short(x, 1.0, cond)
    assert d.dtype == torch.float32
    assert 1e-6 < (d - exact).abs().max() / exact.abs().max() < 0.05
    assert full(leaf(short).net) is leaf(whole).net
    assert unfold(short, 1.0, cond) is not None
    solver = get("solver", "heun").make()
    plan: Plan = solver.plan(make_grid("polynomial", 3, (0.01, 10.0), "zero"))
    with torch.inference_mode():
        program = run(plan, short, 10 * x, cond=cond)[plan.states[-1]]
    assert program.dtype == torch.float32
    assert 1e-6 < (program - run(plan, whole, 10 * x, cond=cond)[plan.states[-1]]).abs().max() < 0.5


def test_what_has_no_network_or_no_such_type_is_refused():
    teacher, data = mixture_data(8)
    assert isinstance(teacher, GaussianMixture)
    with pytest.raises(UsageError, match="dtype=bf16 is of networks, and a GaussianMixture has none"):
        reduced(teacher, "bf16")
    with pytest.raises(UsageError, match="dtype is bf16 or fp16, or empty for float32, got 'bf61'"):
        reduced(network(data), "bf61")
    assert not isinstance(leaf(reduced(network(data), "")).net, Reduced)
