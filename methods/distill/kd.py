"""Knowledge distillation of a deterministic sampler into one step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from fewstep.cond import Cond
from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import Unreachable, UsageError
from fewstep.noise import Rng
from fewstep.plugins import register
from fewstep.precond import DifferencePrecond, Precond
from methods.distiller import Pairs, Sampling, bounded
from methods.losses.distances import distance
from methods.solver import ode_solver
from methods.start import like_teacher, start_of, student_net
from methods.training import Loss, Phase, State, later, one_phase, settle, tuned


def check_pairs(pairs: Pairs, user: str) -> None:
    """**Raises**: UsageError for pairs that no deterministic solver makes, or that are none."""
    ode_solver(pairs.solver, user)
    if pairs.steps < 1 or pairs.count < 1:
        raise UsageError(
            f"{user} needs at least one pair of at least one step, got {pairs.count} of {pairs.steps}; raise count or teacher_steps"
        )


def endpoint(student: Denoiser, batch: Batch, cond: Cond) -> Tensor:
    """What a one-step student makes of the pairs' noise: D(sigma_max n, sigma_max), like batch.x0."""
    if batch.noise is None:
        raise UsageError("a batch of images has no noise that a teacher made them from; train on pairs (TeacherPairs)")
    highest = bounded(student.sigma_range)[1]
    return student(highest * batch.noise, highest, cond)


@register("distiller", "kd", "arXiv 2101.02388")
@dataclass(frozen=True)
class KnowledgeDistillation:
    """Knowledge distillation: min E d(D_student(sigma_max n, sigma_max), F(n)), F the teacher's deterministic sampler, run once before.

    The `count` pairs (n, F(n)) are made in `teacher_steps` steps of `teacher_solver`; `loss` is l1 (released code) or l2 (paper).
    The null label, which guidance from outside needs, learns the median (l2: mean) of the classes' images of one noise.
    The student is D under the teacher's preconditioning, and its targets have full precision. With `released`, as in the published code,
    it is `DifferencePrecond`'s z - F, of teachers that predict eps, the targets are clipped to [-1, 1] and rounded to 8 bits, and the lr
    does not fall. It rises over the first tenth, up to 100 batches (there 5000 of 50k); `clip` and `anneal_from` are ours.
    **Source**: arXiv 2101.02388 (1,024,000 pairs, 100 DDIM steps, batch 512, Adam with beta2 0.98, lr 2e-4, EMA 0.995, 50k batches).
    """

    loss: str = "l1"
    teacher_solver: str = "dpmpp_2m"
    teacher_steps: int = 10
    count: int = 10000
    released: bool = False
    batches: int = 1000
    batch_size: int = 128
    lr: float = 1e-3
    ema: float = 0.99
    clip: float = later(1.0)
    anneal_from: float = later(0.5)
    version: int = 2

    def __post_init__(self) -> None:
        distance(self.loss)
        check_pairs(self.pairs(), "kd")
        settle(self, "kd", {"anneal_from": 1.0, "version": 3})  # whether its code clips is not known

    def pairs(self) -> Pairs:
        return Pairs(self.teacher_solver, self.teacher_steps, "polynomial", "zero", self.count)

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        self._head(teacher)
        return {"student": student_net(teacher, "kd")}

    def _head(self, teacher: Denoiser) -> Precond:
        """The student's preconditioning."""
        own = start_of(teacher, "kd").precond
        if self.released and own.form != "eps":
            raise UsageError(
                f"kd with released=true subtracts a network that predicts eps, and this teacher's form is {own.form}; use released=false"
            )
        return DifferencePrecond(own) if self.released else own

    def phases(self) -> Sequence[Phase]:
        optim = tuned(self, "adam", self.lr, warmup=min(100, self.batches // 10))
        return one_phase("kd", self.batches, self.batch_size, self.ema, {"student": optim})

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        student = self.student(state.nets["student"], state.teacher)
        target = ((batch.x0.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1 if self.released else batch.x0
        yield Loss(distance(self.loss)(endpoint(student, batch, batch.cond), target).mean(), "student")

    def phase_for(self, steps: int) -> str:
        if steps != 1:
            raise Unreachable(f"kd has a student for 1 step, not {steps}; use 1, or another method")
        return "kd"

    def student(self, net: nn.Module, teacher: Denoiser) -> Preconditioned:
        return replace(like_teacher(net, teacher, "kd"), precond=self._head(teacher))

    def sampling(self) -> Sampling:
        return Sampling("euler", "polynomial", "zero_last")
