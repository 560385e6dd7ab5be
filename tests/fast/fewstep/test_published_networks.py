"""What published networks share beside their numbers: bf16, gradients, features, scalars, refusals."""

import pytest
import torch
from torch.testing import assert_close

from fewstep.cond import Cond
from fewstep.errors import UsageError
from fewstep.nets.adapters import with_scalars
from fewstep.nets.published.diffusers_unet import DiffusersUNet
from fewstep.nets.published.edm import DhariwalUNet, SongUNet
from fewstep.nets.published.openai_unet import OpenaiUNet
from support.each import each
from support.published import C_NOISE, COND, DIFFUSERS, LEVELS, NETS, WIDE, X, made

SKIP = {"down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"), "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D")}


@each("name", NETS)
def test_bf16_and_gradients(name):
    net = made(name)
    with torch.no_grad():
        full = net(X, C_NOISE, COND)
        with torch.autocast("cpu", torch.bfloat16):
            half = net(X, C_NOISE, COND)
        # eight bits of a number, through some twenty layers
        assert_close(half.float(), full, rtol=0.1, atol=0.1 * float(full.abs().max()))
    for trained in (net.train(), with_scalars(net, ("w",)).train()):
        cond = Cond(COND.label, scalars={**COND.scalars, "w": torch.tensor([1.0, 2.0])})
        trained(X, C_NOISE, cond).square().sum().backward()
        without = [key for key, p in trained.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert set(without) <= {"map_augment.weight"}


@each("name", NETS)
@torch.no_grad()
def test_features_labels_and_scalars(name):
    net = made(name)
    out, deepest = net(X, C_NOISE, COND, features=True)
    assert out.shape == X.shape
    assert deepest.mean(1).flatten(1).shape == (2, net.feature_size)
    free = net(X, C_NOISE, Cond(scalars=COND.scalars))
    assert not torch.allclose(out[0], free[0])
    assert_close(out[1], free[1])  # the null label is none
    adapted = with_scalars(net, ("w",)).eval()
    told = Cond(COND.label, scalars={**COND.scalars, "w": torch.tensor([1.0, 2.0])})
    assert_close(adapted(X, C_NOISE, told), out)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in net.parameters() if p.ndim == 4)


def test_a_fourier_network_of_diffusers_with_skips_is_theirs():
    net = DiffusersUNet((3, 8, 8), 3, {**DIFFUSERS, **SKIP, "time_embedding_type": "fourier"}).eval()
    with torch.no_grad():
        label, t = torch.tensor([0, 2]), torch.tensor([0.5, 3.0])
        assert_close(net(X, t, Cond(label=label)), net.unet(X, t, label).sample)


@each(
    ("make", "message"),
    [
        (lambda: SongUNet((3, 8, 6), 0, LEVELS), "makes square images"),
        (lambda: SongUNet((3, 9, 9), 0, LEVELS), "halves 9 pixels 1 times; use a multiple of 2"),
        (lambda: SongUNet((3, 8, 8), 0, LEVELS, "ddpm"), "unknown kind 'ddpm' of a song_unet; did you mean ddpmpp"),
        (lambda: SongUNet((3, 8, 8), 0, {"channels": 8}), "levels of a song_unet hold channels, mult, blocks, attention"),
        (lambda: SongUNet((3, 8, 8), 0, {**LEVELS, "channels": 10}), "groups of equal size"),
        (lambda: DhariwalUNet((3, 8, 8), -1, LEVELS), "classes of a dhariwal_unet"),
        (lambda: DhariwalUNet((3, 8, 8), 0, {**LEVELS, "mult": "12"}), "mult of a dhariwal_unet are integers"),
        (lambda: OpenaiUNet((3, 8, 8), 0, {**WIDE, "channels": 40}), "a multiple of 32"),
        (lambda: OpenaiUNet((3, 8), 0, WIDE), "makes square images"),
        (lambda: OpenaiUNet((3, 8, 8), 0, {}), "levels of an openai_unet hold"),
    ],
)
def test_sizes_that_no_network_has(make, message):
    with pytest.raises(UsageError, match=message):
        make()
