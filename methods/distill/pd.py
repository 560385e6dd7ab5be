"""Progressive distillation, in the coordinates and the range of an EDM teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fewstep.data.images import Batch
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import make_grid
from fewstep.noise import Rng, noised
from fewstep.runner import run
from methods.distiller import Ema, Loss, Optim, Phase, Sampling, State, like_teacher, per_sample, student_net
from methods.losses import distance, drop_labels, weight
from methods.registry import get, register


@register("distiller", "pd", "arXiv 2202.00512 (algorithm 2)")
@dataclass(frozen=True)
class ProgressiveDistillation:
    """Progressive distillation: the steps halve phase by phase.

    D_student(x, sigma) matches the D that makes one Euler step of the student two of its teacher's.

    With sigma'' two nodes on and r = sigma'' / sigma the target is (x'' - r x) / (1 - r); on the last step (sigma'' = 0) that is the
    teacher's second prediction itself. Each phase starts from, and is taught by, the one before; the first teacher takes 2 `start`
    steps. `loss` is distance+weight: l2+truncated_snr, l2+snr_plus_1, l2+uniform (the weights are for squared errors).
    **Source**: arXiv 2202.00512, algorithm 2, in EDM coordinates as 2303.01469's authors re-implemented it; ours differ in ending at
    0 (theirs at 0.002), in an EMA as student and next teacher (theirs the last weights), and in phases of equal length.
    """

    loss: str = "l2+truncated_snr"
    start: int = 8
    batches: int = 250
    batch_size: int = 128
    lr: float = 5e-4
    ema: float = 0.98
    label_dropout: float = 0.1
    version: int = 1

    def __post_init__(self) -> None:
        if self.start < 1 or self.start & (self.start - 1):
            raise UsageError(f"pd halves its steps to 1, so start must be a power of two, got {self.start}; use 4, 8 or 16")

        name, plus, by = self.loss.partition("+")
        if not plus:
            raise UsageError(f"pd's loss is distance+weight, got '{self.loss}'; e.g. l2+truncated_snr")
        distance(name)
        weight(by)
        if name != "l2" and by != "uniform":
            raise UsageError(f"the weight {by} is for squared errors, got loss '{self.loss}'; use l2+{by} or {name}+uniform")

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {"student": student_net(teacher, "pd"), "teacher": student_net(teacher, "pd")}

    def phases(self) -> Sequence[Phase]:
        optims, emas = {"student": Optim("adam", self.lr, anneal_from=0.0)}, {"ema": Ema("student", self.ema)}
        halvings = [self.start >> k for k in range(self.start.bit_length())]
        copies = [{}] + [{"student": "ema", "teacher": "ema"}] * (len(halvings) - 1)
        return [Phase(str(n), self.batches, self.batch_size, optims, emas, c, "ema") for n, c in zip(halvings, copies)]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        steps, count = int(state.phase.name), len(batch.x0)
        classes, sigma_range = state.teacher.classes, state.teacher.sigma_range
        i = 2 * rng.integers(steps, (count,))
        levels = make_grid("polynomial", 2 * steps, sigma_range, "zero_last").sigmas
        grid = per_sample(levels, torch.stack([i, i + 1, i + 2]))
        cond = drop_labels(batch.cond, self.label_dropout, classes, rng.uniform((count,)))
        sigma = torch.tensor(grid.sigmas[0])
        ratio = torch.tensor(grid.sigmas[2] / grid.sigmas[0]).to(batch.x0).view(-1, 1, 1, 1)
        x = noised(batch.x0, rng.normal(batch.x0.shape), sigma)
        with torch.no_grad():
            plan = get("solver", "euler").make().plan(grid)
            x_to = run(plan, self.student(state.nets["teacher"], state.teacher), x, cond=cond)[plan.states[-1]]
            target = (x_to - ratio * x) / (1 - ratio)
        d = self.student(state.nets["student"], state.teacher)(x, sigma, cond)
        name, _, by = self.loss.partition("+")
        yield Loss((weight(by)(sigma).to(d) * distance(name)(d, target)).mean(), "student")

    def phase_for(self, steps: int) -> str:
        names = [p.name for p in self.phases()]
        if str(steps) not in names:
            raise Unreachable(f"pd has students for {', '.join(names)} steps, not {steps}; try one of those or raise start")
        return str(steps)

    def student(self, net: nn.Module, teacher: Denoiser) -> Preconditioned:
        return like_teacher(net, teacher, "pd")

    def sampling(self) -> Sampling:
        return Sampling("euler", "polynomial", "zero_last")
