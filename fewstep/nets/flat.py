"""All parameters of a network in one stretch of memory, so that what is done to every parameter alike is one launch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ALIGN = 16  # elements: every parameter starts where 128-bit accesses may


def flatten(net: nn.Module) -> list[Tensor]:
    """Move the parameters into one flat tensor [N] for each dtype, which they become views of; values, strides and identities stay.

    Networks of one architecture get flat tensors of the same order. Load weights by `load_state_dict`, which copies in place.
    """
    flats = []
    for dtype in dict.fromkeys(p.dtype for p in net.parameters()):
        own = [p for p in net.parameters() if p.dtype == dtype]
        starts = [0]
        for p in own:
            starts.append(starts[-1] + -(-p.numel() // ALIGN) * ALIGN)
        flat = torch.zeros(starts[-1], dtype=dtype, device=own[0].device)
        for p, start in zip(own, starts):
            stride = torch.empty_like(p).stride()  # as p's where p is dense
            view = flat[start : start + p.numel()].as_strided(p.shape, stride)
            p.data = view.copy_(p.data)
        flats.append(flat)
    return flats
