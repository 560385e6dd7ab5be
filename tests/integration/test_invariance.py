"""Samples do not depend on how they are batched or resumed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.jobs.models import Model, load_model
from bench.jobs.solutions import Sampled, truth_of
from bench.jobs.suite import expand
from bench.settings.compose import group_config
from fewstep.grid import make_grid
from fewstep.guidance import guide
from fewstep.noise import Slot
from fewstep.plugins import entries, get
from fewstep.sampling.draw import sample, start
from metrics import quantise

SEEDS = torch.arange(70)
BATCHES = (7, 64, pytest.param(1, marks=pytest.mark.slow))


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(group_config("model", "digits"), "cpu")


@pytest.mark.parametrize("kind", entries("noise"))
@pytest.mark.parametrize("batch", BATCHES)
def test_noise_and_classes_are_bit_equal(model: Model, kind: str, batch: int) -> None:
    """Whatever the batch, and when the run begins again in the middle."""

    def draw(seeds: torch.Tensor) -> list[torch.Tensor]:
        owns = [start(kind, seeds, model.teacher, 1.0, get("task", task).make()) for task in ("class_conditional", "class_conditional_edm")]
        labels = [own.cond.label for own in owns if own.cond.label is not None]
        return [owns[0].x, *labels, owns[0].source.normal(Slot(3), (1, 8, 8))]

    whole = draw(SEEDS)
    parts = zip(*(draw(part) for part in SEEDS.split(batch)))
    resumed = draw(SEEDS[33:])
    for all_at_once, in_parts, rest in zip(whole, parts, resumed):
        assert torch.equal(torch.cat(in_parts), all_at_once)
        assert torch.equal(rest, all_at_once[33:])


@pytest.mark.parametrize("solver", ["heun", "dpmpp_3m", "consistency"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("batch", BATCHES)
def test_digits_agree_in_float32(model: Model, solver: str, scale: float, batch: int) -> None:
    """At least 99% of the images within 1e-4; convolutions of other batch sizes may round differently."""
    grid = make_grid("polynomial", 10, model.teacher.sigma_range)
    plan, denoiser = get("solver", solver).make().plan(grid), guide(model.teacher, scale)
    whole, labels = sample(plan, denoiser, grid.sigmas[0], SEEDS, batch=len(SEEDS))
    parts, part_labels = sample(plan, denoiser, grid.sigmas[0], SEEDS, batch=batch)
    assert torch.equal(labels, part_labels)
    worst = (whole - parts).abs().flatten(1).amax(1)
    assert (worst < 1e-4).float().mean() >= 0.99


@pytest.mark.slow
def test_the_reference_is_fine_enough(model: Model) -> None:
    """The suite's fine-grid solution agrees with 200 heun steps to more than 55 dB after the 8-bit write-out (the cap is 58.9 dB)."""
    suite = expand(group_config("suite", "digits"), 0, "philox")
    own = truth_of(suite, 1.0, model)
    assert isinstance(own, Sampled)
    grid = make_grid("polynomial", 200, model.teacher.sigma_range, "zero")
    plans = (own.job.solver.plan(own.job.grid), get("solver", "heun").make().plan(grid))
    ours, truth = (quantise(sample(plan, model.teacher, own.job.sigma_max, SEEDS)[0].numpy()) for plan in plans)
    assert 10 * np.log10(4 / np.square(ours - truth).mean()) > 55


def test_nfe_one_is_the_class_mean(model: Model) -> None:
    """D at sigma_max knows nothing but the class: its distance to the class mean is under a tenth of the pixel range (root mean square)."""
    grid = make_grid("polynomial", 1, model.teacher.sigma_range, "zero")
    plan = get("solver", "euler").make().plan(grid)
    images, labels = sample(plan, model.teacher, grid.sigmas[0], SEEDS)
    means = torch.from_numpy(model.data.class_means())[labels]
    assert (images - means).square().mean().sqrt() < 0.2
    assert torch.equal(labels, SEEDS % 10)
