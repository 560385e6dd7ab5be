"""Milliseconds per image with a network, and the share of the time outside of it."""

import functools
import inspect
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from clock import CLOCK, DEVICE, wall
from rounds import repeat
from torch import Tensor, nn

from bench.jobs.models import load_model
from bench.settings.compose import group_config
from fewstep.cond import NULL, Cond
from fewstep.denoiser import Preconditioned
from fewstep.grid import make_grid
from fewstep.nets.unet import UNet
from fewstep.noise import LATENT, PhiloxNoise
from fewstep.plugins import get
from fewstep.precond import EDMPrecond
from fewstep.sampling.plan import interpret
from fewstep.sampling.runner import run
from fewstep.tasks.generation import task_for

CIFAR = {"channels": (256, 256, 256), "blocks": 4, "emb": 640}


class Timed(nn.Module):
    """A network whose time the clock leaves out."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond = NULL) -> Tensor:
        CLOCK.enter()
        out = self.net(x, c_noise, cond)
        CLOCK.leave()
        return out


@functools.cache
def cifar() -> Preconditioned:
    """A U-Net of 55 M parameters on 3x32x32, random ones."""
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet((3, 32, 32), 0, **CIFAR).requires_grad_(False).eval().to(DEVICE)
    count = sum(p.numel() for p in net.parameters())
    assert 53e6 < count < 57e6, f"{count} parameters"
    return Preconditioned(net, EDMPrecond(0.5), (3, 32, 32), 0, (0.002, 80.0))


@functools.cache
def digits() -> Preconditioned:
    """The shipped teacher."""
    teacher = load_model(group_config("model", "digits"), DEVICE).teacher
    assert isinstance(teacher, Preconditioned)
    return teacher


MODELS: dict[str, Callable[[], Preconditioned]] = {"CIFAR U-Net, 55 M": cifar, "digits": digits}
CASES = [
    ("CIFAR U-Net, 55 M", "dpmpp_2m", 5, 1),
    *(("digits", solver, 10, batch) for solver in ("dpmpp_2m", "dpmpp_2m_sde") for batch in (1, 64)),
]


def graphed_run() -> Callable[..., Any]:
    """`run` as a CUDA graph; skips where there is none."""
    if DEVICE == "cpu":
        pytest.skip("graphs need a CUDA device: the graphed loop was not timed")
    if "graph" not in inspect.signature(run).parameters:
        pytest.skip("run has no graph: the graphed loop was not timed")
    return functools.partial(run, graph=True)


@pytest.mark.parametrize("way", ["eager", "lowered", "graphed"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
@pytest.mark.benchmark(timer=wall)
def test_images(benchmark, case: tuple[str, str, int, int], way: str) -> None:
    model, solver, evals, batch = case
    loop = {"eager": lambda: interpret, "lowered": lambda: run, "graphed": graphed_run}[way]()
    teacher = MODELS[model]()
    denoiser = teacher if way == "graphed" else replace(teacher, net=Timed(teacher.net).eval())
    plan = get("solver", solver).make().plan(make_grid("polynomial", evals, teacher.sigma_range))
    noise = PhiloxNoise(torch.arange(batch, device=DEVICE))
    cond = task_for(teacher).conditions(noise.seeds, teacher)
    x = teacher.sigma_range[1] * noise.normal(LATENT, teacher.shape)
    outside, total = [], []

    def call() -> None:
        before, started = CLOCK.now(), wall()
        loop(plan, denoiser, x, noise, cond)
        total.append(wall() - started)
        outside.append(CLOCK.now() - before)

    benchmark.extra_info |= {"kind": "images", "model": model, "solver": solver, "evals": evals, "batch": batch, "way": way}
    repeat(benchmark, call, lambda: None, seconds=2.0)
    rounds = len(benchmark.stats.stats.data)
    if way != "graphed":  # a graph has no place to look at the clock
        benchmark.extra_info["outside"] = statistics.median(a / b for a, b in zip(outside[-rounds:], total[-rounds:]))
        benchmark.extra_info["outside_seconds"] = statistics.median(outside[-rounds:])
