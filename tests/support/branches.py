"""Small networks of every architecture that a branch can join, and pictures for them."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from fewstep.cond import Cond
from fewstep.denoiser import Preconditioned
from fewstep.nets.branches.adapted import Adapted, with_branch
from fewstep.nets.published.diffusers_text_unet import DiffusersTextUNet
from fewstep.nets.unet import UNet
from fewstep.nets.unet2d import UNet2D
from fewstep.nets.x0_eps import X0Eps
from fewstep.noise import Rng
from fewstep.precond import EDMPrecond
from support.components import TEXT, given_weights
from support.published import C_NOISE, COND, NETS, X, made

RANGE = (0.02, 20.0)
SMALL = {"channels": (8, 16), "emb": 16}
RGB = {**TEXT, "in_channels": 3, "out_channels": 3}
WITHOUT_TEXT = {
    **RGB,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
}
NETWORKS = {
    **{name: lambda name=name: made(name) for name in NETS},
    "unet": lambda: given_weights(UNet((3, 8, 8), 3, **SMALL)),
    "unet without blocks": lambda: given_weights(UNet((3, 8, 8), 3, **SMALL, blocks=0)),
    "unet2d": lambda: given_weights(UNet2D((3, 8, 8), 3, (8, 16), attention=(4,), heads=8, groups=4)),
    "x0_eps": lambda: given_weights(X0Eps((3, 8, 8), 3, SMALL)),
    "text": lambda: given_weights(DiffusersTextUNet((3, 8, 8), 3, {**RGB, "time_cond_proj_dim": 8})),
    "no text": lambda: given_weights(DiffusersTextUNet((3, 8, 8), 3, WITHOUT_TEXT)),
}
PEFT = importlib.util.find_spec("peft") is not None
BRANCHES = ["codi", "control", "t2i", "t2i_light", "concat", *(["lora"] if PEFT else [])]
IMAGE, MASK = Rng((21,)).uniform((2, 3, 8, 8)) * 2 - 1, (Rng((22,)).uniform((2, 1, 8, 8)) > 0.5).float()
DROPS = ("label", "text")
PICTURED = Cond(COND.label, Rng((23,)).normal((2, 4, 6)), IMAGE, MASK, COND.scalars, drops=DROPS)
CALL = (X, C_NOISE, PICTURED)


def joined(net: nn.Module, branch: str, channels: int = 4, **options) -> Adapted:
    """The network with a branch that is told image and mask, drawn from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return with_branch(net, branch, channels, options).eval()


def awake(net: Adapted) -> Adapted:
    """The network with a branch that does something: every parameter that it brought is drawn."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(6)
        for name, p in net.named_parameters():
            if any(name == own or name.startswith(f"{own}.") for own in net.own):
                p.add_(0.1 * torch.randn_like(p))
    return net


def branched(branch: str, **options) -> Preconditioned:
    """A small network with a branch that does something, or (without a name) alone, as a denoiser."""
    net = NETWORKS["unet"]()
    made = awake(joined(net, branch, **options)) if branch else net
    return Preconditioned(made.requires_grad_(False), EDMPrecond(0.5), (3, 8, 8), 3, RANGE)
