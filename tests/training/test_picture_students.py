"""Students that are told pictures learn to answer them: on a mixture whose images the pictures nearly tell apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.training.engine import Engine, Settings
from fewstep.grid import make_grid
from fewstep.noise import Rng
from fewstep.plugins import get
from fewstep.sampling.runner import end_of
from fewstep.students import as_student
from fewstep.wrappers import Prior
from methods.recipe import Recipe
from support.tiny import data_of, mixture_data, network

BUDGET = {"batches": 250, "batch_size": 64, "lr": 3e-3}


def error(student, method, batch, steps: int) -> float:
    """RMS error of the answers in so many steps."""
    own = method.sampling()
    grid = make_grid(own.grid, steps, own.range_in(student.sigma_range), own.end)
    x = grid.sigmas[0] * Rng((5,)).normal(batch.x0.shape)
    with torch.inference_mode():
        found = end_of(get("solver", own.solver).make().plan(grid), student, x, cond=batch.cond)
    return float((found - batch.x0).square().mean().sqrt())


@pytest.mark.parametrize(("name", "options", "steps"), [("codi", {}, 1), ("pe_codi", {}, 2), ("finetune", {}, 8)])
def test_a_student_answers_what_its_prior_cannot(name: str, options: dict, steps: int, tmp_path: Path) -> None:
    """With less than half of the error of the picture itself, which its prior does not come near."""
    _, images = mixture_data()
    teacher = Prior(network(images), images.shape[0])
    method = get("distiller", name).make(**BUDGET, **options)
    data = data_of(method, teacher, images)
    batch = data.draw(256, Rng((9,)))
    assert batch.cond.image is not None
    picture = float((batch.cond.image - batch.x0).square().mean().sqrt())
    result = Engine(method, teacher, data, tmp_path, Settings(progress=False)).run()
    answered = as_student(method, teacher, result.exports[method.phase_for(steps)], steps, "weights")
    assert error(answered, method, batch, steps) < picture / 2
    assert error(teacher, method, batch, steps) > picture


def test_a_frozen_part_keeps_its_weights(tmp_path: Path) -> None:
    """Of a conditional model that is distilled further, with its branch as it was."""
    _, images = mixture_data()
    prior = Prior(network(images), images.shape[0])
    first = get("distiller", "finetune").make(batches=3, batch_size=16)
    data = data_of(first, prior, images)
    weights = Engine(first, prior, data, tmp_path / "first", Settings(progress=False)).run().exports["finetune"]
    teacher = as_student(first, prior, weights, 1, "weights")
    method = get("distiller", "cd").make(batches=3, batch_size=16)
    for recipe, part, kept in (
        (Recipe(freeze="branch"), "branch.", True),
        (Recipe(freeze="base"), "base.", True),
        (Recipe(), "branch.", False),
    ):
        folder = tmp_path / f"{recipe.freeze or 'all'}"
        found = (
            Engine(method, teacher, data, folder, Settings(progress=False, recipe=replace(recipe, condition_dropout=0.0)))
            .run()
            .exports["cd"]
        )
        same = [torch.equal(found[key], value) for key, value in weights.items() if key.startswith(part)]
        assert all(same) if kept else not all(same)
        assert not all(torch.equal(found[key], value) for key, value in weights.items())
