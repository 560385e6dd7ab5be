"""Unsharp masking: edges of a picture raised where they stand out."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.data.degradations.canvas import filtered, whole
from fewstep.data.degradations.kernels import blur_kernels

STRENGTH, THRESHOLD = 0.5, 10 / 255


def sharpened(images: Tensor, size: int = 51) -> Tensor:
    """Images [B, C, H, W] in [0, 1], sharpened: soft clip(x + r / 2) + (1 - soft) x, r = x - blur(x), soft = blur(|r| > 10 / 255).

    The blur is Gaussian of `size` pixels and the standard deviation 0.3 ((size - 1) / 2 - 1) + 0.8, 8 for the published 51.
    **Source**: arXiv 2107.10833, released code.
    """
    sigma = torch.tensor([0.3 * ((size - 1) * 0.5 - 1) + 0.8], dtype=torch.float64, device=images.device)
    nothing, own = torch.zeros_like(sigma), torch.tensor([size], device=images.device)
    kernel = blur_kernels(torch.zeros_like(own), (sigma, sigma), nothing, nothing + 1, own, size).expand(len(images), -1, -1)
    residual = images - filtered(whole(images), kernel).pixels
    soft = filtered(whole((residual.abs() > THRESHOLD).to(images)), kernel).pixels
    return soft * (images + STRENGTH * residual).clamp(0, 1) + (1 - soft) * images
