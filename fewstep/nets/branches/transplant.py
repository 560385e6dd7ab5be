"""A branch that was trained beside one network, put beside another of the same architecture."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from fewstep.denoiser import Denoiser, Preconditioned, layers, leaf, with_leaves
from fewstep.errors import UsageError
from fewstep.nets.branches.adapted import Adapted, with_branch
from fewstep.nets.branches.files import own_part
from fewstep.nets.loading import load_strict
from fewstep.nets.partial import whole_of
from fewstep.nets.reduced import full


def _adapted(denoiser: Denoiser) -> Adapted | None:
    own = leaf(denoiser)
    whole = whole_of(full(own.net)) if isinstance(own, Preconditioned) else None
    return whole if isinstance(whole, Adapted) and whole.channels else None


def told_pictures(denoiser: Denoiser) -> bool:
    """Whether the network of a denoiser, under all wrappers, reads pictures through a branch."""
    return any(_adapted(layer) is not None for layer in layers(denoiser))


def with_branch_of(denoiser: Denoiser, giver: Denoiser) -> Denoiser:
    """The same denoiser, wrappers and all, with a copy of the branch of another one's network on each network in it.

    **Raises**: UsageError for a giver without branch, and a network that the branch does not fit.
    """
    given = _adapted(giver)
    if given is None:
        raise UsageError("the student that a branch is taken from has none; train it with controlnet, pe_codi or t2i_adapter")
    weights = own_part(given).state_dict()

    def own(of: Denoiser) -> Denoiser:
        if not isinstance(of, Preconditioned):
            raise UsageError(f"a branch joins networks, and a {type(of).__name__} has none; distil it first")
        made = _joined(of.net, given)
        load_strict(own_part(made), weights, f"the branch {given.name}")
        return replace(of, net=made.requires_grad_(False).eval())

    return with_leaves(denoiser, own)


def _joined(net: nn.Module, given: Adapted) -> Adapted:
    with torch.random.fork_rng():
        return with_branch(whole_of(net), given.name, given.channels, given.options)
