"""Vanilla trajectory distillation: each of the student's steps learned by itself, from noised data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import Unreachable
from fewstep.grid import make_grid
from fewstep.noise import Rng, noised
from fewstep.plugins import register
from fewstep.sampling.plan import jump
from fewstep.sampling.runner import end_of
from methods.distill.sfd import adam, check_trajectory, sampled_by_euler
from methods.distiller import Sampling, per_sample
from methods.losses.distances import distance
from methods.solver import ode_solver
from methods.start import like_teacher, student_net
from methods.training import Loss, Phase, State


@register("distiller", "trajectory", "arXiv 2409.19681 (algorithm 1)")
@dataclass(frozen=True)
class TrajectoryDistillation:
    """Vanilla trajectory distillation: what `sfd` is compared with.

    min E d(x_(i+1), x~_(i+1)) over the intervals i of a grid: x_(i+1) is one Euler step of the student and x~_(i+1) are `substeps` steps of
    `teacher_solver` (a multistep one starts anew), both from the same x_i = x0 + sigma_i n, noised data. With `afs` the student's first
    step is analytical, and its interval is never drawn. Fields and defaults are `sfd`'s but for `batches`: there each has an update
    for every interval that is learned, here one for an interval drawn, so as many updates are `batches` of `sfd` times those intervals;
    the paper's rows (table 1) are teacher_solver heun or dpm_2s, sigma_min 0 (the teacher's .002), afs false and loss l2, with K not given.
    **Source**: arXiv 2409.19681, algorithm 1 (not in the released code). The optimiser and `released` are `sfd`'s.
    """

    loss: str = "l1"
    steps: int = 3
    teacher_solver: str = "dpmpp_3m"
    substeps: int = 4
    sigma_min: float = 0.006
    afs: bool = True
    batches: int = 400
    batch_size: int = 128
    lr: float = 5e-4
    released: bool = False
    version: int = 2

    def __post_init__(self) -> None:
        distance(self.loss)
        ode_solver(self.teacher_solver, "trajectory")
        check_trajectory("trajectory", self.steps, self.afs, self.substeps, self.sigma_min)

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {"student": student_net(teacher, "trajectory", dropout=self.released)}

    def phases(self) -> Sequence[Phase]:
        return [Phase("trajectory", self.batches, self.batch_size, adam(self.lr, self.released))]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        teacher, count, every = state.teacher, len(batch.x0), self.substeps
        levels = make_grid("polynomial", every * self.steps, self.sampling().range_in(teacher.sigma_range)).sigmas
        i = self.afs + rng.integers(self.steps - self.afs, (count,))
        grid = per_sample(levels, torch.stack([every * i + k for k in range(every + 1)]))
        sigma, sigma_to = (torch.tensor(grid.sigmas[node]) for node in (0, -1))
        x = noised(batch.x0, rng.normal(batch.x0.shape), sigma)
        with torch.no_grad():
            plan = ode_solver(self.teacher_solver, "trajectory").plan(grid)
            target = end_of(plan, teacher, x, cond=batch.cond)
        x_to = jump(self.student(state.nets["student"], teacher), x, sigma, sigma_to, batch.cond)
        yield Loss(distance(self.loss)(x_to, target).mean(), "student")

    def phase_for(self, steps: int) -> str:
        if steps != self.steps:
            raise Unreachable(f"trajectory is trained for one number of steps, here {self.steps}, not {steps}; set steps={steps}")
        return "trajectory"

    def student(self, net: nn.Module, teacher: Denoiser) -> Preconditioned:
        return like_teacher(net, teacher, "trajectory")

    def sampling(self) -> Sampling:
        return sampled_by_euler(self.afs, self.sigma_min)
