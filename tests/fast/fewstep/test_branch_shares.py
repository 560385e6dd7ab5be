"""Whose parameters are whose in a network with a branch, and how often the branch is asked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.jobs.samples import counted_passes, parameter_shares, parameters, told_by_branch
from fewstep.cond import Cond
from fewstep.denoiser import Preconditioned
from fewstep.nets.branches.adapted import with_branch
from fewstep.nets.branches.counting import branch_passes
from fewstep.nets.branches.shares import Shares, count_of, shares
from fewstep.nets.partial import Partial
from fewstep.nets.reduced import Reduced
from fewstep.nets.unet import UNet
from fewstep.precond import EDMPrecond


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def unet() -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet((3, 8, 8), 0, channels=(8, 16), emb=16)


@pytest.mark.parametrize("branch", ["codi", "control", "t2i"])
def test_parameters_of_backbone_and_adapter(branch: str) -> None:
    base = unet()
    assert shares(base) is None
    assert count_of(base) == size(base)
    whole = with_branch(base, branch, 3)
    assert whole.branch is not None
    told = Shares(all=size(whole), trained=size(whole), backbone=size(base), adapter=size(whole.branch))
    assert told.backbone + told.adapter == told.all
    assert shares(whole) == told
    frozen = Partial(whole, ("branch",))
    assert shares(frozen) == Shares(told.all, told.adapter, told.backbone, told.adapter)
    assert shares(Reduced(frozen, torch.bfloat16)) == shares(frozen)
    own = Preconditioned(frozen, EDMPrecond(0.5), (3, 8, 8), 0, (0.01, 10.0))
    assert parameters(own) == told.all
    assert parameter_shares(own) == vars(shares(frozen))
    assert told_by_branch(own)


def test_an_adapter_without_a_branch_of_its_own_is_counted() -> None:
    """LoRA's matrices lie within the backbone."""
    pytest.importorskip("peft", reason="peft is not installed: the parameters of LoRA were not counted")
    base = unet()
    lora = with_branch(base, "lora", 0)
    found = shares(lora)
    assert found is not None
    assert found.backbone == size(base)
    assert 0 < found.adapter == size(lora) - size(base)
    own = Preconditioned(lora, EDMPrecond(0.5), (3, 8, 8), 0, (0.01, 10.0))
    assert not told_by_branch(own)


def test_passes_of_backbone_and_branch_are_counted_apart() -> None:
    for branch, expected in (("control", 20), ("codi", 20)):
        own = Preconditioned(with_branch(unet(), branch, 3), EDMPrecond(0.5), (3, 8, 8), 0, (0.01, 10.0))
        with torch.no_grad(), counted_passes(own) as passes, branch_passes(own) as told:
            for sigma in (5.0, 2.0, 1.0, 0.5):
                own(torch.zeros(5, 3, 8, 8), sigma, Cond(image=torch.zeros(5, 3, 8, 8)))
        assert (passes, told) == ([20], [expected])
