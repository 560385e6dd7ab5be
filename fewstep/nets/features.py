"""Feature networks that metrics and losses share: the digit classifier (Inception and LPIPS live with their own weights)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.errors import UsageError
from fewstep.plugins import register


@register("network", "digit_classifier", "this project")
class DigitClassifier(nn.Module):
    """A small convolutional classifier; its penultimate layer is the feature space of `fd_digits`.

    **Shapes**: images [B, 1, 8, 8] in [-1, 1] -> features [B, 64]; `logits(features)` -> [B, 10].
    """

    dim = 64
    version: ClassVar[int] = 1  # of what the same weights compute

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1)
        self.fc = nn.Linear(64 * 4 * 4, self.dim)
        self.head = nn.Linear(self.dim, 10)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (1, 8, 8):
            raise UsageError(f"the digit classifier takes images [B, 1, 8, 8], got {list(x.shape)}; use it on digits")
        h = F.silu(self.conv1(x))
        h = F.max_pool2d(F.silu(self.conv2(h)), 2)
        h = F.silu(self.conv3(h))
        return F.silu(self.fc(self.dropout(h.flatten(1))))

    def logits(self, features: Tensor) -> Tensor:
        return self.head(self.dropout(features))


def shift(x: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Images [B, C, H, W] moved by whole pixels dx, dy [B], the background value -1 moving in."""
    b, _, h, w = x.shape
    rows = torch.arange(h, device=x.device)[None] - dy[:, None]
    cols = torch.arange(w, device=x.device)[None] - dx[:, None]
    inside = ((rows >= 0) & (rows < h))[:, :, None] & ((cols >= 0) & (cols < w))[:, None, :]
    rows, cols = rows.clamp(0, h - 1), cols.clamp(0, w - 1)
    moved = x[torch.arange(b, device=x.device)[:, None, None], :, rows[:, :, None], cols[:, None, :]]
    return torch.where(inside[:, None], moved.permute(0, 3, 1, 2), torch.full_like(x, -1.0))
