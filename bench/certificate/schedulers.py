"""Solvers against the schedulers of diffusers, where its conventions can be matched and it is installed.

The grid is read from the scheduler, whose levels are cast to float64 first. What remains is the state: some schedulers keep it in
float64 (agreement to 1e-12), others cast it to float32 in every step (agreement to a few float32 roundings of the final state, size 3).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.certificate.finding import Finding
from bench.certificate.parity import Variant
from fewstep.analytic import GaussianMixture
from fewstep.denoiser import EDMPrecond
from fewstep.grid import TimeGrid
from fewstep.noise import Slot
from fewstep.plan import run
from fewstep.schedule import Array

SHAPE = (3, 2, 2)
Runs = Callable[[int], tuple[Tensor, Array, Sequence[Tensor]]]  # steps -> (their result, their levels, their noise by draw)


@dataclass(frozen=True)
class Drawn:
    """The noise that a scheduler drew, in order."""

    slots: Sequence[Slot]
    values: Sequence[Tensor]

    def normal(self, slot: Slot, shape: Sequence[int]) -> Tensor:
        return self.values[self.slots.index(slot)]

    def labels(self, classes: int) -> Tensor:
        return torch.zeros(len(self.values[0]), dtype=torch.int64)


@cache
def _model() -> GaussianMixture:
    means = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return GaussianMixture(
        means, torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64), torch.full((4,), -np.log(4.0), dtype=torch.float64)
    )


def _start(sigma: float) -> Tensor:
    return sigma * torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _prepared(scheduler: Any, steps: int) -> tuple[Any, Array]:
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()
    scheduler.is_scale_input_called = True  # the denoiser here scales its own input
    return scheduler, scheduler.sigmas.numpy()


def _drive(scheduler: Any, output_of: Callable[[Tensor, float], Tensor], x: Tensor) -> Tensor:
    """The scheduler's own loop; `output_of(x, sigma)` is what its network would have predicted at its state."""
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(output_of(x, float(scheduler.sigmas[i])), t, x).prev_sample
    return x


def _edm_output(x: Tensor, sigma: float) -> Tensor:
    """F of a perfect EDM network: D = c_skip x + c_out F, at sigma_data 1/2."""
    c_skip, c_out, _, _ = (float(c) for c in EDMPrecond(0.5).coefficients(np.asarray(sigma)))
    return (_model()(x, sigma) - c_skip * x) / c_out


def _edm(made: Any) -> Runs:
    def runs(steps: int) -> tuple[Tensor, Array, Sequence[Tensor]]:
        scheduler, levels = _prepared(made, steps)
        return _drive(scheduler, _edm_output, _start(levels[0])), levels, ()

    return runs


def _heun(made: Any) -> Runs:
    def runs(steps: int) -> tuple[Tensor, Array, Sequence[Tensor]]:
        scheduler, levels = _prepared(made, steps)
        out = _drive(scheduler, lambda x, sigma: (x - _model()(x, sigma)) / sigma, _start(levels[0]))
        return out, np.unique(levels)[::-1].copy(), ()  # their list names every level but the first and last twice

    return runs


def _preserving(made: Any) -> Runs:
    """Their state is z = alpha x with alpha = 1 / sqrt(1 + sigma^2); ours is x. At sigma = 0 the two are the same."""

    def runs(steps: int) -> tuple[Tensor, Array, Sequence[Tensor]]:
        scheduler, levels = _prepared(made, steps)
        start = _start(levels[0]) / (1 + levels[0] ** 2) ** 0.5
        return _drive(scheduler, lambda z, s: _model()(z * (1 + s**2) ** 0.5, s), start), levels, ()

    return runs


def _ancestral(made: Any, **step: float) -> Runs:
    """Schedulers over discrete times of the VP process, which draw from a generator when they step."""

    def runs(steps: int) -> tuple[Tensor, Array, Sequence[Tensor]]:
        made.alphas_cumprod = made.alphas_cumprod.double()
        made.set_timesteps(steps)
        alphas = made.alphas_cumprod[made.timesteps]
        made.betas = made.betas.double()
        sigmas = ((1 - alphas) / alphas).sqrt().numpy()
        generator, copied = torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
        z = _start(float(sigmas[0])) * alphas[0].sqrt()
        for t, alpha, sigma in zip(made.timesteps, alphas, sigmas):
            z = made.step(_model()(z / alpha.sqrt(), float(sigma)), t, z, generator=generator, **step).prev_sample
        drawn = [torch.randn(z.shape, generator=copied, dtype=z.dtype) for _ in range(steps)]
        return z, np.append(sigmas, 0.0), drawn

    return runs


@dataclass(frozen=True)
class Case:
    """A scheduler for one of our solvers: its runs, the step counts, the tolerance and our options."""

    label: str
    runs: Runs
    tolerance: float
    steps: tuple[int, ...] = (2, 3, 4, 10)
    options: tuple[tuple[str, Any], ...] = ()


FLOAT64, FLOAT32 = 1e-11, 3e-6  # roundings at size 3: of float64 with slopes divided by sigma = 0.03; ten of a float32 state


@cache
def _cases() -> dict[str, list[Case]]:
    """Our solver -> the schedulers that compute the same."""
    d: Any = importlib.import_module("diffusers")

    discrete = {"prediction_type": "sample", "clip_sample": False, "timestep_spacing": "leading"}
    found: dict[str, list[Case]] = {
        "euler": [Case("EDMEulerScheduler", _edm(d.EDMEulerScheduler()), FLOAT32)],
        "heun": [Case("HeunDiscreteScheduler", _heun(d.HeunDiscreteScheduler(use_karras_sigmas=True)), FLOAT64)],
        "ddim_eta": [Case("DDIMScheduler", _ancestral(d.DDIMScheduler(**discrete), eta=0.5), FLOAT64)],
        "ddpm": [Case("DDPMScheduler", _ancestral(d.DDPMScheduler(**discrete)), FLOAT64)],
        "ddpm_large": [Case("DDPMScheduler", _ancestral(d.DDPMScheduler(variance_type="fixed_large", **discrete)), FLOAT64)],
    }
    for name, order in (("dpmpp_1s", 1), ("dpmpp_2m", 2), ("dpmpp_3m", 3)):
        edm = _edm(d.EDMDPMSolverMultistepScheduler(solver_order=order))
        vp = d.DPMSolverMultistepScheduler(use_karras_sigmas=True, prediction_type="sample", solver_order=order)
        label = type(vp).__name__
        found[name] = [Case(f"EDM{label}", edm, FLOAT64, (1, 2, 3, 4, 10)), Case(label, _preserving(vp), FLOAT32)]
    long = _edm(d.EDMDPMSolverMultistepScheduler(solver_order=3))  # they lower the last orders below 15 steps only
    found["dpmpp_3m"].append(Case("EDMDPMSolverMultistepScheduler", long, FLOAT64, (20,), (("lower_order_final", False),)))
    for order in (1, 2, 3):  # of bh2; their bh1 divides infinity by infinity in the step to 0
        made = {"use_karras_sigmas": True, "prediction_type": "sample", "solver_order": order, "solver_type": "bh2"}
        unipc = d.UniPCMultistepScheduler(final_sigmas_type="zero", **made)
        found[f"unipc_bh2_{order}"] = [Case("UniPCMultistepScheduler", _preserving(unipc), FLOAT32, (5, 10))]
    return found


def diffusers(name: str, variant: Variant) -> Iterator[Finding]:
    """The same results as the schedulers of diffusers that compute the same, at 1 to 20 steps to sigma 0."""
    if importlib.util.find_spec("diffusers") is None:
        yield Finding("diffusers", "its own", "parity", "not installed", True, "parity with diffusers was not checked")
        return
    for case in _cases().get(name, []):
        for steps in case.steps:
            theirs, levels, noise = case.runs(steps)
            plan = variant(dict(case.options), {}).plan(TimeGrid(levels))
            ours = run(plan, _model(), _start(levels[0]), Drawn(plan.noises, noise))[plan.states[-1]]
            off = float((theirs - ours).abs().max())
            yield Finding("diffusers", f"{case.label}, {steps} steps", case.tolerance, off, off <= case.tolerance, "largest difference")
