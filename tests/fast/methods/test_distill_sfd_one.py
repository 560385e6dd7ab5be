"""The second stage of simple and fast distillation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.training.engine import Engine, Settings
from fewstep.denoiser import Preconditioned
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import TimeGrid, make_grid
from fewstep.noise import Rng
from fewstep.sampling.plan import with_afs
from methods.training import State
from support.euler_students import EXACT, Learner, factors, gains_of, losses_of, method_of, plan_of
from support.exactnet import EDM, ExactNet, at_nodes, gaussian_batch, linear_teacher, posterior
from support.tiny import mixture_data, network


@pytest.mark.parametrize("afs", [False, True])
def test_the_second_stage_is_taught_by_the_first_stages_student(afs: bool) -> None:
    """One call and one loss, 0 for the student whose step ends where the first stage's student gets in all of its Euler steps."""
    method = method_of("sfd_one", afs=afs)
    levels = make_grid("polynomial", 6, (0.006, 80.0)).sigmas
    taught = 0.5 * posterior(levels[:-1])  # no student of the real teacher's, which must not be asked
    plan = plan_of("euler", TimeGrid(levels))
    net = ExactNet(at_nodes(levels[:-1], taught), EDM)
    as_denoiser = Preconditioned(net, EDM, (1, 4, 4), 2, (0.002, 80.0))
    own = levels[::3] if afs else levels[::6]
    targets = factors(with_afs(plan) if afs else plan, as_denoiser, 3 if afs else 6)
    np.testing.assert_allclose(own, [80, 3.1071219, 0.006] if afs else [80, 0.006], rtol=1e-7)  # printed digits

    def asked(sigma):
        raise AssertionError("the second stage asked the first stage's teacher")

    teacher = replace(linear_teacher(), net=ExactNet(asked, EDM))
    gains = gains_of(own, targets, afs)
    spy = Learner(own[:-1], gains)
    (exact,) = losses_of(method, spy, teacher, phase=1, nets={"teacher": net})
    assert exact.value.item() < EXACT
    assert {n for n, _ in spy.asked} == {int(afs)}
    assert len(spy.conds) == 1
    (wrong,) = losses_of(method, ExactNet(posterior, EDM), teacher, phase=1, nets={"teacher": net})
    assert wrong.value.item() > 10 * EXACT


@pytest.mark.parametrize("afs", [False, True])
def test_after_sfd_v_both_sides_are_told_their_steps(afs: bool) -> None:
    method = method_of("sfd_v_one", afs=afs)
    teacher, batch = linear_teacher(), gaussian_batch(8)
    nets = {"teacher": Learner(np.geomspace(80, 0.006, 7), np.zeros(7)), "student": Learner(np.geomspace(80, 0.006, 7), np.zeros(7))}
    state = State(teacher, nets, {}, method.phases()[1])
    list(method.losses(state, batch, Rng((7,))))
    told = {name: [c.scalars["steps"].unique().item() for c in net.conds] for name, net in nets.items()}
    assert told == {"teacher": [6.0] * (6 - afs), "student": [1.0 + afs]}
    assert method.sampling().tells_steps
    own = {steps: method.phase_for(steps) for steps in range(1 + afs, 7)}
    assert own == {1 + afs: "one"} | dict.fromkeys(range(2 + afs, 7), "sfd_v")
    with pytest.raises(Unreachable, match=f"sfd_v_one has students for {1 + afs} and {2 + afs} to 6 steps, not 7"):
        method.phase_for(7)


def test_the_second_stage_has_a_loss_of_its_own() -> None:
    """`loss` again unless there is a `second_loss`; it does not reach the first."""
    levels = make_grid("polynomial", 6, (0.006, 80.0)).sigmas
    nets = {"teacher": ExactNet(at_nodes(levels[:-1], 0.5 * posterior(levels[:-1])), EDM)}

    def value(phase: int, **options) -> float:
        return losses_of(method_of("sfd_one", **options), ExactNet(posterior, EDM), linear_teacher(), phase=phase, nets=nets)[
            0
        ].value.item()

    assert value(1, second_loss="l2") == value(1, loss="l2") != value(1)
    assert value(0, second_loss="l2") == value(0)
    with pytest.raises(UsageError, match="unknown loss 'l3'"):
        method_of("sfd_one", second_loss="l3")


@pytest.mark.parametrize("name", ["sfd", "sfd_v"])
def test_the_second_stage_starts_from_the_first_stages_student(name: str, tmp_path: Path) -> None:
    """The first phase is `sfd` for `first` steps, or `sfd_v` up to it; at its end the trained student is the teacher and the start of
    the second."""
    _, data = mixture_data()
    method = method_of(f"{name}_one", batches=2, batch_size=8, first=4, substeps=2)
    engine = Engine(method, network(data), data, tmp_path / "one", Settings(progress=False))
    before = {k: v.clone() for k, v in engine.nets["student"].state_dict().items()}
    kept = engine.run(stop_after=2).exports[name]
    own = {"steps": 4} if name == "sfd" else {"fewest": 3, "most": 4}
    alone = method_of(name, batches=2, batch_size=8, substeps=2, **own)
    same = Engine(alone, network(data), data, tmp_path / "sfd", Settings(progress=False)).run().exports[name]
    for key, value in kept.items():
        assert torch.equal(value, same[key])
        assert all(torch.equal(engine.nets[name].state_dict()[key], value) for name in ("student", "teacher"))
    assert any(not torch.equal(v, before[k]) for k, v in kept.items())
    done = engine.run()
    assert any(not torch.equal(v, kept[k]) for k, v in done.exports["one"].items())
    assert all(torch.equal(engine.nets["teacher"].state_dict()[k], v) for k, v in kept.items())
