"""What released code does beside the papers: the options that have it."""

from __future__ import annotations

from dataclasses import replace

import forms
import pytest
import torch
from tiny import mixture_data, network
from torch import nn

from fewstep.cond import Cond
from fewstep.data.images import Batch
from fewstep.errors import UsageError
from fewstep.nets.adapters import guidance_features
from fewstep.noise import Rng
from fewstep.schedule import Cosine
from methods.distiller import State, bounded
from methods.registry import get


@pytest.mark.parametrize("released", [False, True])
def test_the_released_head_subtracts_the_network_from_the_noise(released: bool) -> None:
    """z - F of an eps network; on pairs whose images it makes the loss is 0, but for their 8 bits."""
    teacher = forms.denoiser(nn.Conv2d(1, 1, 1), "eps")
    method = get("distiller", "kd").make(released=released, label_dropout=0.0)

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
        torch.testing.assert_close(guidance_features(torch.tensor([w]), 8)[0], torch.tensor(expected), rtol=0, atol=4e-4)  # float32 of 7500
    _, data = mixture_data()
    teacher, batch = network(data), data.draw(4, Rng((1,)))
    cond = replace(batch.cond, scalars={"w": torch.tensor([0.0, 1.0, 2.0, 4.0])})
    for adapter in ("zero", "released"):
        method = get("distiller", "lcm").make(adapter=adapter)
        net = method.build(teacher)["student"]
        own, told = net(batch.x0, torch.zeros(4), batch.cond), net(batch.x0, torch.zeros(4), cond)
        assert torch.equal(own, told) == (adapter == "zero")
    (layer,) = net.embed_scalars["w"].parameters()
    assert layer.shape == (net.emb_channels, net.emb_channels)


def test_an_unknown_adapter_is_refused() -> None:
    with pytest.raises(UsageError, match="lcm's adapter of w is zero or released, got 'relesed'; did you mean released"):
        get("distiller", "lcm").make(adapter="relesed")


@pytest.mark.parametrize("name", ["sfd", "sfd_v", "sfd_one", "sfd_v_one", "trajectory"])
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
