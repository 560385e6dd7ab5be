"""Consistency distillation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import UsageError
from fewstep.grid import make_grid
from fewstep.noise import Rng, noised
from fewstep.plugins import get, register
from fewstep.sampling.runner import end_of
from methods.distiller import Sampling, bounded, consistent, per_sample
from methods.losses.distances import distance
from methods.solver import ode_solver
from methods.start import student_net
from methods.training import NEITHER, Ema, Loss, Phase, State, later, settle, tuned


@register("distiller", "cd", "arXiv 2303.01469 (algorithm 2)")
@dataclass(frozen=True)
class ConsistencyDistillation:
    """Consistency distillation.

    min E d(f(x_i, sigma_i), sg f_target(x_(i+1), sigma_(i+1))), x_(i+1) one teacher step from x_i = x0 + sigma_i n.

    i is uniform over the `nodes` - 1 intervals of the polynomial grid, f has the boundary f(x, sigma_min) = x, the target is an EMA of
    the student (`mu`), and another EMA is sampled. Labels are dropped as in the teacher's training, so guidance stays possible.
    **Source**: arXiv 2303.01469, algorithm 2 and appendix C, and its released code: mu is 0.95 in that of ImageNet and LSUN, and 0 in that
    of CIFAR-10, whose target is the student itself, detached. `clip` and `anneal_from` are ours; `released` has neither.
    """

    loss: str = "l2"
    teacher_solver: str = "heun"
    nodes: int = 18
    mu: float = 0.95
    batches: int = 1000
    batch_size: int = 128
    lr: float = 5e-4
    ema: float = 0.99
    clip: float = later(1.0)
    anneal_from: float = later(0.5)
    released: bool = later(False)
    version: int = 2

    def __post_init__(self) -> None:
        settle(self, "cd", NEITHER)
        distance(self.loss)
        ode_solver(self.teacher_solver, "cd")
        if self.nodes < 2:
            raise UsageError(f"cd needs the two ends of an interval, got nodes={self.nodes}; use nodes >= 2, e.g. 18")

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {"student": student_net(teacher, "cd")}

    def phases(self) -> Sequence[Phase]:
        optim = tuned(self, "radam", self.lr)
        emas = {"target": Ema("student", self.mu, ramp=False), "ema": Ema("student", self.ema)}
        return [Phase("cd", self.batches, self.batch_size, {"student": optim}, emas, export="ema")]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        teacher, count = state.teacher, len(batch.x0)
        levels = make_grid("polynomial", self.nodes - 1, bounded(teacher.sigma_range)).sigmas
        i = rng.integers(self.nodes - 1, (count,))
        grid = per_sample(levels, torch.stack([i, i + 1]))
        sigma, sigma_to = (torch.tensor(s) for s in grid.sigmas)
        x = noised(batch.x0, rng.normal(batch.x0.shape), sigma)
        with torch.no_grad():
            step = get("solver", self.teacher_solver).make().plan(grid)
            x_to = end_of(step, teacher, x, cond=batch.cond)
            target = self.student(state.emas["target"], teacher)(x_to, sigma_to, batch.cond)
        value = distance(self.loss)(self.student(state.nets["student"], teacher)(x, sigma, batch.cond), target)
        yield Loss(value.mean(), "student")

    def phase_for(self, steps: int) -> str:
        return "cd"

    def student(self, net: nn.Module, teacher: Denoiser) -> Preconditioned:
        return consistent(net, teacher, "cd")

    def sampling(self) -> Sampling:
        return Sampling("consistency", "polynomial", "sigma_min", solvers=("consistency_search",), any_level=True)
