"""Consistency trajectory models: students that jump from any noise level to any lower one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.cond import NULL, Cond
from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser, FeatureNetwork, network_dtype
from fewstep.errors import UsageError
from fewstep.flowmap import TO, TwoTime
from fewstep.grid import make_grid
from fewstep.noise import Rng, noised
from fewstep.plugins import register
from fewstep.sampling.runner import end_of
from methods.distiller import Sampling, bounded, per_sample
from methods.losses.distances import distance, l2
from methods.solver import ode_solver
from methods.start import like_teacher, start_of, student_net
from methods.training import NEITHER, Ema, Loss, Phase, State, later, settle, tuned

LAMBDA = (0.0, 1e4)  # the range of an adaptive weight
LAMBDA_GAN = (0.01, 10.0)


@register("distiller", "ctm", "arXiv 2310.02279 (algorithm 1)")
@register("distiller", "ctm_gan", "arXiv 2310.02279 (algorithm 1, GAN phase)", gan=True)
@dataclass(frozen=True)
class ConsistencyTrajectory:
    """Consistency trajectory models: soft consistency matching and denoising; with `gan` a second phase with an adversarial loss too.

    min E d(G_m(G(x_t, t, s), s, e), G_m(G_sg(x_u, u, s), s, e)) + lambda_d E |g(x, r, r) - x0|^2 / c_out(r)^2 [- lambda_a E logit].

    e = sigma_min; t > u >= s are nodes, u is M <= `teacher_steps` nodes below t and x_u as many `teacher_solver` steps from x_t, p(M) ~ M
    once a batch; m is an EMA (`mu`) that the gradient passes. r as in `denoising_levels`; lambda as in `adaptive`, from the gradients at
    `last_layer`. **Source**: arXiv 2310.02279 with its code: 18 nodes, M <= 17, mu 0.999, batch 256, lr 4e-4 (discriminator 2e-3).
    Ours: d on pixels, not LPIPS; `Discriminator` reads the teacher's features, and steps after the student in every batch, not in turn;
    the target's decay rises to `mu`; the GAN phase starts from the first's EMA; budgets for the digit teacher; labels dropped for guidance;
    9 nodes, so that grids of 1, 2, 4 and 8 steps lie on them: between them the network was never told where to jump; `clip`, `anneal_from`,
    and noise of sigma_min on real images. `released` has none of these last three.
    """

    loss: str = "pseudo_huber"
    teacher_solver: str = "heun"
    nodes: int = 9
    teacher_steps: int = 8
    mu: float = 0.95
    gan: bool = False
    batches: int = 150
    batch_size: int = 128
    lr: float = 2e-3
    discriminator_lr: float = 2e-3
    ema: float = 0.98
    clip: float = later(1.0)
    anneal_from: float = later(0.5)
    released: bool = later(False)
    version: int = 3
    undivided: ClassVar[str] = "weights that compare gradients of the whole batch"

    def __post_init__(self) -> None:
        settle(self, "ctm", NEITHER)
        distance(self.loss)
        ode_solver(self.teacher_solver, "ctm")
        if self.nodes < 2:
            raise UsageError(f"ctm jumps between nodes, so nodes must be at least 2, got {self.nodes}; the paper has 18 or 40")
        if not 1 <= self.teacher_steps < self.nodes:
            limit = f"teacher_steps must lie in 1 to {self.nodes - 1}"
            raise UsageError(f"ctm's teacher steps from node to node, so on {self.nodes} nodes {limit}, got {self.teacher_steps}")

    def network(self, teacher: Denoiser) -> nn.Module:
        return student_net(teacher, "ctm", (TO,))

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        student = self.network(teacher)
        if not self.gan:
            return {"student": student}
        probe = torch.zeros(1, *teacher.shape, device=last_layer(student).device)
        with torch.no_grad():
            return {"student": student, "discriminator": Discriminator(deepest_map(teacher, probe, NULL).shape[1])}

    def phases(self) -> Sequence[Phase]:
        emas = {"target": Ema("student", self.mu), "ema": Ema("student", self.ema)}
        optims = {"student": tuned(self, "radam", self.lr)}
        first = Phase("ctm", self.batches, self.batch_size, optims, emas, export="ema")
        if not self.gan:
            return [first]
        both = {**optims, "discriminator": tuned(self, "adam", self.discriminator_lr, anneals=False)}
        return [first, Phase("gan", self.batches, self.batch_size, both, emas, {"student": "ema"}, "ema")]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        teacher, net = state.teacher, state.nets["student"]
        student = self.student(net, teacher)
        cond = batch.cond
        estimate, target = self._sides(student, self.student(state.emas["target"], teacher), teacher, batch.x0, cond, rng)
        matching = distance(self.loss)(estimate, target).mean()

        sigma = denoising_levels(len(batch.x0), bounded(teacher.sigma_range), rng)
        d = student(noised(batch.x0, rng.normal(batch.x0.shape), sigma), sigma, cond)
        c_out = student.base.precond.coefficients(sigma.cpu().numpy())[1]
        denoising = (torch.from_numpy(c_out**-2).to(d) * l2(d, batch.x0)).mean()

        of, last = gradient_norm(matching, net), {"denoising": denoising}
        weights = {"denoising": adaptive(of, gradient_norm(denoising, net))}
        discriminator = state.nets["discriminator"] if state.phase.name == "gan" else None
        if discriminator is not None:
            last["gan"] = -discriminator(deepest_map(teacher, estimate, cond)).mean()
            weights["gan"] = adaptive(of, gradient_norm(last["gan"], net)).clamp(*LAMBDA_GAN)
        logs = {"matching": float(matching.detach())} | {k: float(v.detach()) for k, v in last.items()}
        logs |= {f"lambda/{k}": float(v) for k, v in weights.items()}
        yield Loss(matching + sum(weights[k] * last[k] for k in last), "student", logs)
        if discriminator is not None:
            with torch.no_grad():
                maps = [deepest_map(teacher, x, cond) for x in (self._real(batch.x0, teacher, rng), estimate)]
            yield Loss(F.relu(1 - discriminator(maps[0])).mean() + F.relu(1 + discriminator(maps[1])).mean(), "discriminator")

    def _real(self, x0: Tensor, teacher: Denoiser, rng: Rng) -> Tensor:
        """What the discriminator is shown as real: images at sigma_min, where the estimates end; with `released` the images themselves."""
        return x0 if self.released else noised(x0, rng.normal(x0.shape), torch.full((len(x0),), teacher.sigma_range[0]))

    def _sides(self, student: TwoTime, outer: TwoTime, teacher: Denoiser, x0: Tensor, cond: Cond, rng: Rng) -> tuple[Tensor, Tensor]:
        """Estimate and target of soft consistency matching, both at sigma_min."""
        count = len(x0)
        levels = make_grid("polynomial", self.nodes - 1, bounded(teacher.sigma_range)).sigmas
        steps = drawn_steps(self.teacher_steps, float(rng.uniform((1,))))
        i = rng.integers(self.nodes - steps, (count,))
        j = i + steps + ((self.nodes - steps - i) * rng.uniform((count,)).double()).long()
        grid = per_sample(levels, i + torch.arange(steps + 1, device=i.device)[:, None])
        t, u, s = (torch.tensor(x) for x in (grid.sigmas[0], grid.sigmas[-1], levels[j.cpu().numpy()]))
        x_t, end = noised(x0, rng.normal(x0.shape), t), torch.full((count,), levels[-1], dtype=torch.float64)
        with torch.no_grad():
            plan = ode_solver(self.teacher_solver, "ctm").plan(grid)
            x_u = end_of(plan, teacher, x_t, cond=cond)
            target = outer.jump(student.jump(x_u, u, s, cond), s, end, cond)
        return outer.jump(student.jump(x_t, t, s, cond), s, end, cond), target

    def phase_for(self, steps: int) -> str:
        return "gan" if self.gan else "ctm"

    def student(self, net: nn.Module, teacher: Denoiser) -> TwoTime:
        return TwoTime(like_teacher(net, teacher, "ctm"))

    def sampling(self) -> Sampling:
        others = ("ctm_gamma", "ctm_gamma_1", "euler", "heun")
        return Sampling("ctm_gamma_0", "polynomial", "sigma_min", solvers=others, any_level=True, nodes=self.nodes)


class Discriminator(nn.Module):
    """Logits [B, H, W] from the teacher's deepest feature map [B, C, H, W], one at each position.

    Deviation: the paper has StyleGAN-XL's projected heads on two ImageNet backbones, and augments what they see; neither is here.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(channels, channels, 1)
        self.outer = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.leaky_relu(self.inner(x), 0.2)).squeeze(1)


def deepest_map(teacher: Denoiser, x: Tensor, cond: Cond) -> Tensor:
    """The deepest feature map [B, C, H, W] of the teacher's network at sigma_min, where the estimates of a clean image lie.

    **Raises**: UsageError for a network without one.
    """
    start = start_of(teacher, "ctm_gan")
    if not isinstance(start.net, FeatureNetwork) or not start.net.feature_size:
        raise UsageError(
            f"ctm_gan: a {type(start.net).__name__} teacher has no feature map for a discriminator; use ctm, or a unet teacher"
        )
    c_in, c_noise = (float(c) for c in start.precond.coefficients(np.asarray(start.sigma_range[0]))[2:])
    told = torch.full((len(x),), c_noise, device=x.device)
    return start.net((c_in * x).to(network_dtype(start.net)), told, cond, features=True)[1]


def drawn_steps(most: int, uniform: float) -> int:
    """M in 1 to `most` with p(M) = 2 M / (most (most + 1)), from a uniform number in [0, 1)."""
    ends = np.cumsum(np.arange(1, most + 1)) / (most * (most + 1) / 2)
    return 1 + int(np.searchsorted(ends, uniform, side="right"))


def denoising_levels(count: int, sigma_range: tuple[float, float], rng: Rng) -> Tensor:
    """Levels [count], float64: half of them log-normal(-1.2, 1.2), clamped to the range, half the first 70% of the polynomial grid's.

    **Source**: arXiv 2310.02279, released code (`halflognormal`).
    """
    low, high = sigma_range
    normal = torch.exp(1.2 * rng.normal((count // 2,)).double() - 1.2).clamp(low, high)
    ramp = 0.7 * rng.uniform((count - count // 2,)).double()
    return torch.cat([normal, (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7])


def last_layer(net: nn.Module) -> nn.Parameter:
    """The weight of the output layer: the last parameter of two or more dimensions that does not embed a scalar."""
    return [p for name, p in net.named_parameters() if p.ndim > 1 and "embed_scalars." not in name][-1]


def gradient_norm(loss: Tensor, net: nn.Module) -> Tensor:
    """Norm of a loss's gradient at the output layer of a net."""
    return torch.autograd.grad(loss, last_layer(net), retain_graph=True)[0].norm()


def adaptive(of: Tensor, by: Tensor) -> Tensor:
    """lambda = clamp(of / (by + 1e-4), 0, 1e4), of two gradient norms. **Source**: arXiv 2310.02279, released code."""
    return (of / (by + 1e-4)).clamp(*LAMBDA)
