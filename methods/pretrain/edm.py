"""Training a denoiser: on data (the teachers we ship), or on a closed-form teacher (the warm start of its students)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.noise import Rng, noised
from fewstep.plugins import register
from fewstep.precond import EDMPrecond
from methods.levels import lognormal_and_flat
from methods.losses.distances import l2
from methods.start import start_of
from methods.training import Ema, Loss, Optim, Phase, State, later


@register("pretrain", "edm", "arXiv 2206.00364 (table 1, training)", target="data")
@register("pretrain", "warm_start", "arXiv 2206.00364 (table 1, on a closed form's D)", target="teacher")
@dataclass(frozen=True)
class DenoisingFit:
    """A denoiser fitted to data, or to a closed-form teacher.

    min E weight(sigma) |D(x0 + sigma n, sigma) - target|^2, weight = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2.

    target is x0 (`data`) or the closed-form D (`teacher`). log sigma is normal(p_mean, p_std), clamped to the range, except for a
    share `uniform` that is uniform over the whole range: EDM's own choice leaves sigma_max almost untrained, and few-step samplers
    start there. The lr rises over `warmup` batches (at most a tenth of all) and falls to 0 from `anneal_from` on; `clip` 0: no clipping.
    **Source**: arXiv 2206.00364, table 1; all of these defaults are ours (EDM on CIFAR-10: p_mean -1.2, p_std 1.2, uniform 0, warmup
    19,531 of 390,625 batches of 512, no annealing, no clipping, EMA 0.99929).
    """

    target: str = "data"
    batches: int = 6000
    batch_size: int = 128
    lr: float = 2e-3
    ema: float = 0.999
    p_mean: float = -0.6
    p_std: float = 1.3
    uniform: float = 0.25
    warmup: int = later(200)
    anneal_from: float = later(0.5)
    clip: float = later(1.0)
    version: int = 2

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {"student": copy.deepcopy(start_of(teacher, "edm").net)}

    def phases(self) -> Sequence[Phase]:
        rise = min(self.warmup, self.batches // 10)
        optim = Optim("adam", self.lr, rise, self.anneal_from, clip=self.clip or math.inf)
        return [Phase("edm", self.batches, self.batch_size, {"student": optim}, {"ema": Ema("student", self.ema)}, export="ema")]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        start = start_of(state.teacher, "edm")
        precond = start.precond
        if not isinstance(precond, EDMPrecond):
            raise UsageError(f"edm trains networks under EDM preconditioning, got form '{precond.form}'; use another pretrain")
        sigma = lognormal_and_flat(len(batch.x0), start.sigma_range, rng, self.p_mean, self.p_std, self.uniform)
        x = noised(batch.x0, rng.normal(batch.x0.shape), sigma)
        target = batch.x0 if self.target == "data" else state.teacher(x, sigma, batch.cond)
        net = state.nets["student"]
        d = replace(start, net=net)(x, sigma, batch.cond)
        weight = ((sigma**2 + precond.sigma_data**2) / (sigma * precond.sigma_data) ** 2).to(d)
        yield Loss((weight * l2(d, target)).mean(), "student")
