"""Conditional diffusion distillation: from an unconditional prior to a conditional student in one stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import UsageError, near_misses
from fewstep.grid import make_grid
from fewstep.noise import Rng, noised
from fewstep.plugins import register
from fewstep.precond import TimestepPrecond
from fewstep.schedule import VP
from methods.conditional import conditional_net
from methods.distill.ct import check_init
from methods.distiller import Sampling
from methods.losses.distances import distance
from methods.start import like_teacher
from methods.training import Codec, Ema, Loss, Phase, State, later, settle, tuned

PREDICTORS = ("prev", "ddim_v", "ddim", "prior")
SPACES = ("noise", "signal")
GUIDED = ("latents", "encoded", "pixels")
NONE = "none"
LEVELS = 1001  # t = 0, 1, ..., 1000


def columns(sigma: Tensor, like: Tensor) -> Tensor:
    """Levels [B] as a factor of tensors [B, ...] like another."""
    return sigma.to(like).view(-1, *[1] * (like.ndim - 1))


def noise_of(x: Tensor, d: Tensor, sigma: Tensor) -> Tensor:
    """The noise (x - D) / sigma that a prediction D of the image says is in x. **Shapes**: x and D [B, ...], sigma [B]."""
    return (x - d) / columns(sigma, x)


def earlier(predictor: str, x: Tensor, d: Tensor, noise: Tensor, sigma: Tensor, sigma_to: Tensor) -> Tensor:
    """The state x_s at the level sigma_to that a prediction D at x = x0 + sigma n leads to: `prev` D + sigma_to n with the noise n that
    x was made of, `ddim` and `ddim_v` D + sigma_to (x - D) / sigma, which is one Euler step.

    **Shapes**: x, D, n [B, ...], levels [B]. **Source**: arXiv 2310.01407, equations 6, 8 and 12; the first two are the same number.
    """
    of = noise if predictor == "prev" else noise_of(x, d, sigma)
    return d + columns(sigma_to, x) * of


@register("distiller", "codi", "arXiv 2310.01407 (algorithm 1)")
@register("distiller", "pe_codi", "arXiv 2310.01407 (parameter-efficient)", branch="control", frozen=True)
@dataclass(frozen=True)
class ConditionalDistillation:
    """min E d(e(x_t, t), sg e_target(x_s, s)) + d_x(x0, D(x_t, t)): the noise that the student sees is the same at t and at s = t - skip,
    and its image the one that the condition was made of.

    e = (x - D) / sigma; x_s by `predictor` (see `earlier`; `prior`: an Euler step of the unconditional teacher); the target, an EMA (`mu`),
    is called at s. t is uniform on the times of a VP schedule of `nodes` levels fitted to the teacher's range, one for the batch or
    (`per_sample`) for each image. d is `loss`, of the noise or of the images (`space` signal), d_x is `guide` (or `none`) of latents,
    latents `encoded` again or `pixels`. The network is the teacher's (or drawn anew, `init`) with a `branch`, trained alone if `frozen`.
    **Source**: arXiv 2310.01407, algorithm 1, whose target is printed at t and meant at s. Ours: mu, batches, rates and an EMA for samples
    (the paper has none); no weight between the two terms, as there. With `released` as in the public code: skip 20 of 1000 times, a
    prediction by the prior alone, consistency of the image, a t for each image, `TimestepPrecond`, clip 1 and a constant rate.
    """

    loss: str = "l2"
    guide: str = "l2"
    guide_in: str = "latents"
    predictor: str = "prev"
    space: str = "noise"
    per_sample: bool = False
    nodes: int = LEVELS
    skip: int = 1
    mu: float = 0.99
    branch: str = "codi"
    frozen: bool = False
    init: str = "teacher"
    released: bool = False
    batches: int = 1000
    batch_size: int = 64
    lr: float = 3e-4
    ema: float = 0.99
    clip: float = later(1.0)
    anneal_from: float = later(0.5)
    version: int = 1

    def __post_init__(self) -> None:
        settle(self, "codi", {"skip": 20, "mu": 0.999, "anneal_from": 1.0, "version": 2})
        for name, value in {"predictor": "prior", "space": "signal", "per_sample": True}.items() if self.released else ():
            object.__setattr__(self, name, value)
        for what, value, known in (
            ("predictor", self.predictor, PREDICTORS),
            ("space", self.space, SPACES),
            ("guide_in", self.guide_in, GUIDED),
        ):
            if value not in known:
                raise UsageError(f"codi's {what} is {' or '.join(known)}, got '{value}'{near_misses(value, known)}")
        for name in (self.loss, *([] if self.guide == NONE else [self.guide])):
            distance(name)
        check_init(self.init, "codi")
        if not 1 <= self.skip < self.nodes - 1:
            raise UsageError(
                f"codi steps back by 1 to nodes - 2 times, got skip={self.skip} of nodes={self.nodes}; use e.g. skip=1 nodes=1001"
            )

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {"student": conditional_net(teacher, "codi", self.branch, self.frozen, self.init)}

    def phases(self) -> Sequence[Phase]:
        emas = {"target": Ema("student", self.mu, ramp=False), "ema": Ema("student", self.ema)}
        return [Phase("codi", self.batches, self.batch_size, {"student": tuned(self, "adam", self.lr)}, emas, export="ema")]

    def _levels(self, teacher: Denoiser, count: int, rng: Rng) -> tuple[Tensor, Tensor]:
        """sigma at t and at s, each [B]."""
        own = self.sampling()
        levels = torch.from_numpy(make_grid(own.grid, self.nodes - 1, own.range_in(teacher.sigma_range)).sigmas.copy())
        times = self.nodes - self.skip  # t at least skip
        i = rng.integers(times, (count,)).cpu() if self.per_sample else torch.full((count,), rng.integer(times))
        return levels[i], levels[i + self.skip]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        sigma, sigma_to = self._levels(state.teacher, len(batch.x0), rng)
        noise = rng.normal(batch.x0.shape)
        x = noised(batch.x0, noise, sigma)
        d = self.student(state.nets["student"], state.teacher)(x, sigma, batch.cond)
        with torch.no_grad():
            by = state.teacher(x, sigma, batch.cond) if self.predictor == "prior" else d.detach()
            x_to = earlier(self.predictor, x, by, noise, sigma, sigma_to)
            d_to = self.student(state.emas["target"], state.teacher)(x_to, sigma_to, batch.cond)
        seen, wanted = (d, d_to) if self.space == "signal" else (noise_of(x, d, sigma), noise_of(x_to, d_to, sigma_to))
        consistency = distance(self.loss)(seen, wanted).mean()
        guidance = torch.zeros_like(consistency) if self.guide == NONE else self._guidance(d, batch.x0, state.codec).mean()
        logs = {"consistency": float(consistency.detach()), "guidance": float(guidance.detach())}
        yield Loss(consistency + guidance, "student", logs)

    def _guidance(self, d: Tensor, x0: Tensor, codec: Codec) -> Tensor:
        """d_x [B]: of what the model works on, of its decoded images encoded again, or of the images."""
        if self.guide_in == "latents":
            return distance(self.guide)(d, x0)
        own = codec.pixels(d)
        if self.guide_in == "encoded":
            return distance(self.guide)(codec.latents(own), x0)
        return distance(self.guide)(own, codec.pixels(x0))

    def phase_for(self, steps: int) -> str:
        return "codi"

    def student(self, net: nn.Module, teacher: Denoiser) -> Preconditioned:
        own = like_teacher(net, teacher, "codi")
        if not self.released:
            return own
        return replace(own, precond=TimestepPrecond(own.precond, VP.fitted(*self.sampling().range_in(own.sigma_range))))

    def sampling(self) -> Sampling:
        return Sampling("euler", "time_uniform", "zero_last", solvers=("consistency",), any_level=True)
