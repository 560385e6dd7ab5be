"""Fine-tuning a copy of the teacher on one interval of a student's grid, and the distillation loss on every interval before and after."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.jobs.fits.fit import Say, ensure_fit, keep, phase_weights
from bench.jobs.models import Model
from bench.store.addresses import digest
from bench.store.artefacts import Store
from bench.training.engine import Engine, Settings
from fewstep.cond import Cond
from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.grid import TimeGrid, make_grid
from fewstep.nets.loading import load_strict
from fewstep.noise import Rng, noised
from fewstep.sampling.draw import SAMPLER_VERSION
from fewstep.sampling.plan import jump
from fewstep.sampling.runner import end_of
from methods.distiller import bounded
from methods.losses.distances import distance
from methods.solver import ode_solver
from methods.start import like_teacher, student_net
from methods.training import Loss, Optim, Phase, State

VERSION = 1  # of how losses are measured
HELDOUT = 1  # the stream of the held-out noise
PHASE = "interval"
USER = "neighbours"


@dataclass(frozen=True)
class OneInterval:
    """Trajectory distillation on interval n of a grid alone: min E d(x_(n+1), x~_(n+1)).

    The grid is the polynomial one of `intervals` intervals (n = 0 at sigma_max) down to sigma_min; x_(n+1) is one Euler step of the
    student, x~_(n+1) are `substeps` steps of the teacher's `solver`, both from x_n = x0 + sigma_n noise. Labels are not dropped.
    **Source**: arXiv 2409.19681, algorithm 1 with n fixed; adam without a schedule, clipping or an average.
    """

    interval: int
    intervals: int
    substeps: int
    solver: str
    loss: str
    batches: int
    batch_size: int
    lr: float
    version: int = 1

    def grid(self, teacher: Denoiser, interval: int) -> TimeGrid:
        """The teacher's levels in one interval."""
        levels = make_grid("polynomial", self.intervals * self.substeps, bounded(teacher.sigma_range)).sigmas
        return TimeGrid(levels[interval * self.substeps : (interval + 1) * self.substeps + 1])

    @torch.no_grad()
    def task(self, teacher: Denoiser, interval: int, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x_n and x~_(n+1) of an interval n."""
        grid = self.grid(teacher, interval)
        x = noised(batch.x0, noise, torch.full((len(noise),), float(grid.sigmas[0]), dtype=torch.float64))
        plan = ode_solver(self.solver, USER).plan(grid)
        return x, end_of(plan, teacher, x, cond=batch.cond)

    def error(self, student: Denoiser, interval: int, x: Tensor, target: Tensor, cond: Cond) -> Tensor:
        """The loss of each sample [B]; the grid's levels are those of the student's own range."""
        levels = self.grid(student, interval).sigmas
        return distance(self.loss)(jump(student, x, float(levels[0]), float(levels[-1]), cond), target)

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {"student": student_net(teacher, USER)}

    def phases(self) -> Sequence[Phase]:
        return [Phase(PHASE, self.batches, self.batch_size, {"student": Optim("adam", self.lr, clip=float("inf"))}, drops=False)]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        x, target = self.task(state.teacher, self.interval, batch, rng.normal(batch.x0.shape))
        student = like_teacher(state.nets["student"], state.teacher, USER)
        yield Loss(self.error(student, self.interval, x, target, batch.cond).mean(), "student")


@dataclass(frozen=True)
class FineTuned:
    """One fine-tuned copy: which interval it was trained on, and with which seed. A fit in the store."""

    method: OneInterval
    seed: int

    @property
    def label(self) -> str:
        return f"interval {self.method.interval + 1} of {self.method.intervals}, seed {self.seed}"

    def key(self, model: Model) -> str:
        """The address: everything that can change the weights."""
        solver = ode_solver(self.method.solver, USER).version
        spec = {"method": "one_interval", "options": vars(self.method), "solver_version": solver, "sampler_version": SAMPLER_VERSION}
        return digest({**spec, "teacher": model.digest, "data": model.source.digest(), "seed": self.seed})

    def ensure(self, model: Model, store: Store, device: str, say: Say) -> dict[str, Any]:
        """The record of the training (see `bench.jobs.fits.fit.ensure_fit`)."""

        def fill(folder: Path, work: Path) -> dict[str, Any]:
            result = Engine(self.method, model.teacher, model.source, work, Settings(self.seed, device, task=model.task)).run()
            return {"label": self.label, "options": vars(self.method), "seed": self.seed, **keep(result, folder)}

        return ensure_fit(store, self.key(model), fill, say)

    def load(self, model: Model, store: Store, device: str) -> Denoiser:
        """The copy as a denoiser."""
        weights = phase_weights(store, self.key(model), PHASE, device)
        net = load_strict(self.method.build(model.teacher)["student"], weights, f"{self.label} weights")
        return like_teacher(net.to(device).eval().requires_grad_(False), model.teacher, USER)


@dataclass(frozen=True, eq=False)
class Exam:
    """Held-out images with noise of their own for each interval, and the teacher's states there: the same for every copy."""

    model: Model
    method: OneInterval  # of any interval
    count: int
    seed: int
    device: str

    def key(self, tuned: FineTuned) -> str:
        """The address of a copy's losses."""
        data = self.model.data
        images = hashlib.sha256(data.heldout_x[: self.count].tobytes() + data.heldout_y[: self.count].tobytes()).hexdigest()
        return digest({"copy": tuned.key(self.model), "images": images, "seed": self.seed, "version": VERSION})

    @cached_property
    def batch(self) -> Batch:
        """The images. **Raises**: UsageError when there are fewer."""
        data = self.model.data
        if self.count > len(data.heldout_x):
            raise UsageError(f"{data.name} has {len(data.heldout_x)} held-out images, got neighbours.heldout={self.count}; use fewer")
        labels = Cond(label=torch.from_numpy(data.heldout_y[: self.count])) if self.model.teacher.classes else Cond()
        return Batch(torch.from_numpy(data.heldout_x[: self.count]), labels).to(self.device)

    @cached_property
    def tasks(self) -> list[tuple[Tensor, Tensor]]:
        """x_n and the teacher's x~_(n+1) of every interval."""
        shape, intervals = self.batch.x0.shape, range(self.method.intervals)
        noises = (Rng((self.seed, HELDOUT, m), self.device).normal(shape) for m in intervals)
        return [self.method.task(self.model.teacher, m, self.batch, noise) for m, noise in zip(intervals, noises)]

    @torch.no_grad()
    def losses(self, student: Denoiser) -> list[float]:
        """The mean loss of a denoiser on every interval."""
        errors = (self.method.error(student, m, *task, self.batch.cond) for m, task in enumerate(self.tasks))
        return [float(error.double().mean()) for error in errors]

    @cached_property
    def before(self) -> list[float]:
        """The teacher's own losses: those of a copy before its training."""
        return self.losses(self.model.teacher)

    def ensure(self, tuned: FineTuned, store: Store, say: Say) -> dict[str, Any]:
        """The record with the losses by interval `before` and `after` the training, from the store or measured now."""

        def fill(folder: Path) -> dict[str, Any]:
            return {"label": tuned.label, "before": self.before, "after": self.losses(tuned.load(self.model, store, self.device))}

        return store.ensure("study", self.key(tuned), fill, say)
