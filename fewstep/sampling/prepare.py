"""What networks make of a condition's picture, made once for a whole trajectory."""

from __future__ import annotations

from fewstep.cond import Cond, prepared_by
from fewstep.denoiser import Denoiser, Preconditioned, layers


def prepared(denoiser: Denoiser, cond: Cond) -> Cond:
    """The condition with what each network of a denoiser makes of its picture once (the maps of a T2I-Adapter), for all of its calls."""
    for net in dict.fromkeys(layer.net for layer in layers(denoiser) if isinstance(layer, Preconditioned)):
        cond = prepared_by(net, cond)
    return cond
