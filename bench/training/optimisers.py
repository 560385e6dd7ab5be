"""Optimisers by name: each takes parameters, lr and weight_decay."""

import torch
from torch import nn

from bench.training.freezing import trained
from fewstep.plugins import get, register
from methods.training import Optim

register("optimiser", "adam", "arXiv 1412.6980")(torch.optim.Adam)
register("optimiser", "adamw", "arXiv 1711.05101")(torch.optim.AdamW)
register("optimiser", "radam", "arXiv 1908.03265")(torch.optim.RAdam)


def optimiser_of(spec: Optim, net: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a network's parameters that are not frozen."""
    return get("optimiser", spec.name).make(params=trained(net), lr=spec.lr, weight_decay=spec.weight_decay)
