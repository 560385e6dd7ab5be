"""The small network of AMED: where a solver's inserted evaluation lies, and how its result is scaled."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EMBEDDING, HIDDEN, SUMMARY = 8, 128, 4


def _linear(cin: int, cout: int) -> nn.Linear:
    """Kaiming-normal weights of gain 1, no bias at the start."""
    layer = nn.Linear(cin, cout)
    nn.init.normal_(layer.weight, std=math.sqrt(1 / cin))
    nn.init.zeros_(layer.bias)
    return layer


class StepPredictor(nn.Module):
    """(features, sigma, sigma') -> (r, c, a): exponent of the inserted level, scale of its direction, scale of its noise level.

    r in (0, 1), c within 1 +- scale_dir, a within 1 +- scale_time (exactly 1 without a range). Noise levels are embedded as [sin, cos]
    of sigma 10000^(-j/3); features pass through a bottleneck of 4; both feed one linear layer per output. With 0 features it sees the
    levels only; an empty [B, 0] stands for zeros. **Shapes**: features [B, F], levels [B] or [], outputs [B] float64.
    **Source**: arXiv 2312.00094 and its released code (there always 64 features).
    """

    def __init__(self, features: int, scale_dir: float, scale_time: float) -> None:
        super().__init__()
        self.features, self.scale_dir, self.scale_time = features, scale_dir, scale_time
        self.map_layer0 = nn.Linear(EMBEDDING, EMBEDDING)
        nn.init.xavier_uniform_(self.map_layer0.weight)
        nn.init.zeros_(self.map_layer0.bias)
        if features:
            self.enc_layer0, self.enc_layer1 = _linear(features, HIDDEN), _linear(HIDDEN, SUMMARY)
        width = 2 * EMBEDDING + (SUMMARY if features else 0)
        self.fc_r = _linear(width, 1)
        if scale_dir:
            self.fc_scale_dir = _linear(width, 1)
        if scale_time:
            self.fc_scale_time = _linear(width, 1)

    def _embedded(self, sigma: Tensor, count: int) -> Tensor:
        half = EMBEDDING // 2
        freqs = 10000 ** (-torch.arange(half, device=sigma.device, dtype=torch.float32) / (half - 1))
        phase = sigma.to(torch.float32).expand(count)[:, None] * freqs
        return F.silu(self.map_layer0(torch.cat([phase.sin(), phase.cos()], dim=1)))

    def _scale(self, head: nn.Linear, seen: Tensor, span: float) -> Tensor:
        return 1 + span * (2 * torch.sigmoid(head(seen).double()).squeeze(1) - 1)

    def forward(self, features: Tensor, sigma: Tensor, sigma_to: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        count = len(features)
        seen = [self._embedded(sigma, count), self._embedded(sigma_to, count)]
        if self.features:
            shown = features.detach().float() if features.shape[1] else features.new_zeros(count, self.features, dtype=torch.float32)
            seen = [self.enc_layer1(F.silu(self.enc_layer0(shown))), *seen]
        joined = torch.cat(seen, dim=1)
        r = torch.sigmoid(self.fc_r(joined).double()).squeeze(1)
        c = self._scale(self.fc_scale_dir, joined, self.scale_dir) if self.scale_dir else torch.ones_like(r)
        a = self._scale(self.fc_scale_time, joined, self.scale_time) if self.scale_time else torch.ones_like(r)
        return r, c, a
