"""Improved consistency training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import UsageError
from fewstep.grid import make_grid
from fewstep.noise import Rng
from fewstep.plugins import register
from fewstep.schedule import Array
from methods.distill.ct import check_init, initial_net, shared_noise_pair
from methods.distiller import Sampling, bounded, consistent
from methods.losses.distances import distance
from methods.training import NEITHER, Loss, Phase, State, later, one_phase, settle, tuned


def doubled(batch: int, batches: int, s0: int, s1: int) -> int:
    """N(k) = min(s0 2^floor(k / K'), s1) + 1 with K' = floor(K / (log2 floor(s1 / s0) + 1)). **Source**: arXiv 2310.14189."""
    every = max(1, math.floor(batches / (math.log2(s1 // s0) + 1)))
    return min(s0 << min(batch // every, s1.bit_length()), s1) + 1


def lognormal_shares(levels: Array, mean: float, std: float) -> Array:
    """Probability of each interval of falling `levels` [N] when ln sigma ~ N(mean, std^2), cut to their range: [N - 1], sum 1.

    **Source**: arXiv 2310.14189, the discretised lognormal. **Raises**: UsageError for one that has nothing in the range.
    """
    below = np.array([math.erf((math.log(sigma) - mean) / (math.sqrt(2) * std)) for sigma in levels])
    if not below[0] > below[-1]:
        outside = f"a lognormal of mean {mean:g} and std {std:g} has nothing between sigma {levels[-1]:g} and {levels[0]:g}"
        raise UsageError(f"{outside}; use e.g. p_mean=-1.1 p_std=2.0")
    return (below[:-1] - below[1:]) / (below[0] - below[-1])


@register("distiller", "ict", "arXiv 2310.14189 (improved consistency training)")
@dataclass(frozen=True)
class ImprovedConsistencyTraining:
    """Consistency training, improved: `doubled` levels, `lognormal_shares`, pseudo-Huber, and no EMA in the target.

    min E d(f(x_i, sigma_i), sg f(x_(i+1), sigma_(i+1))) / (sigma_i - sigma_(i+1)), both x on one image and noise, sigma_i > sigma_(i+1).
    **Source**: arXiv 2310.14189 (s0 10, s1 1280, 400k batches of 1024, RAdam 1e-4, dropout 0.3, from scratch). Ours starts from the
    `teacher` unless told `scratch`, and students have no dropout; s1 is smaller, since each doubling needs batches to settle. `clip` and
    `anneal_from` are ours; `released` has neither, as published: in one pass that is much better (docs/distillation.md). Labels are
    dropped so that guidance stays possible.
    """

    loss: str = "pseudo_huber"
    init: str = "teacher"
    s0: int = 10
    s1: int = 160
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
        settle(self, "ict", NEITHER)
        distance(self.loss)
        check_init(self.init, "ict")
        if not 1 <= self.s0 <= self.s1:
            raise UsageError(f"ict's levels double from s0 >= 1 to s1, got s0={self.s0} and s1={self.s1}; use e.g. s0=10 s1=160")
        if self.p_std <= 0:
            raise UsageError(f"ict's p_std is the standard deviation of ln sigma and above 0, got {self.p_std:g}; use e.g. 2.0")

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {"student": initial_net(teacher, "ict", self.init)}

    def phases(self) -> Sequence[Phase]:
        optim = tuned(self, "radam", self.lr)
        return one_phase("ict", self.batches, self.batch_size, self.ema, {"student": optim})

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        steps = doubled(state.batch, state.phase.batches, self.s0, self.s1) - 1
        levels = make_grid("polynomial", steps, bounded(state.teacher.sigma_range)).sigmas
        reached = torch.tensor(np.cumsum(lognormal_shares(levels, self.p_mean, self.p_std)))
        i = torch.searchsorted(reached, rng.uniform((len(batch.x0),)).cpu().double()).clamp(max=steps - 1)
        sigma, sigma_to = torch.tensor(levels)[i], torch.tensor(levels)[i + 1]
        student = self.student(state.nets["student"], state.teacher)
        f, to = shared_noise_pair(student, student, batch, sigma, sigma_to, rng)
        yield Loss((distance(self.loss)(f, to) / (sigma - sigma_to).to(f)).mean(), "student")

    def phase_for(self, steps: int) -> str:
        return "ict"

    def student(self, net: nn.Module, teacher: Denoiser) -> Preconditioned:
        return consistent(net, teacher, "ict")

    def sampling(self) -> Sampling:
        return Sampling("consistency", "polynomial", "sigma_min", solvers=("consistency_search",), any_level=True)
