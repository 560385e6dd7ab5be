"""Trainings of a branch alone, by the real engine: what is trained, what stays, what is kept."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.training.engine import Engine, Settings
from fewstep.denoiser import Preconditioned
from fewstep.errors import UsageError
from fewstep.nets.branches.adapted import Adapted, with_branch
from fewstep.nets.branches.files import backbone_digest, own_part
from fewstep.nets.flat import flatten
from fewstep.nets.partial import Partial, load_part, whole_of
from fewstep.nets.unet import UNet
from fewstep.noise import Rng
from fewstep.tasks.pictures import Pictured
from methods.recipe import Recipe
from methods.start import start_of, student_net
from methods.training import Ema, Loss, Optim, Phase
from support.branches import BRANCHES
from support.tiny import mixture_data, network

QUIET = Settings(progress=False, task=Pictured("bicubic_x2"))


class Branched:
    """Teaches a branch beside a frozen network to denoise what it is shown a small picture of."""

    version = 1

    def __init__(self, branch="control", part=True):
        self.branch, self.part = branch, part

    def __repr__(self):
        return f"Branched({self.branch}, {self.part})"

    def build(self, teacher):
        net = with_branch(student_net(teacher, "branched"), self.branch, 1)
        return {"student": Partial(net, net.own) if self.part else net}

    def phases(self):
        return [Phase("teach", 4, 8, {"student": Optim(lr=0.01)}, {"ema": Ema("student", 0.9)}, export="ema")]

    def losses(self, state, batch, rng):
        noise = rng.normal(batch.x0.shape)
        student = replace(start_of(state.teacher, "branched"), net=state.nets["student"])
        error = student(batch.x0 + noise, 1.0, batch.cond) - batch.x0
        yield Loss(error.square().mean(), "student")


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_branch_is_trained_and_nothing_of_the_network(branch: str, tmp_path: Path) -> None:
    """No gradient and no change in the backbone; optimiser, average, checkpoint and export hold the branch; a cut training resumes."""
    _, data = mixture_data()
    teacher = network(data)
    engine = Engine(Branched(branch), teacher, data, tmp_path / "whole", QUIET)
    net, before = engine.nets["student"], backbone_digest(engine.nets["student"])
    start = {key: value.clone() for key, value in net.state_dict().items()}
    assert before == backbone_digest(teacher.net)
    result = engine.run()
    whole = whole_of(net)
    assert isinstance(whole, Adapted)
    assert all(p.grad is None and not p.requires_grad for key, p in whole.named_parameters() if key not in start)
    assert backbone_digest(net) == before
    ema = engine.emas["ema"]
    assert isinstance(ema, Partial)
    mine, theirs = dict(whole.named_parameters()), dict(ema.whole.named_parameters())
    assert {key for key in mine if mine[key].data_ptr() == theirs[key].data_ptr()} == set(mine) - set(start)  # frozen tensors are shared
    export = result.exports["teach"]
    assert export.keys() == start.keys() == ema.state_dict().keys()
    assert all(key.startswith("branch.") or "lora_" in key for key in export)
    assert any(not torch.equal(value, start[key]) for key, value in export.items())
    assert sum(p.numel() for group in engine.optimisers["student"].param_groups for p in group["params"]) == sum(
        map(torch.numel, start.values())
    )
    assert result.whole.passes["student"] == 4 * 8
    assert result.whole.passes["student branch"] == 4 * 8  # counted apart
    Engine(Branched(branch), teacher, data, tmp_path / "cut", QUIET).run(2)
    again = Engine(Branched(branch), teacher, data, tmp_path / "cut", QUIET).run()
    assert all(torch.equal(value, again.exports["teach"][key]) for key, value in export.items())
    loaded = load_part(Branched(branch).build(teacher)["student"], export, "an export")
    x, cond = torch.randn(2, *data.shape), QUIET.task.example(data.draw(2, Rng((1,))), Rng((1,))).cond  # pyright: ignore[reportOptionalMemberAccess]
    with torch.no_grad():
        assert torch.equal(loaded(x, torch.zeros(2), cond), ema(x, torch.zeros(2), cond))
        assert not torch.equal(loaded(x, torch.zeros(2), cond), teacher.net(x, torch.zeros(2)))
        alone = load_part(Branched(branch).build(network(data, seed=1))["student"], whole_of(loaded).state_dict(), "all of it")
        assert torch.equal(alone(x, torch.zeros(2), cond), ema(x, torch.zeros(2), cond))


def test_a_part_and_the_whole_take_the_same_step(tmp_path: Path) -> None:
    """A frozen backbone changes nothing of what the branch learns in its first step; accumulated and in bf16 it trains as well."""
    _, data = mixture_data()
    teacher = network(data)
    settings = replace(QUIET, recipe=Recipe(accumulate=2))
    for name, own in (("a", QUIET), ("b", settings), ("c", replace(QUIET, recipe=Recipe(precision="bf16")))):
        engines = [Engine(Branched("t2i", part), teacher, data, tmp_path / f"{name}{part}", own) for part in (True, False)]
        assert torch.isfinite(torch.cat([v.flatten() for v in engines[0].run().exports["teach"].values()])).all()
    part, whole = (Engine(Branched("codi", part), teacher, data, tmp_path / f"one{part}", QUIET) for part in (True, False))
    part.run(1), whole.run(1)
    mine, theirs = part.nets["student"].state_dict(), whole.nets["student"].state_dict()
    for key, value in mine.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-2, atol=1e-3)  # the gradient norm of the whole clips a little more
    assert len(theirs) > 1.5 * len(mine)


def partial(prefixes=("branch",), **options) -> Partial:
    torch.manual_seed(0)
    return Partial(with_branch(UNet((1, 8, 8), 3, (8, 16), emb=16, dropout=0.5), "codi", 1, options), prefixes)


def test_modes_moves_and_copies():
    net = partial(("branch", "base.embed_class"))
    assert {key.split(".")[0] for key in net.state_dict()} == {"branch", "base"}
    assert [key for key in net.state_dict() if key.startswith("base.")] == ["base.embed_class.weight"]
    assert net.train().whole.branch.training  # pyright: ignore
    assert not net.whole.base.training  # pyright: ignore
    assert not net.eval().whole.branch.training  # pyright: ignore
    net.requires_grad_(True)
    assert {key for key, p in net.whole.named_parameters() if p.requires_grad} == set(dict(net.named_parameters()))
    net.double()
    assert {p.dtype for p in net.whole.parameters()} == {torch.float64}
    assert {id(p) for p in net.parameters()} <= {id(p) for p in net.whole.parameters()}
    other = copy.deepcopy(net.float())
    flatten(net), flatten(other)
    with torch.no_grad():
        net.load_state_dict({key: torch.ones_like(value) for key, value in net.state_dict().items()})
        assert all((p == 1).all() for p in net.whole.branch.parameters())  # pyright: ignore
        assert not all((p == 1).all() for p in other.parameters())
    frozen = [p for key, p in net.whole.named_parameters() if key not in dict(net.named_parameters())]
    assert all(any(p is q for q in other.whole.parameters()) for p in frozen)
    denoiser = Preconditioned(net.eval(), network(mixture_data()[1]).precond, (1, 8, 8), 3, (0.02, 20.0))
    assert denoiser.features == net.whole.feature_size == 16


def test_parts_that_cannot_be():
    net = with_branch(UNet((1, 8, 8), 3, (8, 16), emb=16), "codi", 1)
    for prefixes, message in (
        ("branch", "the parts to train are a sequence of names, got 'branch'"),
        ((), "the parts to train are a sequence of names"),
        (("brunch",), "a Adapted has no part 'brunch' with parameters; its parts are base, branch"),
        (("branch", "branch.mu"), "the part 'branch.mu' lies within another part"),
        (("branch.mu", "branch"), "the part 'branch' is named twice, or holds another part"),
    ):
        with pytest.raises(UsageError, match=message):
            Partial(net, prefixes)
    assert set(own_part(net).state_dict()) == {key for key in net.state_dict() if key.startswith("branch.")}
