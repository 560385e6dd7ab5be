"""Progressive distillation, in the form and on the grid of its teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.cond import Cond
from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import TimeGrid, make_grid
from fewstep.noise import Rng, noised
from fewstep.plugins import get, register
from fewstep.sampling.runner import end_of
from methods.distiller import Sampling, per_sample
from methods.losses.weights import weighted_distance
from methods.start import like_teacher, student_net
from methods.training import Ema, Loss, Optim, Phase, State, later


def halvings(start: int) -> list[int]:
    """start, start / 2, ..., 1."""
    return [start >> k for k in range(start.bit_length())]


def check_halving(name: str, start: int, grid: str, loss: str) -> None:
    """**Raises**: UsageError for a number of steps that does not halve to 1, and for an unknown grid or loss."""
    if start < 1 or start & (start - 1):
        raise UsageError(f"{name} halves its steps to 1, so start must be a power of two, got {start}; use 4, 8 or 16")
    make_grid(grid, 1, (0.002, 80.0))
    weighted_distance(name, loss)


def one_step_target(teacher: Denoiser, grid: TimeGrid, x: Tensor, cond: Cond) -> Tensor:
    """The D that makes one Euler step over the whole grid [nodes, B] what the teacher's Euler steps through all of its nodes are.

    (x_to - r x) / (1 - r), r = sigma_to / sigma; no gradients are recorded. **Source**: arXiv 2202.00512, algorithm 2.
    """
    with torch.no_grad():
        plan = get("solver", "euler").make().plan(grid)
        x_to = end_of(plan, teacher, x, cond=cond)
        ratio = torch.tensor(grid.sigmas[-1] / grid.sigmas[0]).to(x).view(-1, *[1] * (x.ndim - 1))
        return (x_to - ratio * x) / (1 - ratio)


@register("distiller", "pd", "arXiv 2202.00512 (algorithm 2)")
@dataclass(frozen=True)
class ProgressiveDistillation:
    """Progressive distillation: the steps halve phase by phase.

    D_student(x, sigma) matches the D that makes one Euler step of the student two of its teacher's.

    With sigma'' two nodes on and r = sigma'' / sigma the target is (x'' - r x) / (1 - r); on the last step (sigma'' = 0) that is the
    teacher's second prediction itself. Each phase starts from, and is taught by, the one before; the first teacher takes 2 `start`
    steps. `loss` is distance+weight: l2+truncated_snr, l2+snr_plus_1, l2+snr, l2+uniform (the weights are for squared errors).
    `grid` is that of the teacher's schedule: polynomial for EDM's, cosine for teachers trained on it (evenly spaced native time, from zero
    SNR at sigma = e^10). The last student takes `until` steps; the phases of 2 and 1 steps last `last` times as long.
    **Source**: arXiv 2202.00512, algorithm 2 (there 50000 batches of 128, lr 5e-5, `start` 4096, `last` 2, but 1 in its released code);
    on EDM teachers as 2303.01469's authors re-implemented it.
    Ours differ in an EMA as student and next teacher (theirs the last weights), in dropped labels, and from the latter in ending at 0
    (theirs at 0.002). Clipping to norm 1 and an lr that falls to 0 over each phase are as there.
    """

    loss: str = "l2+truncated_snr"
    start: int = 8
    grid: str = "polynomial"
    last: int = 1
    batches: int = 250
    batch_size: int = 128
    lr: float = 5e-4
    ema: float = 0.98
    until: int = later(1)
    version: int = 3

    def __post_init__(self) -> None:
        if self.until < 1 or self.until > self.start:
            raise UsageError(f"pd halves from start={self.start} steps until there are 1 or more, got until={self.until}; use until=1")
        check_halving("pd", self.start, self.grid, self.loss)
        if self.last < 1:
            raise UsageError(f"pd trains its last two phases `last` times as long, got {self.last}; use 1 or 2")

    def network(self, teacher: Denoiser) -> nn.Module:
        return student_net(teacher, "pd")

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {name: self.network(teacher) for name in ("student", "teacher")}

    def phases(self) -> Sequence[Phase]:
        optims, emas = {"student": Optim("adam", self.lr, anneal_from=0.0)}, {"ema": Ema("student", self.ema)}
        copied = {"student": "ema", "teacher": "ema"}
        return [
            Phase(
                str(n),
                self.batches * (self.last if n <= 2 else 1),
                self.batch_size,
                optims,
                emas,
                copied if n < self.start else {},
                "ema",
                n,
            )
            for n in halvings(self.start)
            if n >= self.until
        ]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        steps, count = state.phase.steps, len(batch.x0)
        sigma_range = self.sampling().range_in(state.teacher.sigma_range)
        i = 2 * rng.integers(steps, (count,))
        levels = make_grid(self.grid, 2 * steps, sigma_range, "zero_last").sigmas
        grid = per_sample(levels, torch.stack([i, i + 1, i + 2]))
        sigma = torch.tensor(grid.sigmas[0])
        x = noised(batch.x0, rng.normal(batch.x0.shape), sigma)
        taught = state.teacher if steps == self.start else self.student(state.nets["teacher"], state.teacher)
        target = one_step_target(taught, grid, x, batch.cond)
        d = self.student(state.nets["student"], state.teacher)(x, sigma, batch.cond)
        yield Loss(weighted_distance("pd", self.loss)(d, target, sigma).mean(), "student")

    def phase_for(self, steps: int) -> str:
        found = {p.steps: p.name for p in self.phases()}
        if steps not in found:
            raise Unreachable(f"pd has students for {', '.join(map(str, found))} steps, not {steps}; try one of those or raise start")
        return found[steps]

    def student(self, net: nn.Module, teacher: Denoiser) -> Preconditioned:
        return like_teacher(net, teacher, "pd")

    def sampling(self) -> Sampling:
        return Sampling("euler", self.grid, "zero_last")
