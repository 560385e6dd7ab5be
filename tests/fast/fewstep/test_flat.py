"""Flat parameters, the forward process, and the moving average: each is one update."""

import copy

import pytest
import torch
from torch import nn

import kernels
from fewstep.nets.flat import flatten
from fewstep.nets.unet import UNet
from fewstep.noise import Rng, noised


def network():
    torch.manual_seed(0)
    return UNet((3, 8, 8), 4, channels=(16, 32))


def test_flattening_changes_nothing_but_where_parameters_lie():
    net, twin = network(), network()
    before = {name: (p, p.stride(), p.is_contiguous()) for name, p in net.named_parameters()}
    (flat,) = flatten(net)
    assert flat.numel() >= sum(p.numel() for p in net.parameters())
    for name, p in net.named_parameters():
        same, stride, contiguous = before[name]
        assert p is same
        assert p.stride() == stride
        assert p.is_contiguous() is contiguous
        assert flat.data_ptr() <= p.data_ptr() < flat.data_ptr() + 4 * flat.numel()
        assert p.data_ptr() % 64 == flat.data_ptr() % 64
    x, c = Rng((1,)).normal((2, 3, 8, 8)), torch.tensor([0.1, 0.2])
    assert torch.equal(net(x, c), twin(x, c))


def test_what_the_optimiser_steps_is_seen_in_the_flat_tensor_and_loaded_weights_too():
    net = network()
    (flat,) = flatten(net)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
    net(Rng((1,)).normal((2, 3, 8, 8)), torch.tensor([0.1, 0.2])).sum().backward()
    before = flat.clone()
    optimiser.step()
    assert not torch.equal(flat, before)
    net.load_state_dict(network().state_dict())
    assert torch.equal(flat, flatten(network())[0])


def test_every_dtype_has_its_own_memory():
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2).double())
    assert {flat.dtype for flat in flatten(net)} == {torch.float32, torch.float64}


def test_the_moving_average_is_one_update_of_all_parameters():
    net = network()
    average = copy.deepcopy(net)
    for p in net.parameters():
        nn.init.normal_(p)
    expected = [0.9 * mine + (1 - 0.9) * theirs for mine, theirs in zip(average.parameters(), net.parameters(), strict=True)]
    (mine,), (theirs,) = flatten(average), flatten(net)
    kernels.update([mine[None]], [mine[None], theirs[None]], torch.tensor([[0.9, 1 - 0.9]]))
    torch.testing.assert_close(list(average.parameters()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_forward_process(dtype):
    """Against float64 sums of the rounded inputs: the result's own rounding."""
    x0, n, sigma = Rng((1,)).normal((4, 3, 5, 5)).to(dtype), Rng((2,)).normal((4, 3, 5, 5)).to(dtype), torch.tensor([0.1, 80.0, 1.0, 3.0])
    expected = x0.double() + sigma.double().view(-1, 1, 1, 1) * n.double()
    torch.testing.assert_close(noised(x0, n, sigma), expected.to(dtype))
    assert noised(x0, n, sigma.double()).dtype is dtype
