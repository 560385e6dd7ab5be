"""The runner's own cost, as a ratio to the network in the same run (`make bench`)."""

import pytest
import torch

from bench.cli import group_config
from bench.models import load_model
from fewstep.analytic import Gaussian
from fewstep.grid import make_grid
from fewstep.plan import run
from methods.registry import get

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
