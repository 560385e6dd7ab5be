"""Consistency training: pairs of noise levels on one image and one noise, without a teacher in the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import UsageError, near_misses
from fewstep.grid import make_grid
from fewstep.noise import Rng, noised
from fewstep.plugins import register
from methods.distiller import Sampling, bounded, consistent
from methods.losses.distances import distance
from methods.start import drawn_anew, student_net
from methods.training import NEITHER, Ema, Loss, Phase, State, later, settle, tuned

INITS = ("teacher", "scratch")


def check_init(init: str, method: str) -> None:
    """**Raises**: UsageError for a start of the student's weights that there is not."""
    if init not in INITS:
        raise UsageError(f"{method}'s student starts from teacher or scratch, got init '{init}'{near_misses(init, INITS)}")


def initial_net(teacher: Denoiser, method: str, init: str) -> nn.Module:
    """The student's network with the teacher's weights, or (`scratch`) with every layer drawn anew as its class draws it: torch's own ones
    at random, those too that the network itself starts at zero, and EDM's as EDM's networks start.

    **Raises**: as `student_net`; UsageError for a layer with weights that cannot be drawn anew.
    """
    net = student_net(teacher, method)
    return drawn_anew(net, method) if init == "scratch" else net


def shared_noise_pair(
    student: Denoiser, target: Denoiser, batch: Batch, sigma: Tensor, sigma_to: Tensor, rng: Rng
) -> tuple[Tensor, Tensor]:
    """f(x0 + sigma n) and, without gradient, the target's f(x0 + sigma_to n), with one draw of noise for both.

    The step between the two is an Euler step of the probability flow with x0 itself as D. **Shapes**: sigma and sigma_to [B].
    """
    noise = rng.normal(batch.x0.shape)
    with torch.no_grad():
        to = target(noised(batch.x0, noise, sigma_to), sigma_to, batch.cond)
    return student(noised(batch.x0, noise, sigma), sigma, batch.cond), to


@dataclass(frozen=True)
class Curriculum:
    """N(k) levels at batch k of K = `batches`, from s0 to s1 + 1, and the target's decay mu(k) there.

    N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1, mu(k) = exp(s0 ln(mu0) / N(k)). The `released` code has N(k) - 1 in the
    place of N(k) in mu: 0.81 instead of 0.9 at the start, 1e-5 apart at the end. **Source**: arXiv 2303.01469, appendix C.
    """

    s0: int
    s1: int
    mu0: float
    batches: int
    released: bool = later(False)

    def nodes(self, batch: int) -> int:
        """N(k)."""
        return math.ceil(math.sqrt(batch / self.batches * ((self.s1 + 1) ** 2 - self.s0**2) + self.s0**2) - 1) + 1

    def at(self, batch: int) -> float:
        """mu(k)."""
        return math.exp(self.s0 * math.log(self.mu0) / (self.nodes(batch) - self.released))


@register("distiller", "ct", "arXiv 2303.01469 (algorithm 3)")
@dataclass(frozen=True)
class ConsistencyTraining:
    """Consistency training.

    min E d(f(x0 + sigma_i n, sigma_i), sg f_target(x0 + sigma_(i+1) n, sigma_(i+1))), i uniform over N(k) - 1 intervals of the
    polynomial grid. The target is an EMA of decay mu(k); N(k) and mu(k) are `Curriculum`'s; another EMA is sampled.
    **Source**: arXiv 2303.01469, algorithm 3 and appendix C (s0 2, s1 150, mu0 0.9, 800k batches of 512, lr 4e-4). The published
    student starts from `scratch`; ours from the `teacher` unless told otherwise, since our budgets are for a tuning. `clip` and
    `anneal_from` are ours; `released` has neither, and the released code's mu(k). Labels are dropped so that guidance stays possible.
    """

    loss: str = "l2"
    init: str = "teacher"
    s0: int = 2
    s1: int = 150
    mu0: float = 0.9
    batches: int = 1000
    batch_size: int = 128
    lr: float = 5e-4
    ema: float = 0.99
    clip: float = later(1.0)
    anneal_from: float = later(0.5)
    released: bool = later(False)
    version: int = 2

    def __post_init__(self) -> None:
        settle(self, "ct", NEITHER)
        distance(self.loss)
        check_init(self.init, "ct")
        if not 2 <= self.s0 <= self.s1:
            raise UsageError(f"ct's levels grow from s0 >= 2 to s1 + 1, got s0={self.s0} and s1={self.s1}; use e.g. s0=2 s1=150")
        if not 0 < self.mu0 <= 1:
            raise UsageError(f"ct's target decays by 0 < mu0 <= 1, got {self.mu0:g}; use e.g. mu0=0.9")

    def _curriculum(self) -> Curriculum:
        return Curriculum(self.s0, self.s1, self.mu0, self.batches, self.released)

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {"student": initial_net(teacher, "ct", self.init)}

    def phases(self) -> Sequence[Phase]:
        optim = tuned(self, "radam", self.lr)
        emas = {"target": Ema("student", self._curriculum(), ramp=False), "ema": Ema("student", self.ema)}
        return [Phase("ct", self.batches, self.batch_size, {"student": optim}, emas, export="ema")]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        steps = self._curriculum().nodes(state.batch) - 1
        levels = torch.tensor(make_grid("polynomial", steps, bounded(state.teacher.sigma_range)).sigmas)
        i = rng.integers(steps, (len(batch.x0),)).cpu()
        student, target = (self.student(net, state.teacher) for net in (state.nets["student"], state.emas["target"]))
        f, to = shared_noise_pair(student, target, batch, levels[i], levels[i + 1], rng)
        yield Loss(distance(self.loss)(f, to).mean(), "student")

    def phase_for(self, steps: int) -> str:
        return "ct"

    def student(self, net: nn.Module, teacher: Denoiser) -> Preconditioned:
        return consistent(net, teacher, "ct")

    def sampling(self) -> Sampling:
        return Sampling("consistency", "polynomial", "sigma_min", solvers=("consistency_search",), any_level=True)
