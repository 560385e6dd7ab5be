"""The runner's own cost, as a ratio to the network in the same run (`make bench`)."""

from collections.abc import Callable

import pytest
import torch

from bench.cli import group_config
from bench.models import load_model
from fewstep.analytic import Gaussian
from fewstep.grid import make_grid
from fewstep.runner import run
from methods.registry import get

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: the runner was not timed against it")
BATCHES = (1, 64)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("what", ["network alone", "dpmpp_2m, zero-cost denoiser", "dpmpp_2m, digits teacher"])
@pytest.mark.benchmark(group="ten evaluations on digits")
def test_ten_steps(benchmark, what: str, batch: int) -> None:
    teacher = load_model(group_config("model", "digits"), "cpu").teacher
    free = Gaussian(torch.zeros(()), torch.ones(()), teacher.shape)
    x = torch.randn(batch, *teacher.shape, generator=torch.Generator().manual_seed(0))
    plan = get("solver", "dpmpp_2m").make().plan(make_grid("polynomial", 10, teacher.sigma_range))
    calls = {
        "network alone": lambda: [teacher(x, float(e.sigma)) for e in plan.evals],
        "dpmpp_2m, zero-cost denoiser": lambda: run(plan, free, x),
        "dpmpp_2m, digits teacher": lambda: run(plan, teacher, x),
    }
    with torch.inference_mode():
        benchmark(calls[what])


class Free:
    """A zero-cost network that returns a fresh tensor in every call, as a real one does."""

    shape, classes, sigma_range = (3, 32, 32), 0, (0.002, 80.0)

    def cost(self, sigma: float) -> int:
        return 1

    def __call__(self, x: torch.Tensor, sigma: object, cond: object = None) -> torch.Tensor:
        return x.clone()


def _diffusers(steps: int, x: torch.Tensor) -> Callable[[], object]:
    """Their multistep scheduler's loop. Its step counter is set back by hand, so that `set_timesteps` is not timed."""
    made = diffusers.DPMSolverMultistepScheduler(solver_order=2, use_karras_sigmas=True)
    made.set_timesteps(steps)

    def call() -> torch.Tensor:
        made._step_index, made.lower_order_nums, made.model_outputs = None, 0, [None, None]
        y = x
        for t in made.timesteps:
            y = made.step(y.clone(), t, y, return_dict=False)[0]
        return y

    return call


@pytest.mark.parametrize("what", ["fewstep: run", "diffusers: DPMSolverMultistepScheduler.step"])
@pytest.mark.benchmark(group="fifty steps of dpmpp_2m on 1x3x32x32, zero-cost network")
def test_fifty_steps(benchmark, what: str) -> None:
    """The bar is a ratio of at least 8 in one run; `make bench` prints it as the group's second column."""
    x = torch.randn(1, *Free.shape, generator=torch.Generator().manual_seed(0))
    plan = get("solver", "dpmpp_2m").make().plan(make_grid("polynomial", 50, Free.sigma_range))
    with torch.inference_mode():
        benchmark((lambda: run(plan, Free(), x)) if what.startswith("fewstep") else _diffusers(50, x))
