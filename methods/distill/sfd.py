"""Simple and fast distillation: a student learns the trajectory that its teacher's solver takes, interval after interval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.cond import Cond
from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import make_grid
from fewstep.noise import Rng
from fewstep.plugins import register
from fewstep.sampling.plan import Plan, afs_coefficient, jump
from fewstep.sampling.runner import run
from fewstep.schedule import Array
from fewstep.wrappers import WithScalars
from methods.distiller import Sampling
from methods.losses.distances import distance
from methods.solver import ode_solver
from methods.start import like_teacher, student_net
from methods.training import Loss, Optim, Phase, State


def check_trajectory(name: str, steps: int, afs: bool, substeps: int, sigma_min: float) -> None:
    """**Raises**: UsageError for a grid of the student that leaves nothing to learn, or a teacher's that is not inside its range."""
    if steps < 1 + afs:
        why = "with afs=true the first is analytical" if afs else "there is nothing else to learn"
        raise UsageError(f"{name} needs at least {1 + afs} step(s), since {why}; got {steps}")
    if substeps < 1:
        raise UsageError(f"{name}'s teacher takes at least one step in each of the student's, got substeps={substeps}; use e.g. 4")
    if not 0 <= sigma_min < math.inf:
        raise UsageError(f"{name}'s grid ends at a level >= 0, got sigma_min={sigma_min:g}; use 0 for the teacher's own or e.g. 0.006")


def adam(lr: float, released: bool) -> dict[str, Optim]:
    """Adam without clipping; its lr falls linearly to 0 from half-way on, that of the released code there to a tenth."""
    return {"student": Optim("adam", lr, anneal_from=0.5, drop=released, clip=math.inf)}


def sampled_by_euler(afs: bool, sigma_min: float, tells_steps: bool = False) -> Sampling:
    """Euler on the polynomial grid that ends at sigma_min; the image is the state there."""
    return Sampling("euler", "polynomial", "sigma_min", afs=afs, tells_steps=tells_steps, sigma_min=sigma_min)


def start(sigma_max: float, batch: Batch, rng: Rng) -> tuple[Tensor, Cond]:
    """x = sigma_max n, for as many samples as the batch has, and their conditions: all that is used of the data."""
    return rng.normal(batch.x0.shape).to(batch.x0) * sigma_max, batch.cond


def analytical(x: Tensor, sigma: float, sigma_to: float) -> Tensor:
    """The analytical first step, as `fewstep.sampling.plan.with_afs` makes it of an Euler step."""
    ratio = sigma_to / sigma
    return float(ratio + (1 - ratio) * afs_coefficient(sigma)) * x


@torch.no_grad()
def teach(plan: Plan, teacher: Denoiser, x: Tensor, cond: Cond, every: int) -> list[Tensor]:
    """Every so many states of one run of the teacher's plan, the initial one first: its history goes on across the student's nodes."""
    nodes = plan.states[::every]
    kept = run(plan, teacher, x, cond=cond, keep=nodes)
    return [kept[node] for node in nodes]


def follow(student: Denoiser, x: Tensor, cond: Cond, levels: Array, targets: Sequence[Tensor], afs: bool, loss: str) -> Iterator[Loss]:
    """One loss for each Euler step of the student to the teacher's state there, from where its own last step led, detached.

    That state was computed before the optimiser's step on its loss, as in the released code. With `afs` the first step is the
    analytical one, which has no loss. **Source**: arXiv 2409.19681, algorithm 2.
    """
    if afs:
        x = analytical(x, levels[0], levels[1])
    for i in range(int(afs), len(levels) - 1):
        x_to = jump(student, x, float(levels[i]), float(levels[i + 1]), cond)
        yield Loss(distance(loss)(x_to, targets[i + 1]).mean(), "student")
        x = x_to.detach()


@register("distiller", "sfd", "arXiv 2409.19681 (algorithm 2)")
@dataclass(frozen=True)
class SimpleFastDistillation:
    """Simple and fast distillation (SFD): without data, along the student's own trajectory.

    min d(x_(i+1), x~_(i+1)) for i = 0, 1, ...: x_(i+1) is the student's Euler step from its own x_i, x~ the teacher's trajectory from the
    same x_0 = sigma_max n, all of it one run of `teacher_solver` on the grid of `substeps` times as many intervals (K; of a solver with
    two evaluations a step K are 2 K evaluations an interval). One optimiser step per interval. `steps` counts the analytical one: with
    `afs` the NFE is steps - 1. `sigma_min` is where both grids end (t_min), unless the teacher's own is higher.
    **Source**: arXiv 2409.19681, algorithm 2, and its code: 200,000 trajectories, batches of 128, lr 5e-5, L1 summed over pixels (ours a
    mean, which is the same to Adam up to its eps), no EMA. Ours differs in `adam`'s schedule and in a student without dropout, both
    as in the code with `released`; in the data's labels (theirs uniform); in gradients that are not finite (an error; theirs become 0 or
    1e5); and in `condition_dropout`: the paper trains with labels only, our recipe keeps the branch that guidance needs.
    """

    loss: str = "l1"
    steps: int = 3
    teacher_solver: str = "dpmpp_3m"
    substeps: int = 4
    sigma_min: float = 0.006
    afs: bool = True
    batches: int = 150
    batch_size: int = 128
    lr: float = 5e-4
    released: bool = False
    version: int = 2

    def __post_init__(self) -> None:
        distance(self.loss)
        ode_solver(self.teacher_solver, "sfd")
        check_trajectory("sfd", self.steps, self.afs, self.substeps, self.sigma_min)

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {"student": student_net(teacher, "sfd", dropout=self.released)}

    def phases(self) -> Sequence[Phase]:
        return [Phase("sfd", self.batches, self.batch_size, adam(self.lr, self.released))]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        teacher, every = state.teacher, self.substeps
        grid = make_grid("polynomial", every * self.steps, self.sampling().range_in(teacher.sigma_range))
        x, cond = start(grid.sigmas[0], batch, rng)
        targets = teach(ode_solver(self.teacher_solver, "sfd").plan(grid), teacher, x, cond, every)
        student = self.student(state.nets["student"], teacher)
        yield from follow(student, x, cond, grid.sigmas[::every], targets, self.afs, self.loss)

    def phase_for(self, steps: int) -> str:
        if steps != self.steps:
            raise Unreachable(f"sfd is trained for one number of steps, here {self.steps}, not {steps}; set steps={steps} or use sfd_v")
        return "sfd"

    def student(self, net: nn.Module, teacher: Denoiser) -> Preconditioned:
        return like_teacher(net, teacher, "sfd")

    def sampling(self) -> Sampling:
        return sampled_by_euler(self.afs, self.sigma_min)


@register("distiller", "sfd_v", "arXiv 2409.19681 (SFD-v)")
@dataclass(frozen=True)
class SimpleFastDistillationVariable:
    """SFD-v: `SimpleFastDistillation` of one student for every number of steps from `fewest` to `most`, which it is told.

    Each batch trains one number, which the network reads as the scalar `steps`. The batches take them in turn (the paper draws one), so
    that all microbatches of a batch have as many losses. **Source**: arXiv 2409.19681, and its code: 4 to 7 nodes (3 to 6 steps, NFE 2 to
    5), 800,000 trajectories, told the number of nodes (ours of steps, one less) by new layers in every block that start at random (ours by
    one adapter, which starts without effect). The rest as `sfd`.
    """

    loss: str = "l1"
    fewest: int = 2
    most: int = 6
    teacher_solver: str = "dpmpp_3m"
    substeps: int = 4
    sigma_min: float = 0.006
    afs: bool = True
    batches: int = 200
    batch_size: int = 128
    lr: float = 5e-4
    released: bool = False
    version: int = 2

    def __post_init__(self) -> None:
        distance(self.loss)
        ode_solver(self.teacher_solver, "sfd_v")
        check_trajectory("sfd_v", self.fewest, self.afs, self.substeps, self.sigma_min)
        if self.most < self.fewest:
            raise UsageError(f"sfd_v is trained for fewest to most steps, got {self.fewest} to {self.most}; raise most or lower fewest")

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {"student": student_net(teacher, "sfd_v", ("steps",), dropout=self.released)}

    def phases(self) -> Sequence[Phase]:
        return [Phase("sfd_v", self.batches, self.batch_size, adam(self.lr, self.released))]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        teacher, every = state.teacher, self.substeps
        steps = self.fewest + state.batch % (self.most - self.fewest + 1)
        grid = make_grid("polynomial", every * steps, self.sampling().range_in(teacher.sigma_range))
        x, cond = start(grid.sigmas[0], batch, rng)
        targets = teach(ode_solver(self.teacher_solver, "sfd_v").plan(grid), teacher, x, cond, every)
        student = WithScalars(self.student(state.nets["student"], teacher), {"steps": float(steps)})
        yield from follow(student, x, cond, grid.sigmas[::every], targets, self.afs, self.loss)

    def phase_for(self, steps: int) -> str:
        if not self.fewest <= steps <= self.most:
            raise Unreachable(
                f"sfd_v has a student for {self.fewest} to {self.most} steps, not {steps}; use one of those or change the range"
            )
        return "sfd_v"

    def student(self, net: nn.Module, teacher: Denoiser) -> Preconditioned:
        return like_teacher(net, teacher, "sfd_v")

    def sampling(self) -> Sampling:
        return sampled_by_euler(self.afs, self.sigma_min, tells_steps=True)
