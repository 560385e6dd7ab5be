"""Networks that learn to read another scalar: guidance weight, step count, target noise level."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fewstep.errors import UsageError
from fewstep.nets.unet import ScalarAdapter, check_scalars


@runtime_checkable
class ScalarNetwork(Protocol):
    """A network with room for scalars: `embed_scalars` by name, each [B] -> [B, `emb_channels`]."""

    embed_scalars: nn.ModuleDict
    emb_channels: int


def guidance_features(w: Tensor, channels: int) -> Tensor:
    """[sin(1000 w f), cos(1000 w f)], f_j = 10000^(-j / (h - 1)), j = 0 to h - 1, h = channels / 2. [B] -> [B, channels].

    **Source**: arXiv 2310.04378, released code.
    """
    if channels < 4 or channels % 2:
        raise UsageError(f"features of w are sines and cosines of two frequencies or more, so even in number, not {channels}; e.g. 128")
    half = channels // 2
    freqs = 10000.0 ** (-torch.arange(half, device=w.device, dtype=torch.float64) / (half - 1))
    phase = 1000 * w.double()[:, None] * freqs  # thousands: float32 would leave four digits of their sine
    return torch.cat([phase.sin(), phase.cos()], dim=1).float()


class GuidanceAdapter(nn.Linear):
    """One layer without bias, drawn as torch draws it, on `guidance_features`: an adapted network is off its teacher at the start.

    **Source**: arXiv 2310.04378, released code, where it is added before the first layer of the noise embedding (here after it).
    """

    def __init__(self, emb: int) -> None:
        super().__init__(emb, emb, bias=False)

    def forward(self, scalar: Tensor) -> Tensor:
        return super().forward(guidance_features(scalar, self.in_features).to(self.weight.dtype))


def with_scalars(net: nn.Module, names: Sequence[str], adapter: Callable[[int], nn.Module] = ScalarAdapter) -> nn.Module:
    """A copy of the network that also reads these entries of `cond.scalars`, through an adapter made from `emb_channels` for each.

    **Raises**: UsageError for a network that has no room for scalars, and for what are no names.
    """
    check_scalars(names)
    made = copy.deepcopy(net)
    if not isinstance(made, ScalarNetwork):
        raise UsageError(f"a {type(net).__name__} reads no scalars, and the method needs {', '.join(names)}; use a unet teacher")
    for name in names:
        if name not in made.embed_scalars:
            made.embed_scalars[name] = adapter(made.emb_channels).to(next(net.parameters()))
    return made
