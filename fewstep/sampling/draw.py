"""From seeds to samples."""

from __future__ import annotations

from dataclasses import dataclass
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
from fewstep.tasks.generation import task_for
from fewstep.tasks.task import Task, origin_of

SAMPLER_VERSION = 2  # of what every sample passes through: runner, preconditioning, guidance, AFS, noise, the U-Net


@dataclass(frozen=True)
class Start:
    """Where samples begin: the source of their noise, x = sigma_max n [B, *shape] (and a picture, where the task starts from one), and what
    they are asked for."""

    source: Noise
    x: Tensor
    cond: Cond


def start(noise: str, seeds: Tensor, denoiser: Denoiser, sigma_max: float, task: Task | None = None) -> Start:
    """Where the samples of these seeds [B] begin, by the name of their noise; `task`: generation where none is given."""
    source = make_noise(noise, seeds, denoiser.classes)
    x = source.normal(LATENT, denoiser.shape) * sigma_max
    asked = task or task_for(denoiser)
    cond = asked.conditions(seeds, denoiser)
    origin = origin_of(asked, cond)
    return Start(source, x if origin is None else origin + x, cond)


@torch.inference_mode()
def sample(
    plan: Plan,
    denoiser: Denoiser,
    sigma_max: float,
    seeds: Tensor,
    noise: str = "philox",
    batch: int = 250,
    bar: Any = None,
    task: Task | None = None,
) -> tuple[Tensor, Tensor]:
    """Samples and class labels of the given seeds, from x = sigma_max n; they do not depend on `batch`. `task`: by default generation.

    **Shapes**: seeds [N] int64 -> images [N, C, H, W] float32 (the task's pixels, not clipped), labels [N] int64 (0 without classes).
    """
    check_seeds(seeds)
    check_count("batch", batch, 1, "it is how many samples are made at once, e.g. 250")
    asked, images, labels = task or task_for(denoiser), list[Tensor](), list[Tensor]()
    for part in seeds.split(batch):
        own = start(noise, part, denoiser, sigma_max, asked)
        images.append(asked.pixels(end_of(plan, denoiser, own.x, own.source, own.cond)).cpu())
        labels.append((torch.zeros_like(part) if own.cond.label is None else own.cond.label).cpu())
        if bar is not None:
            bar.update(len(part))
    return torch.cat(images), torch.cat(labels)
