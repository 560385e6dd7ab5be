"""Training a denoiser on the cosine schedule, whatever its network predicts: the teachers of progressive distillation."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser
from fewstep.noise import Rng, noised
from fewstep.plugins import register
from methods.losses.distances import l2
from methods.losses.weights import weight
from methods.start import start_of
from methods.training import Ema, Loss, Optim, Phase, State


@register("pretrain", "vp", "arXiv 2202.00512 (section 4)")
@dataclass(frozen=True)
class CosineFit:
    """A denoiser fitted to data at levels uniform in the native time of the cosine schedule.

    min E weight(sigma) |D(x0 + sigma n, sigma) - x0|^2, sigma = tan(A t + b), t ~ U[0, 1], the ends those of the model's range.

    `loss` names the weight of the squared error on x0: snr (1 / sigma^2, which is the error of eps), truncated_snr (per sample the larger
    of the errors of x0 and of eps, max(1, 1 / sigma^2)), snr_plus_1 (the error of v) or uniform. A network of form eps needs snr: with the
    others its error counts sigma^2 times at high noise, and diverges. **Source**: arXiv 2202.00512, section 4 and table 1; the batches,
    lr and ema there are 2e-4 and 0.9999 over days.
    """

    loss: str = "truncated_snr"
    batches: int = 4000
    batch_size: int = 128
    lr: float = 2e-3
    ema: float = 0.999
    version: int = 2

    def __post_init__(self) -> None:
        weight(self.loss)

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {"student": copy.deepcopy(start_of(teacher, "vp").net)}

    def phases(self) -> Sequence[Phase]:
        optim = Optim("adam", self.lr, warmup=min(200, self.batches // 10), anneal_from=0.5)
        return [Phase("vp", self.batches, self.batch_size, {"student": optim}, {"ema": Ema("student", self.ema)}, export="ema")]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        start, count = start_of(state.teacher, "vp"), len(batch.x0)
        lowest, highest = (math.atan(s) for s in start.sigma_range)
        sigma = torch.tan(lowest + (highest - lowest) * rng.uniform((count,)).double())
        x = noised(batch.x0, rng.normal(batch.x0.shape), sigma)
        d = replace(start, net=state.nets["student"])(x, sigma, batch.cond)
        yield Loss((weight(self.loss)(sigma).to(d) * l2(d, batch.x0)).mean(), "student")
