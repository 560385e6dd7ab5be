"""From seeds to samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewstep.calls import check_seeds
from fewstep.checks import check_count
from fewstep.cond import Cond
from fewstep.denoiser import Denoiser
from fewstep.noise import LATENT, Noise, make_noise
from fewstep.sampling.plan import Plan
from fewstep.sampling.runner import end_of

SAMPLER_VERSION = 2  # of what every sample passes through: runner, preconditioning, guidance, AFS, noise, the U-Net


def start(source: Noise, denoiser: Denoiser, sigma_max: float) -> tuple[Tensor, Cond]:
    """x = sigma_max n [B, *shape] and the samples' labels, drawn in this order; no labels for an unconditional model."""
    x = source.normal(LATENT, denoiser.shape) * sigma_max
    return x, Cond(label=source.labels(denoiser.classes)) if denoiser.classes else Cond()


@torch.inference_mode()
def sample(
    plan: Plan, denoiser: Denoiser, sigma_max: float, seeds: Tensor, noise: str = "philox", batch: int = 250, bar: Any = None
) -> tuple[Tensor, Tensor]:
    """Samples and class labels of the given seeds, from x = sigma_max n; they do not depend on `batch`.

    **Shapes**: seeds [N] int64 -> images [N, *shape] float32 (not clipped), labels [N] int64 (empty for an unconditional model).
    """
    check_seeds(seeds)
    check_count("batch", batch, 1, "it is how many samples are made at once, e.g. 250")
    images, labels = [], []
    for part in seeds.split(batch):
        source = make_noise(noise, part)
        x, cond = start(source, denoiser, sigma_max)
        images.append(end_of(plan, denoiser, x, source, cond).cpu())
        labels.append((torch.zeros_like(part) if cond.label is None else cond.label).cpu())
        if bar is not None:
            bar.update(len(part))
    return torch.cat(images), torch.cat(labels)
