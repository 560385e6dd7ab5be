"""What released code does beside the papers: the options that have it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.cond import Cond
from fewstep.data.source import Batch
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import make_grid
from fewstep.nets.adapters import guidance_features
from fewstep.noise import Rng
from fewstep.plugins import get
from fewstep.schedule import VP, Cosine
from methods.distiller import bounded
from methods.training import State
from support import forms
from support.each import each
from support.tiny import mixture_data, network


@pytest.mark.parametrize("released", [False, True])
def test_the_released_head_subtracts_the_network_from_the_noise(released: bool) -> None:
    """z - F of an eps network; on pairs whose images it makes the loss is 0, but for their 8 bits."""
    teacher = forms.denoiser(nn.Conv2d(1, 1, 1), "eps")
    method = get("distiller", "kd").make(released=released)

    class Eps(nn.Module):
        dtype_tag = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, z, time, cond):
            assert torch.allclose(time, torch.tensor(float(Cosine().t(x_max)), dtype=time.dtype))
            return z - 0.3 * z.tanh()

    net, noise = Eps(), torch.randn(64, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x_max = bounded(teacher.sigma_range)[1]
    z = noise * x_max / (1 + x_max**2) ** 0.5  # alpha x
    found = method.student(net, teacher)(x_max * noise, x_max)
    expected = 0.3 * z.tanh() if released else x_max * (noise - z + 0.3 * z.tanh())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # 1 - alpha^2 cancels four digits in the second
    state = State(teacher, {"student": net}, {}, method.phases()[0])
    (loss,) = method.losses(state, Batch(found.detach(), Cond(label=torch.zeros(64, dtype=torch.int64)), noise), Rng((7,)))
    rounding = 1 / 255 / 2  # the mean distance to the nearest of 256 levels 2 / 255 apart
    assert loss.value.item() == pytest.approx(rounding if released else 0.0, rel=0.1, abs=1e-12)  # 1024 pixels


def test_the_released_head_needs_a_network_that_predicts_noise() -> None:
    with pytest.raises(UsageError, match="released=true subtracts a network that predicts eps, and this teacher's form is edm"):
        get("distiller", "kd").make(released=True).build(network(mixture_data()[1]))


def test_released_lcm_embeds_w_through_one_layer_that_starts_at_random() -> None:
    """diffusers' embedding of w at dimension 8, as printed; its student is off its teacher at the start, ours is not."""
    printed = {
        7.5: [-0.8512359, 0.5626783, -0.4352329, 0.6816388, -0.5247832, -0.8266760, -0.9003179, 0.7316889],
        0.0: [0.0] * 4 + [1.0] * 4,
    }
    for w, expected in printed.items():
        (found,) = guidance_features(torch.tensor([w]), 8)
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-7)  # the digits printed
    _, data = mixture_data()
    teacher, batch = network(data), data.draw(4, Rng((1,)))
    cond = replace(batch.cond, scalars={"w": torch.tensor([0.0, 1.0, 2.0, 4.0])})
    for released in (False, True):
        method = get("distiller", "lcm").make(released=released)
        net = method.build(teacher)["student"]
        own, told = net(batch.x0, torch.zeros(4), batch.cond), net(batch.x0, torch.zeros(4), cond)
        assert torch.equal(own, told) != released
    (layer,) = net.embed_scalars["w"].parameters()
    assert layer.shape == (net.emb_channels, net.emb_channels)


# The released scheduler's times by number of steps, and its boundary (t, c_skip, c_out), as printed.
LCM_TIMES = {
    1: [999],
    2: [999, 499],
    3: [999, 679, 339],
    4: [999, 759, 499, 259],
    6: [999, 839, 679, 499, 339, 179],
    8: [999, 879, 759, 639, 499, 379, 259, 139],
    50: list(range(999, 0, -20)),
}
LCM_BOUNDARY = {0: (1.0, 0.0), 1: (0.0024938, 0.9987523), 19: (6.925e-6, 0.9999965)}


@each("steps", LCM_TIMES)
def test_released_lcm_is_sampled_at_the_schedulers_times(steps: int) -> None:
    own = get("distiller", "lcm").make(released=True).sampling()
    levels = make_grid(own.grid, steps, (0.002, 80.0), own.end).sigmas
    times = 1000 * VP.fitted(0.002, 80.0).t(levels) - 1
    np.testing.assert_allclose(times, [*LCM_TIMES[steps], 0], rtol=0, atol=1e-6)  # float64, times up to 1000


def test_the_lcm_grid_has_fifty_times() -> None:
    with pytest.raises(Unreachable, match="the lcm grid picks from 50 timesteps, so it has 1 to 50 steps, not 51; use time_uniform"):
        make_grid("lcm", 51, (0.002, 80.0))
    assert make_grid("lcm", 1, (0.002, 80.0), "zero").sigmas.tolist() == [80.0, 0.0]


def test_released_lcm_has_the_boundary_of_its_timesteps() -> None:
    """f = c_skip z + c_out D with z = alpha x; D = 0 shows the first, D at x = 0 the second."""
    method, schedule = get("distiller", "lcm").make(released=True), VP.fitted(0.002, 80.0)
    teacher = network(mixture_data()[1])
    precond = method.student(teacher.net, teacher).precond
    for t, (c_skip, c_out) in LCM_BOUNDARY.items():
        sigma = np.asarray(schedule.sigma((t + 1) / 1000))
        alpha = schedule.alpha_sigma((t + 1) / 1000)[0]
        skip, out, *inputs = precond.coefficients(sigma)
        of_d = teacher.precond.coefficients(sigma)
        assert out == pytest.approx(c_out * of_d[1], rel=1e-6, abs=1e-12)  # seven printed digits; t = 0 to rounding
        assert skip - c_out * of_d[0] == pytest.approx(c_skip * alpha, rel=1e-3, abs=1e-7)  # c_out is printed to 5e-8
        assert inputs == [pytest.approx(v) for v in of_d[2:]]


def test_released_lcm_learns_from_one_of_the_grids_intervals_to_the_next() -> None:
    teacher, seen = network(mixture_data()[1]), []
    method = get("distiller", "lcm").make(released=True)
    net = method.build(teacher)["student"]

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, x, noise, cond):
            seen.append(torch.exp(4 * noise.double()))
            return self.inner(x, noise, cond)

    watched = Watched()
    state = State(teacher, {"student": watched}, {"target": watched}, method.phases()[0])
    list(method.losses(state, mixture_data()[1].draw(256, Rng((1,))), Rng((2,))))
    levels = make_grid("lcm", 50, (0.002, 80.0)).sigmas
    to, of = (np.abs(np.log(levels)[:, None] - np.log(s.numpy())).argmin(0) for s in seen)
    assert (to == of + 1).all()
    assert {0, 49} < set(of)


def test_the_second_stage_has_its_own_length_and_lr_where_told() -> None:
    make = get("distiller", "sfd_one").make
    first, second = make(batches=10, lr=0.1, second_batches=100, second_lr=1.0).phases()
    assert [(p.batches, p.optims["student"].lr) for p in (first, second)] == [(10, 0.1), (100, 1.0)]
    assert [(p.batches, p.optims["student"].lr) for p in make(batches=10, lr=0.1).phases()] == [(10, 0.1)] * 2


@each("name", ["sfd", "sfd_v", "sfd_one", "sfd_v_one", "trajectory"])
def test_released_sfd_keeps_dropout_and_drops_its_lr_half_way(name: str) -> None:
    teacher = network(mixture_data()[1])
    for module in teacher.net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.13
    found = {}
    for released in (False, True):
        method = get("distiller", name).make(released=released, batches=10, lr=1.0)
        rates = {m.p for m in method.build(teacher)["student"].modules() if isinstance(m, nn.Dropout)}
        found[released] = rates, [[p.optims["student"].lr_at(b, 10) for b in (0, 4, 5, 9)] for p in method.phases()]
    stages = len(found[True][1])
    assert found[True] == ({0.13}, [[1.0, 1.0, 0.1, 0.1]] * stages)
    assert found[False] == ({0.0}, [[1.0, 1.0, 1.0, pytest.approx(0.2)]] * stages)


@each(("name", "options", "line"), [
    ("lcm", {"nodes": 40}, "lcm with released=true has nodes=51, got 40 .perhaps from a suite.; give nodes=51 or leave released out"),
    ("lcm", {"skip": 2}, "lcm with released=true has skip=1, got 2"),
    ("cd", {"clip": 3.0}, "cd with released=true has clip=0, got 3"),
    ("dmd2", {"anneal_from": 0.2}, "dmd2 with released=true has anneal_from=1, got 0.2"),
])  # fmt: skip
def test_what_released_code_fixes_is_not_overwritten_in_silence(name: str, options: dict, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        get("distiller", name).make(released=True, **options)
    assert replace(get("distiller", name).make(released=True), lr=1e-4).released
