"""Optimisers by name: each takes parameters, lr and weight_decay."""

import torch

from fewstep.plugins import register

register("optimiser", "adam", "arXiv 1412.6980")(torch.optim.Adam)
register("optimiser", "adamw", "arXiv 1711.05101")(torch.optim.AdamW)
register("optimiser", "radam", "arXiv 1908.03265")(torch.optim.RAdam)
