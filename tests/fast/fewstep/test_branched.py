"""Whose parameters are whose in a network with a branch, and how often the branch is asked."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.jobs.samples import counted_branch, counted_passes, parameter_shares, parameters
from fewstep.cond import NULL, Cond
from fewstep.denoiser import Preconditioned
from fewstep.nets.branched import Branched, Shares, branch_passes, count_of, shares
from fewstep.nets.reduced import Reduced
from fewstep.precond import EDMPrecond


class Base(nn.Module):
    """A backbone of 12 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond = NULL) -> Tensor:
        return self.conv(x)


class Joined(nn.Module):
    """A stand-in for a network with a branch of 9 parameters, which is asked at every step or, where it `keeps` its maps, once."""

    def __init__(self, keeps: bool = False) -> None:
        super().__init__()
        self.base, self.branch, self.keeps = Base(), nn.Conv2d(3, 3, 1, bias=False), keeps
        self.kept: Tensor | None = None

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond = NULL) -> Tensor:
        if self.kept is None or not self.keeps:
            self.kept = self.branch(x)
        return self.base(x, c_noise, cond) + self.kept


class Partly(nn.Module):
    """The same with a frozen base: its own parameters are those of the branch."""

    def __init__(self, whole: Joined) -> None:
        super().__init__()
        self.whole = [whole]  # which torch does not look into
        self.branch = whole.branch

    @property
    def base(self) -> nn.Module:
        return self.whole[0].base

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond = NULL) -> Tensor:
        return self.whole[0](x, c_noise, cond)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return self.branch.parameters()


def denoiser(net: nn.Module) -> Preconditioned:
    return Preconditioned(net, EDMPrecond(0.5), (3, 4, 4), 0, (0.01, 10.0))


def test_parameters_of_backbone_and_adapter() -> None:
    assert shares(Base()) is None
    assert count_of(Base()) == 12
    assert isinstance(Joined(), Branched)
    assert shares(Joined()) == Shares(all=21, trained=21, backbone=12, adapter=9)
    frozen = Partly(Joined())
    assert shares(frozen) == Shares(all=21, trained=9, backbone=12, adapter=9)
    assert count_of(frozen) == 21
    assert shares(Reduced(frozen, torch.bfloat16)) == shares(frozen)
    assert parameters(denoiser(frozen)) == 21
    assert parameter_shares(denoiser(frozen)) == {"all": 21, "trained": 9, "backbone": 12, "adapter": 9}
    assert parameter_shares(denoiser(Base())) is None


def test_passes_of_backbone_and_branch_are_counted_apart() -> None:
    for net, expected in (
        (Joined(), 20),
        (Joined(keeps=True), 5),
        (Partly(Joined(keeps=True)), 5),
        (Reduced(Joined(), torch.bfloat16), 20),
    ):
        own = denoiser(net)
        with torch.no_grad(), counted_passes(own) as passes, counted_branch(own) as branch:
            for sigma in (5.0, 2.0, 1.0, 0.5):
                own(torch.zeros(5, 3, 4, 4), sigma)
        assert (passes, branch) == ([20], [expected])
        own(torch.zeros(5, 3, 4, 4), 1.0)
        assert branch == [expected]  # nothing is left behind
    with branch_passes(Base()) as none:
        assert none == []
