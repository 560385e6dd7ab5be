"""Latent consistency distillation: a student that reads the guidance weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import UsageError
from fewstep.grid import LCM_TIMES, make_grid
from fewstep.guidance import guide
from fewstep.nets.adapters import GuidanceAdapter
from fewstep.nets.unet import ScalarAdapter
from fewstep.noise import Rng, noised
from fewstep.plugins import get, register
from fewstep.precond import TimestepPrecond
from fewstep.sampling.runner import end_of
from fewstep.schedule import VP
from methods.distiller import Sampling, check_weights, consistent, per_sample
from methods.losses.distances import distance
from methods.start import refuse_guided, start_of, student_net
from methods.training import Ema, Loss, Phase, State, later, settle, tuned


@register("distiller", "lcm", "arXiv 2310.04378 (algorithm 1)")
@dataclass(frozen=True)
class LatentConsistencyDistillation:
    """Consistency distillation of the guided teacher, with the guidance weight w as an input.

    min E d(f(x, sigma_i, w), sg f_target(x', sigma_j, w)), x' one DDIM step of D_c + w (D_c - D_u) over `skip` intervals of a polynomial
    grid of `nodes`, j = min(i + skip, last), w uniform in [w_min, w_max]; the target is an EMA (`mu`). Labels are never dropped: nobody
    guides this student from outside. **Source**: arXiv 2310.04378, algorithm 1; released training code (huber, target EMA 0.95, AdamW
    without weight decay, which is Adam). Ours: EDM levels instead of 50 of 1000 steps with skip 20, in sampling too; the boundary
    f(x, sigma_min) = x of `consistent` instead of c_skip = sd^2 / ((10 t)^2 + sd^2); w through Fourier features and layers that start at
    zero; an lr that falls (`anneal_from`); w in [0, 4] as for pixel models (published: 2 to 14; the released script: 5 to 15); an EMA is
    sampled. With `released` the first four are as in the code: the `lcm` grid (`nodes` is 51 and `skip` 1 then),
    `TimestepPrecond`, `GuidanceAdapter`, and an lr that is constant after 500 batches' warm-up (or a tenth of all, if that is less).
    """

    loss: str = "huber"
    nodes: int = 80
    skip: int = 4
    w_min: float = 0.0
    w_max: float = 4.0
    mu: float = 0.95
    released: bool = False
    batches: int = 1000
    batch_size: int = 128
    lr: float = 5e-4
    ema: float = 0.99
    clip: float = later(1.0)
    anneal_from: float = later(0.5)
    version: int = 1

    def __post_init__(self) -> None:
        distance(self.loss)
        settle(self, "lcm", {"nodes": LCM_TIMES + 1, "skip": 1, "anneal_from": 1.0, "version": 2})  # clipped to norm 1 there too
        if not 1 <= self.skip < self.nodes:
            raise UsageError(f"lcm skips 1 to nodes - 1 intervals, got skip={self.skip} of nodes={self.nodes}; use e.g. skip=4 nodes=80")
        check_weights("lcm", self.w_min, self.w_max)

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        refuse_guided(teacher, "lcm")
        return {"student": student_net(teacher, "lcm", ("w",), GuidanceAdapter if self.released else ScalarAdapter)}

    def phases(self) -> Sequence[Phase]:
        optim = tuned(self, "adam", self.lr, warmup=min(500, self.batches // 10) if self.released else 0)
        emas = {"target": Ema("student", self.mu, ramp=False), "ema": Ema("student", self.ema)}
        return [Phase("lcm", self.batches, self.batch_size, {"student": optim}, emas, export="ema", drops=False)]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        teacher, count, own = state.teacher, len(batch.x0), self.sampling()
        last = self.nodes - 1
        levels = make_grid(own.grid, last, own.range_in(teacher.sigma_range)).sigmas
        i = rng.integers(last, (count,))
        grid = per_sample(levels, torch.stack([i, (i + self.skip).clamp(max=last)]))
        w = self.w_min + (self.w_max - self.w_min) * rng.uniform((count,))
        cond = replace(batch.cond, scalars={**batch.cond.scalars, "w": w})
        sigma, sigma_to = (torch.tensor(s) for s in grid.sigmas)
        x = noised(batch.x0, rng.normal(batch.x0.shape), sigma)
        with torch.no_grad():
            step = get("solver", "euler").make().plan(grid)
            x_to = end_of(step, guide(teacher, 1 + w), x, cond=batch.cond)
            target = self.student(state.emas["target"], teacher)(x_to, sigma_to, cond)
        value = distance(self.loss)(self.student(state.nets["student"], teacher)(x, sigma, cond), target)
        yield Loss(value.mean(), "student")

    def phase_for(self, steps: int) -> str:
        return "lcm"

    def student(self, net: nn.Module, teacher: Denoiser) -> Preconditioned:
        if not self.released:
            return consistent(net, teacher, "lcm")
        own = start_of(teacher, "lcm")
        schedule = VP.fitted(*self.sampling().range_in(own.sigma_range))
        return replace(own, net=net, precond=TimestepPrecond(own.precond, schedule))

    def sampling(self) -> Sampling:
        w, grid = (self.w_min, self.w_max), "lcm" if self.released else "polynomial"
        return Sampling("consistency", grid, "sigma_min", solvers=("consistency_search",), w=w, any_level=True)
