"""The second stage of simple and fast distillation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from euler_students import EXACT, Learner, factors, gains_of, losses_of, method_of, plan_of
from exactnet import EDM, ExactNet, at_nodes, linear_teacher, posterior
from tiny import mixture_data, network

from bench.engine import Engine, Settings
from fewstep.denoiser import Preconditioned
from fewstep.grid import TimeGrid, make_grid
from fewstep.plan import with_afs


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


def test_the_second_stage_starts_from_the_first_stages_student(tmp_path: Path) -> None:
    """The first phase is `sfd` for `first` steps; at its end the trained student is the teacher and the start of the second."""
    _, data = mixture_data()
    method = method_of("sfd_one", batches=2, batch_size=8, first=4, substeps=2)
    engine = Engine(method, network(data), data, tmp_path / "one", Settings(progress=False))
    before = {k: v.clone() for k, v in engine.nets["student"].state_dict().items()}
    kept = engine.run(stop_after=2).exports["sfd"]
    alone = method_of("sfd", batches=2, batch_size=8, steps=4, substeps=2)
    same = Engine(alone, network(data), data, tmp_path / "sfd", Settings(progress=False)).run().exports["sfd"]
    for key, value in kept.items():
        assert torch.equal(value, same[key])
        assert all(torch.equal(engine.nets[name].state_dict()[key], value) for name in ("student", "teacher"))
    assert any(not torch.equal(v, before[k]) for k, v in kept.items())
    done = engine.run()
    assert any(not torch.equal(v, kept[k]) for k, v in done.exports["one"].items())
    assert all(torch.equal(engine.nets["teacher"].state_dict()[k], v) for k, v in kept.items())
