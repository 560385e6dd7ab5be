"""The second stage of simple and fast distillation: one evaluation, taught by the first stage's student."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import make_grid
from fewstep.noise import Rng
from fewstep.plugins import get, register
from fewstep.sampling.plan import with_afs
from fewstep.wrappers import WithScalars
from methods.distill.sfd import SimpleFastDistillation, SimpleFastDistillationVariable, adam, follow, start, teach
from methods.distiller import Sampling
from methods.losses.distances import distance
from methods.start import like_teacher, student_net
from methods.training import Loss, Phase, State


@register("distiller", "sfd_one", "arXiv 2409.19681 (second stage)")
@register("distiller", "sfd_v_one", "arXiv 2409.19681 (second stage of SFD-v)", variable=True)
@dataclass(frozen=True)
class SimpleFastDistillationOne:
    """SFD in one evaluation: a phase of `sfd` with `first` steps, then one in which that student teaches a copy of itself.

    With `afs` the copy's grid has two intervals, the first analytical, so it is called once, at the middle one of the first stage's
    nodes; without, once at sigma_max. Its teacher samples as the first stage's student does, in `first` Euler steps with its AFS. Both
    phases are kept: the first samples in `first` steps. With `variable` the first stage is `sfd_v`, told its number of steps in both
    phases, for one step more than the second's up to `first`. `second_loss` is the second stage's, `loss` again where it is empty.
    **Source**: arXiv 2409.19681, and its code: first = 6, so K = 3, and in the second stage L1 plus LPIPS with equal weights, here
    second_loss=l1_lpips, or l1_digits_features for digits (their LPIPS pools by means, on images in [-1, 1] where it expects [0, 1]). Ours
    differs in that stage's length and lr, which are the first's unless `second_batches` and `second_lr` say other ones (theirs ten times as
    high, and as long for `sfd_one`; 2.5 times as long for `sfd_v_one`). The rest as `sfd`.
    """

    loss: str = "l1"
    first: int = 6
    variable: bool = False
    second_loss: str = ""
    teacher_solver: str = "dpmpp_3m"
    substeps: int = 4
    sigma_min: float = 0.006
    afs: bool = True
    batches: int = 120
    batch_size: int = 128
    lr: float = 5e-4
    second_batches: int = 0
    second_lr: float = 0.0
    released: bool = False
    version: int = 2

    def __post_init__(self) -> None:
        if self.first <= self.steps or self.first % self.steps:
            wanted = "an even number above 2 with afs=true" if self.afs else "more than 1"
            raise UsageError(f"{self._name}'s first stage takes first={self.first} steps, which must be {wanted}; use e.g. first=6")
        if self.second_loss:
            distance(self.second_loss)
        self.stage_one()

    @property
    def steps(self) -> int:
        """Intervals of the second stage's grid, the analytical one among them."""
        return 1 + self.afs

    @property
    def _name(self) -> str:
        return "sfd_v_one" if self.variable else "sfd_one"

    def stage_one(self) -> SimpleFastDistillation | SimpleFastDistillationVariable:
        """The first stage as a method of its own."""
        names = ("loss", "teacher_solver", "substeps", "sigma_min", "afs", "batches", "batch_size", "lr", "released")
        shared = {name: getattr(self, name) for name in names}
        if self.variable:
            return SimpleFastDistillationVariable(fewest=self.steps + 1, most=self.first, **shared)
        return SimpleFastDistillation(steps=self.first, **shared)

    def network(self, teacher: Denoiser) -> nn.Module:
        return student_net(teacher, self._name, ("steps",) if self.variable else (), dropout=self.released)

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {name: self.network(teacher) for name in ("student", "teacher")}

    def phases(self) -> Sequence[Phase]:
        batches, lr = self.second_batches or self.batches, self.second_lr or self.lr
        second = Phase("one", batches, self.batch_size, adam(lr, self.released), copies={"teacher": "student"})
        return [*self.stage_one().phases(), second]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        if state.phase.name != "one":
            yield from self.stage_one().losses(state, batch, rng)
            return
        grid = make_grid("polynomial", self.first, self.sampling().range_in(state.teacher.sigma_range))
        plan, every = get("solver", "euler").make().plan(grid), self.first // self.steps
        x, cond = start(grid.sigmas[0], batch, rng)
        targets = teach(with_afs(plan) if self.afs else plan, self._told("teacher", self.first, state), x, cond, every)
        student, loss = self._told("student", self.steps, state), self.second_loss or self.loss
        yield from follow(student, x, cond, grid.sigmas[::every], targets, self.afs, loss)

    def _told(self, net: str, steps: int, state: State) -> Denoiser:
        """A net as the denoiser that samples in so many steps."""
        made = self.student(state.nets[net], state.teacher)
        return WithScalars(made, {"steps": float(steps)}) if self.variable else made

    def phase_for(self, steps: int) -> str:
        first = range(self.steps + 1 if self.variable else self.first, self.first + 1)
        if steps != self.steps and steps not in first:
            known = f"{self.steps} and {first[0]}{f' to {first[-1]}' if self.variable else ''}"
            raise Unreachable(f"{self._name} has students for {known} steps, not {steps}; use one of those or sfd")
        return "one" if steps == self.steps else self.stage_one().phases()[0].name

    def student(self, net: nn.Module, teacher: Denoiser) -> Preconditioned:
        return like_teacher(net, teacher, self._name)

    def sampling(self) -> Sampling:
        return self.stage_one().sampling()
