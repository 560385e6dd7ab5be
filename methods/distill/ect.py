"""Easy consistency tuning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import UsageError
from fewstep.noise import Rng
from fewstep.plugins import register
from methods.distill.ct import shared_noise_pair
from methods.distiller import Sampling, bounded, consistent
from methods.losses.distances import distance
from methods.start import like_teacher, student_net
from methods.training import NEITHER, Loss, Phase, State, later, one_phase, settle, tuned


def tuned_level(sigma: Tensor, stage: int, q: float, k: float, b: float) -> Tensor:
    """r = max(0, sigma (1 - (1 + k sigmoid(-b sigma)) / q^(stage + 1))): 0 is diffusion training, r -> sigma the consistency condition.

    **Source**: arXiv 2406.14548, released code (k 8, b 1).
    """
    return (sigma * (1 - (1 + k * torch.sigmoid(-b * sigma)) / q ** (stage + 1))).clamp(min=0)


@register("distiller", "ect", "arXiv 2406.14548 (easy consistency tuning)")
@dataclass(frozen=True)
class EasyConsistencyTuning:
    """Easy consistency tuning: from the teacher's diffusion training to the consistency condition in `stages` equal parts.

    min E d(f(x0 + sigma n, sigma), sg f(x0 + r n, r)) / (sigma - r), ln sigma ~ N(p_mean, p_std^2), r = `tuned_level` of the stage; where
    r is below the teacher's sigma_min it is 0 and the target is x0. Trained under the teacher's preconditioning, sampled with the
    boundary f(x, sigma_min) = x, as in the released code (sigma_min 0.003 there, the teacher's here).
    **Source**: arXiv 2406.14548, released code (q 2 in 8 stages, or 256 in one; 200k batches of 128, RAdam 1e-4, dropout 0.2, EMA
    0.9999). Ours cuts sigma to the teacher's range and has no dropout. `norm` is the
    published distance with c = 0. `clip` and `anneal_from` are ours; `released` has neither: in one pass that is much better, in two and
    four worse (docs/distillation.md).
    """

    loss: str = "norm"
    q: float = 2.0
    stages: int = 8
    k: float = 8.0
    b: float = 1.0
    p_mean: float = -1.1
    p_std: float = 2.0
    batches: int = 1000
    batch_size: int = 128
    lr: float = 5e-4
    ema: float = 0.99
    clip: float = later(1.0)
    anneal_from: float = later(0.5)
    released: bool = later(False)
    version: int = 2

    def __post_init__(self) -> None:
        settle(self, "ect", NEITHER)
        distance(self.loss)
        if self.q <= 1 or self.stages < 1:
            raise UsageError(
                f"ect needs q > 1 and stages >= 1, got q={self.q:g} and stages={self.stages}; use q=2 stages=8 or q=256 stages=1"
            )
        if self.k < 0 or self.b < 0 or self.p_std <= 0:
            raise UsageError(f"ect needs k >= 0, b >= 0 and p_std > 0, got {self.k:g}, {self.b:g} and {self.p_std:g}; use 8, 1 and 2")

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {"student": student_net(teacher, "ect")}

    def phases(self) -> Sequence[Phase]:
        optim = tuned(self, "radam", self.lr)
        return one_phase("ect", self.batches, self.batch_size, self.ema, {"student": optim})

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        (low, high), count = bounded(state.teacher.sigma_range), len(batch.x0)
        sigma = (self.p_mean + self.p_std * rng.normal((count,)).cpu().double()).exp().clamp(low, high)
        r = tuned_level(sigma, state.batch * self.stages // state.phase.batches, self.q, self.k, self.b)
        r = torch.where(r < low, 0, r)
        net = like_teacher(state.nets["student"], state.teacher, "ect")
        f, to = shared_noise_pair(net, net, batch, sigma, r.clamp(min=low), rng)
        clean = (r == 0).to(f.device).view(-1, *[1] * (f.ndim - 1))
        value = distance(self.loss)(f, torch.where(clean, batch.x0, to))
        yield Loss((value / (sigma - r).to(f)).mean(), "student")

    def phase_for(self, steps: int) -> str:
        return "ect"

    def student(self, net: nn.Module, teacher: Denoiser) -> Preconditioned:
        return consistent(net, teacher, "ect")

    def sampling(self) -> Sampling:
        return Sampling("consistency", "polynomial", "sigma_min", solvers=("consistency_search",), any_level=True)
