"""Noise levels that denoisers are trained at."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewstep.noise import Rng


def lognormal_and_flat(count: int, sigma_range: tuple[float, float], rng: Rng, p_mean: float, p_std: float, uniform: float) -> Tensor:
    """Levels [B], float64: log sigma is normal(p_mean, p_std) clamped to the range, and for a share `uniform` of them uniform over it."""
    lo, hi = math.log(sigma_range[0]), math.log(sigma_range[1])
    lognormal = (p_mean + p_std * rng.normal((count,)).double()).clamp(lo, hi)
    flat = lo + (hi - lo) * rng.uniform((count,)).double()
    return torch.where(rng.uniform((count,)) < uniform, flat, lognormal).exp()
