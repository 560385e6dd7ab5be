"""Distribution matching distillation: a student whose samples, noised, are as likely under the teacher's score as under their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from fewstep.cond import Cond
from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser, FeatureNetwork, Preconditioned
from fewstep.errors import Unreachable, UsageError, near_misses
from fewstep.grid import make_grid
from fewstep.noise import Rng, noised
from fewstep.plugins import register
from methods.distill.kd import check_pairs, endpoint
from methods.distiller import Pairs, Sampling, bounded
from methods.losses.distances import distance, l2
from methods.start import like_teacher, student_net
from methods.training import Loss, Optim, Phase, State, later, one_phase, settle, tuned

TABLE = 1000  # nodes of the polynomial grid, from the highest on, among which noise levels are drawn: uniform over the places
OURS = (20, 979)  # to both ends included, everywhere;
MATCHING, WHOLE = (19, 979), (0, 999)  # in the released code for the matching gradient (there 20 to 980 from the lowest on), and elsewhere
RELEASED = {"clip": 10.0, "anneal_from": 1.0}
# On logits h, high for real: what the critic minimises of generated samples (of real ones at -h), and what the student minimises.
GANS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "softplus": (softplus, lambda h: softplus(-h)),
    "hinge": (lambda h: relu(1 + h), lambda h: -h),
}
CRITIC = 1e-2  # the GAN's share in the fake denoiser's own loss, whose features the head reads (released ImageNet recipe)


def random_levels(sigma_range: tuple[float, float], count: int, rng: Rng, places: tuple[int, int] = OURS) -> Tensor:
    """A noise level [B] float64 for each sample, uniform in index over these places of the table, both ends included."""
    table, (first, last) = make_grid("polynomial", TABLE - 1, bounded(sigma_range)).sigmas, places
    return torch.tensor(table[first + rng.integers(last + 1 - first, (count,)).cpu().numpy()])


def matching_gradient(x0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """(D_fake - D_real) / mean |x0 - D_real| at x0 noised: 0 where the generator's samples have the teacher's distribution.

    grad KL = E (s_fake - s_real) dx0, with scores s = (D - x) / sigma^2 in x = x0 + sigma n and the weight sigma^2 / mean |x0 - D_real|,
    the mean over a sample's pixels. **Shapes**: all [B, ...]. **Source**: arXiv 2311.18828, equations 7 and 8, derived with alpha = 1 from
    the released code of 2405.14867, which sets NaN to 0 where we bound the mean from below by 1e-5.
    """
    scale = (x0 - real).abs().flatten(1).mean(1).clamp(min=1e-5)
    return (fake - real) / scale.view(-1, *[1] * (x0.ndim - 1))


def matching_loss(x0: Tensor, teacher: Denoiser, fake: Denoiser, cond: Cond, rng: Rng, places: tuple[int, int] = OURS) -> Tensor:
    """A loss whose gradient in x0 is `matching_gradient`: 1/2 |x0 - sg(x0 - gradient)|^2, mean over pixels and samples."""
    own = x0.detach()
    with torch.no_grad():
        sigma = random_levels(teacher.sigma_range, len(own), rng, places)
        x = noised(own, rng.normal(own.shape), sigma)
        gradient = matching_gradient(own, teacher(x, sigma, cond), fake(x, sigma, cond))
    return 0.5 * l2(x0, own - gradient).mean()


def denoising_loss(d: Tensor, x0: Tensor, sigma: Tensor, start: Preconditioned) -> Tensor:
    """mean |D - x0|^2 / c_out^2, which weighs the network's raw output alike at all levels; of EDM's 1 / sigma^2 + 1 / sigma_data^2."""
    weight = torch.from_numpy(start.precond.coefficients(sigma.numpy())[1] ** -2.0)
    return (weight.to(d) * l2(d, x0)).mean()


def generated(student: Denoiser, levels: np.ndarray, cond: Cond, count: int, rng: Rng) -> Tensor:
    """The student's x0 [B, ...] at one of its levels for each sample, from the input that its own trajectory has there.

    Trajectories are those of multistep consistency sampling without gradients: x = levels[0] n, then D + levels[i] n. Differentiable in
    the last call. **Source**: arXiv 2405.14867, backward simulation (there one level for a whole batch).
    """
    shape = (count, *student.shape)
    inputs = [float(levels[0]) * rng.normal(shape)]
    with torch.no_grad():
        for sigma, sigma_to in itertools.pairwise(levels):
            inputs.append(student(inputs[-1], float(sigma), cond) + float(sigma_to) * rng.normal(shape))
    at = rng.integers(len(levels), (count,)).cpu()
    x = torch.stack(inputs)[at, torch.arange(count)]
    return student(x, torch.tensor(levels[at.numpy()]), cond)


def decayed(optims: Mapping[str, Optim]) -> dict[str, Optim]:
    """The optimisers as AdamW with weight decay 0.01, as in the released code."""
    return {net: replace(optim, name="adamw", weight_decay=0.01) for net, optim in optims.items()}


@register("distiller", "dmd", "arXiv 2311.18828")
@dataclass(frozen=True)
class DistributionMatching:
    """DMD: a one-step student G(n) = D(sigma_max n, sigma_max) whose samples match the teacher's distribution, and stored pairs.

    The student minimises `matching_loss` + `regression` d(G(n), the teacher's sample of n); before that, `fake` learns `fake_updates` times
    by denoising what the student makes. `loss` is d. **Source**: arXiv 2311.18828 (regression 0.25 with LPIPS; batch 392, AdamW 5e-5 on
    CIFAR-10); as for weights and normalisation the released code of 2405.14867. Ours: another d, an EMA as student, labels dropped for
    guidance, `clip`, `anneal_from` (the student's alone), and noise levels without both ends of their table everywhere (places 20 to 979
    of 0 to 999). With `released`, these are as published: `MATCHING` levels for the matching gradient, all of them for the fake denoiser;
    AdamW with weight decay 0.01, clipped to norm 10, at an lr that is constant after 500 batches' warm-up (at most a tenth of all).
    """

    loss: str = "l2"
    regression: float = 0.25
    fake_updates: int = 1
    teacher_solver: str = "dpmpp_2m"
    teacher_steps: int = 10
    count: int = 5000
    batches: int = 300
    batch_size: int = 128
    lr: float = 5e-4
    ema: float = 0.98
    clip: float = later(1.0)
    anneal_from: float = later(0.5)
    released: bool = later(False)
    version: int = 2

    def __post_init__(self) -> None:
        settle(self, "dmd", RELEASED)
        distance(self.loss)
        check_pairs(self.pairs(), "dmd")
        if self.regression < 0 or self.fake_updates < 1:
            raise UsageError(
                f"dmd needs regression >= 0 and fake_updates >= 1, got {self.regression:g} and {self.fake_updates}; e.g. 0.25 and 1"
            )

    def pairs(self) -> Pairs:
        return Pairs(self.teacher_solver, self.teacher_steps, "polynomial", "zero", self.count)

    def network(self, teacher: Denoiser) -> nn.Module:
        return student_net(teacher, "dmd")

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {name: self.network(teacher) for name in ("student", "fake")}

    def phases(self) -> Sequence[Phase]:
        rise = min(500, self.batches // 10) if self.released else 0
        optims = {net: tuned(self, "adam", self.lr, anneals=net == "student", warmup=rise) for net in ("student", "fake")}
        if self.released:
            optims = decayed(optims)
        return one_phase("dmd", self.batches, self.batch_size, self.ema, optims)

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        teacher, count = state.teacher, len(batch.x0)
        student, fake = self.student(state.nets["student"], teacher), like_teacher(state.nets["fake"], teacher, "dmd")
        cond = batch.cond
        levels = np.array(bounded(teacher.sigma_range)[1:])
        inner, others = _places(self.released)
        for _ in range(self.fake_updates):
            with torch.no_grad():
                x0, sigma = generated(student, levels, cond, count, rng), random_levels(teacher.sigma_range, count, rng, others)
            x = noised(x0, rng.normal(x0.shape), sigma)
            yield Loss(denoising_loss(fake(x, sigma, cond), x0, sigma, fake), "fake")
        matched = matching_loss(generated(student, levels, cond, count, rng), teacher, fake, cond, rng, inner)
        yield Loss(matched + self.regression * distance(self.loss)(endpoint(student, batch, batch.undropped), batch.x0).mean(), "student")

    def phase_for(self, steps: int) -> str:
        if steps != 1:
            raise Unreachable(f"dmd has a student for 1 step, not {steps}; use 1, or dmd2")
        return "dmd"

    def student(self, net: nn.Module, teacher: Denoiser) -> Preconditioned:
        return like_teacher(net, teacher, "dmd")

    def sampling(self) -> Sampling:
        return Sampling("consistency", "polynomial", "zero_last")


@register("distiller", "dmd2", "arXiv 2405.14867")
@dataclass(frozen=True)
class DistributionMatching2:
    """DMD2: DMD without pairs, for `steps` steps; the fake denoiser learns on a faster scale, and its features tell real from generated.

    The student makes x0 at the levels it is sampled at (`generated`) and minimises `matching_loss` + `gan` GAN(x0 noised). Before that,
    `fake_updates` times: `fake` learns by denoising + 1e-2 GAN, and `head`, on its deepest map, by the GAN. `loss` is the GAN's: softplus
    (released code) or hinge; gan=0 leaves it out. **Source**: arXiv 2405.14867 and its released ImageNet recipe (5 updates, GAN 3e-3, AdamW
    2e-6, batch 280). Ours: levels of a polynomial grid (SDXL: 999, 749, 499, 249), a two-layer head (theirs convolutional), one draw of
    real images for all updates of a batch, an EMA as student, labels dropped for guidance, `clip`, `anneal_from` (the student's alone),
    noise levels as in `dmd`, and one noised input for the fake's denoising and GAN. With `released` the levels are `dmd`'s (all of them for
    the GAN too), denoising and GAN have an input each, and AdamW with weight decay 0.01 is clipped to norm 10 at a constant lr.
    """

    loss: str = "softplus"
    steps: int = 1
    gan: float = 3e-3
    fake_updates: int = 5
    batches: int = 150
    batch_size: int = 128
    lr: float = 5e-4
    ema: float = 0.98
    clip: float = later(1.0)
    anneal_from: float = later(0.5)
    released: bool = later(False)
    version: int = 2

    def __post_init__(self) -> None:
        settle(self, "dmd2", {**RELEASED, "version": 3})
        if self.loss not in GANS:
            raise UsageError(f"unknown loss '{self.loss}' of dmd2's GAN{near_misses(self.loss, list(GANS))}")
        if self.steps < 1 or self.gan < 0 or self.fake_updates < 1:
            found = f"{self.steps}, {self.gan:g} and {self.fake_updates}"
            raise UsageError(f"dmd2 needs steps >= 1, gan >= 0 and fake_updates >= 1, got {found}; e.g. 1, 0.003 and 5")

    def network(self, teacher: Denoiser) -> nn.Module:
        return student_net(teacher, "dmd2")

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        nets = {name: self.network(teacher) for name in ("student", "fake")}
        return nets | ({"head": _head(like_teacher(nets["fake"], teacher, "dmd2"))} if self.gan else {})

    def phases(self) -> Sequence[Phase]:
        own = {"student": tuned(self, "adam", self.lr)}
        critics = {name: tuned(self, "adam", self.lr, anneals=False) for name in ("fake", *(["head"] if self.gan else []))}
        return one_phase("dmd2", self.batches, self.batch_size, self.ema, decayed(own | critics) if self.released else own | critics)

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        teacher, count = state.teacher, len(batch.x0)
        student, fake = self.student(state.nets["student"], teacher), like_teacher(state.nets["fake"], teacher, "dmd2")
        cond = batch.cond
        levels = make_grid("polynomial", self.steps, bounded(teacher.sigma_range), "zero_last").sigmas[:-1]
        inner, others = _places(self.released)
        for _ in range(self.fake_updates):
            with torch.no_grad():
                x0 = generated(student, levels, cond, count, rng)
            yield from self._critics(state, fake, x0, batch.x0, cond, rng)
        x0 = generated(student, levels, cond, count, rng)
        value = matching_loss(x0, teacher, fake, cond, rng, inner)
        if self.gan:
            head, (_, deepest, _) = state.nets["head"], _seen(fake, x0, cond, rng, others)
            value = value + self.gan * GANS[self.loss][1](head(deepest)).mean()
        yield Loss(value, "student")

    def _critics(self, state: State, fake: Preconditioned, x0: Tensor, real: Tensor, cond: Cond, rng: Rng) -> Iterator[Loss]:
        """The losses of one update of `fake` and `head` on generated samples x0 and real ones."""
        _, others = _places(self.released)
        if not self.gan:
            sigma = random_levels(fake.sigma_range, len(x0), rng, others)
            yield Loss(denoising_loss(fake(noised(x0, rng.normal(x0.shape), sigma), sigma, cond), x0, sigma, fake), "fake")
            return
        d, of_fake, sigma = _seen(fake, x0, cond, rng, others)
        if self.released:
            _, of_fake, _ = _seen(fake, x0, cond, rng, others)
        _, of_real, _ = _seen(fake, real, cond, rng, others)
        yield Loss(denoising_loss(d, x0, sigma, fake) + CRITIC * self._gan(state.nets["head"], of_fake, of_real), "fake")
        yield Loss(self._gan(state.nets["head"], of_fake.detach(), of_real.detach()), "head")

    def _gan(self, head: nn.Module, of_fake: Tensor, of_real: Tensor) -> Tensor:
        critic, _ = GANS[self.loss]
        return (critic(head(of_fake)) + critic(-head(of_real))).mean()

    def phase_for(self, steps: int) -> str:
        if steps != self.steps:
            raise Unreachable(f"this dmd2 was trained for {self.steps} step(s), not {steps}; train another with steps={steps}")
        return "dmd2"

    def student(self, net: nn.Module, teacher: Denoiser) -> Preconditioned:
        return like_teacher(net, teacher, "dmd2")

    def sampling(self) -> Sampling:
        return Sampling("consistency", "polynomial", "zero_last")


def _places(released: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """The places of the noise levels of the matching gradient, and of all others."""
    return (MATCHING, WHOLE) if released else (OURS, OURS)


def _seen(fake: Preconditioned, x0: Tensor, cond: Cond, rng: Rng, places: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """x0 noised to random levels as the fake denoiser sees it: D, its deepest map, and the levels. Differentiable in x0."""
    sigma = random_levels(fake.sigma_range, len(x0), rng, places)
    x = x0 + sigma.to(x0).view(-1, *[1] * (x0.ndim - 1)) * rng.normal(x0.shape)
    return (*fake.with_map(x, sigma, cond), sigma)


def _head(fake: Preconditioned) -> nn.Module:
    """A logit [B, 1] of the fake network's deepest map. **Raises**: UsageError for a network that hands out none."""
    if not isinstance(fake.net, FeatureNetwork) or not fake.features:
        raise UsageError(f"dmd2: a {type(fake.net).__name__} hands out no features for a head to read; use gan=0, or a unet teacher")
    first = next(fake.net.parameters())
    with torch.no_grad():
        _, deepest = fake.with_map(torch.zeros(1, *fake.shape, device=first.device), fake.sigma_range[1])
    return nn.Sequential(nn.Flatten(), nn.LayerNorm(deepest.numel()), nn.Linear(deepest.numel(), 128), nn.SiLU(), nn.Linear(128, 1))
