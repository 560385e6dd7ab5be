"""Guided distillation: the guidance weight as an input of one network, then progressive distillation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fewstep.cond import Cond
from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import make_grid
from fewstep.guidance import guide
from fewstep.noise import Rng, noised
from fewstep.plugins import register
from methods.distill.pd import check_halving, halvings, one_step_target
from methods.distiller import Sampling, check_weights, per_sample
from methods.losses.weights import weighted_distance
from methods.start import like_teacher, refuse_guided, student_net
from methods.training import Ema, Loss, Optim, Phase, State

SAMPLERS = ("euler", "nstep_stochastic")
LEVELS = 1000  # of stage one, in the place of continuous ones


@register("distiller", "gd", "arXiv 2210.03142 (algorithms 1 and 2)")
@register("distiller", "gd_stochastic", "arXiv 2210.03142 (algorithms 1 and 3)", sampler="nstep_stochastic")
@dataclass(frozen=True)
class GuidedDistillation:
    """Guided distillation: one network that reads the guidance weight w, then fewer and fewer steps.

    Stage one, `guided`: D(x, sigma, c, w) = D_u + (1 + w) (D_c - D_u) of the teacher in one pass, levels evenly spaced on `grid`, w uniform
    in [`w_min`, `w_max`]; it serves more than `start` steps. Stage two halves its steps as `pd` does, teacher and student at the same w.
    `sampler` is what the students are for: by the other they would be sampled over intervals that they were not trained for. Those for
    euler jump over one interval of their grid. Those for nstep_stochastic jump over two, learnt from two jumps of their teacher; the last
    interval is two of their teacher's, so its own jump is the target there. In the first phase, both are two Euler steps of `guided`. The
    2-step student's jump from the top ends at 0, so it is the 1-step student as well. Labels are not dropped: guidance is inside.
    **Source**: arXiv 2210.03142, algorithms 1 to 3 (w in [0, 4]). Levels, batches, lr, clipping and EMA are ours; its algorithm 3 has two
    half steps on the last interval in every phase, for which a teacher that jumps over two intervals was not trained.
    """

    loss: str = "l2+truncated_snr"
    start: int = 8
    grid: str = "polynomial"
    w_min: float = 0.0
    w_max: float = 4.0
    sampler: str = "euler"
    guided: int = 3
    last: int = 1
    batches: int = 150
    batch_size: int = 128
    lr: float = 5e-4
    ema: float = 0.98
    version: int = 1

    def __post_init__(self) -> None:
        check_halving("gd", self.start, self.grid, self.loss)
        check_weights("gd", self.w_min, self.w_max)
        if self.sampler not in SAMPLERS:
            raise UsageError(f"gd trains for the sampler {' or '.join(SAMPLERS)}, got '{self.sampler}'")
        if self.guided < 1 or self.last < 1:
            raise UsageError(f"gd's `guided` and `last` phases are at least 1 times as long, got {self.guided} and {self.last}")

    @property
    def _stochastic(self) -> bool:
        return self.sampler == "nstep_stochastic"

    def network(self, teacher: Denoiser) -> nn.Module:
        refuse_guided(teacher, "gd")
        return student_net(teacher, "gd", ("w",))

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {name: self.network(teacher) for name in ("student", "teacher")}

    def phases(self) -> Sequence[Phase]:
        emas, copied = {"ema": Ema("student", self.ema)}, {"student": "ema", "teacher": "ema"}
        guided, halved = ({"student": Optim("adam", self.lr, anneal_from=start)} for start in (0.5, 0.0))
        steps = [n for n in halvings(self.start) if not (self._stochastic and n == 1 < self.start)]
        return [
            Phase("guided", self.batches * self.guided, self.batch_size, guided, emas, {}, "ema", drops=False),
            *(
                Phase(str(n), self.batches * (self.last if n <= 2 else 1), self.batch_size, halved, emas, copied, "ema", n, drops=False)
                for n in steps
            ),
        ]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        count, stage = len(batch.x0), self._halved if state.phase.steps else self._guided
        w = self.w_min + (self.w_max - self.w_min) * rng.uniform((count,))
        cond = replace(batch.cond, scalars={**batch.cond.scalars, "w": w})
        x, sigma, target = stage(state, batch.x0, cond, rng)
        d = self.student(state.nets["student"], state.teacher)(x, sigma, cond)
        yield Loss(weighted_distance("gd", self.loss)(d, target, sigma).mean(), "student")

    def _guided(self, state: State, x0: Tensor, cond: Cond, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        """x, sigma and the guided teacher's D, at any level."""
        levels = make_grid(self.grid, LEVELS - 1, self.sampling().range_in(state.teacher.sigma_range)).sigmas
        sigma = torch.tensor(levels[rng.integers(LEVELS, (len(x0),)).cpu().numpy()])
        x = noised(x0, rng.normal(x0.shape), sigma)
        with torch.no_grad():
            return x, sigma, guide(state.teacher, 1 + cond.scalars["w"])(x, sigma, cond)

    def _halved(self, state: State, x0: Tensor, cond: Cond, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        """x, sigma and what makes one jump of two of the teacher's, from a node of the phase's grid."""
        steps, teacher = state.phase.steps, self.student(state.nets["teacher"], state.teacher)
        levels = make_grid(self.grid, 2 * steps, self.sampling().range_in(state.teacher.sigma_range), "zero_last").sigmas
        i = 2 * rng.integers(steps, (len(x0),))
        lowest = i == 2 * steps - 2
        width = torch.where(lowest, 1, 2) if self._stochastic else 1
        grid = per_sample(levels, torch.stack([i, i + width, i + 2 * width]))
        sigma = torch.tensor(grid.sigmas[0])
        x = noised(x0, rng.normal(x0.shape), sigma)
        target = one_step_target(teacher, grid, x, cond)
        if self._stochastic and steps < self.start:
            with torch.no_grad():
                own = teacher(x, sigma, cond)
            target = torch.where(lowest.view(-1, *[1] * (x.ndim - 1)), own, target)
        return x, sigma, target

    def phase_for(self, steps: int) -> str:
        found = {p.steps: p.name for p in self.phases()}
        if steps > self.start:
            return found[0]
        if self._stochastic and steps == 1 < self.start:
            return found[2]
        if steps < 1 or steps not in found:
            known = ", ".join(str(n) for n in halvings(self.start))
            raise Unreachable(f"gd has students for {known} and more than {self.start} steps, not {steps}; try one of those or raise start")
        return found[steps]

    def student(self, net: nn.Module, teacher: Denoiser) -> Preconditioned:
        return like_teacher(net, teacher, "gd")

    def sampling(self) -> Sampling:
        return Sampling(self.sampler, self.grid, "zero_last", w=(self.w_min, self.w_max))
