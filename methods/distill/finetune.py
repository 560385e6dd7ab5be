"""Fine-tuning of a prior to a task of pictures: a conditional model that is sampled in many steps, which distillation is compared with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.noise import Rng, noised
from fewstep.plugins import get, register
from methods.conditional import conditional_net
from methods.distill.ct import check_init
from methods.distiller import Sampling, bounded
from methods.levels import lognormal_and_flat
from methods.losses.distances import l2
from methods.start import like_teacher
from methods.training import Loss, Optim, Phase, State, one_phase

SOLVERS = ("heun", "ddpm", "dpm_2s", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "ipndm_3", "unipc_bh2_2")


@register("distiller", "finetune", "arXiv 2310.01407 (baseline LDM-SR)")
@register("distiller", "controlnet", "arXiv 2302.05543", branch="control", frozen=True)
@register("distiller", "t2i_adapter", "arXiv 2302.08453", branch="t2i", frozen=True)
@register("distiller", "palette", "arXiv 2111.05826", branch="concat")
@dataclass(frozen=True)
class ConditionalFinetuning:
    """min E |D(x0 + sigma n, sigma, c) - x0|^2 / c_out(sigma)^2: diffusion training of the teacher's network with a `branch` that is told
    the picture c. The branch alone is trained where the backbone is `frozen`.

    log sigma is drawn as in the pretraining of EDM networks (`lognormal_and_flat`); 1 / c_out^2 is the weight under which the network's raw
    output has an error of equal size at all levels, whatever it predicts. It is no few-step student: any solver samples it, on the grid
    of this name. **Source**: arXiv 2310.01407 (the baselines of table 1); arXiv 2302.05543, 2302.08453 and 2111.05826, each by its
    branch. The whole image has noise and is scored, of inpainting too. All numbers are ours; Adam, which without weight decay is the
    published AdamW.
    """

    branch: str = "codi"
    frozen: bool = False
    init: str = "teacher"
    grid: str = "polynomial"
    batches: int = 1000
    batch_size: int = 64
    lr: float = 3e-4
    ema: float = 0.99
    p_mean: float = -0.6
    p_std: float = 1.3
    uniform: float = 0.25
    clip: float = 1.0
    anneal_from: float = 0.5
    version: int = 1

    @property
    def loss(self) -> str:
        return ""

    def __post_init__(self) -> None:
        check_init(self.init, "finetune")
        get("grid", self.grid)

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {"student": conditional_net(teacher, "finetune", self.branch, self.frozen, self.init)}

    def phases(self) -> Sequence[Phase]:
        optim = Optim("adam", self.lr, anneal_from=self.anneal_from, clip=self.clip or math.inf)
        return one_phase("finetune", self.batches, self.batch_size, self.ema, {"student": optim})

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        denoiser = self.student(state.nets["student"], state.teacher)
        sigma = lognormal_and_flat(len(batch.x0), bounded(denoiser.sigma_range), rng, self.p_mean, self.p_std, self.uniform).cpu()
        d = denoiser(noised(batch.x0, rng.normal(batch.x0.shape), sigma), sigma, batch.cond)
        weight = torch.from_numpy(np.asarray(denoiser.precond.coefficients(sigma.numpy())[1]) ** -2.0).to(d)
        yield Loss((weight * l2(d, batch.x0)).mean(), "student")

    def phase_for(self, steps: int) -> str:
        return "finetune"

    def student(self, net: nn.Module, teacher: Denoiser) -> Preconditioned:
        return like_teacher(net, teacher, "finetune")

    def sampling(self) -> Sampling:
        return Sampling("euler", self.grid, "sigma_min", solvers=SOLVERS, any_level=True)
