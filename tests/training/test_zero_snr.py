"""Students of teachers whose highest level stands for zero SNR: their grids begin at EDM's 80, unless they are the teacher's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.jobs.models import Model
from bench.jobs.resolve import resolve
from bench.jobs.suite import Suite
from bench.store.cell import Cell
from bench.training.engine import Engine, Settings
from fewstep.denoiser import Preconditioned
from fewstep.plugins import entries, get
from fewstep.precond import ProcessPrecond
from fewstep.schedule import Cosine
from fewstep.wrappers import Prior
from methods.distiller import bounded
from support.each import each
from support.forms import RANGE
from support.tiny import data_of, made, mixture_data, network, pictured

SUITE = Suite("test", 4, 0, "philox", "dpmpp_2m", 4, {"pd": {"grid": "cosine"}, "gd": {"grid": "cosine"}}, ())
STEPS = {"sfd": 2, "trajectory": 2, "dmd2": 2}


def teacher_and_data():
    _, data = mixture_data()
    return replace(network(data), precond=ProcessPrecond(Cosine(), "v"), sigma_range=RANGE), data


def model() -> Model:
    teacher, data = teacher_and_data()
    return Model("cosine", teacher, "0" * 64, data, {})


@pytest.mark.parametrize("name", sorted(entries("distiller")))
def test_no_network_is_asked_above_80(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a batch of each phase, with the pairs that it learns from."""
    teacher, data = teacher_and_data()
    asked, called = list[float](), Preconditioned.__call__

    def recorded(self: Preconditioned, x: torch.Tensor, sigma, *rest):
        asked.append(float(np.max(np.asarray(sigma))))
        return called(self, x, sigma, *rest)

    method = made(name, batches=1, batch_size=8, start=1, count=8, steps=STEPS.get(name, 1), fewest=2, most=2, first=4, fake_updates=1)
    monkeypatch.setattr(Preconditioned, "__call__", recorded)
    teacher = Prior(teacher, data.shape[0]) if pictured(name) else teacher
    source = data_of(method, teacher, data)
    Engine(method, teacher, source, tmp_path, Settings(progress=False)).run()
    assert asked
    assert max(asked) <= 80 * (1 + 1e-12)


@each(("name", "highest"), [("ect", 80.0), ("sfd", 80.0), ("kd", 80.0), ("pd", RANGE[1]), ("gd", RANGE[1])])
def test_samples_start_where_the_training_did(name: str, highest: float) -> None:
    job = resolve(Cell(name, nfe=1), SUITE, model())
    assert job.sigma_max == pytest.approx(highest)


def test_the_lower_start_is_part_of_the_address() -> None:
    """Only where it is lower: addresses of students of other teachers are what they were."""
    own, other = model(), model()
    job = resolve(Cell("kd", nfe=1), SUITE, own)
    assert job.student is not None
    assert job.student.spec(own)["sigma_max"] == 80.0
    assert job.student.pairs().spec(own)["sigma_max"] == 80.0
    other = replace(own, teacher=replace(own.teacher, sigma_range=(0.002, 80.0)))
    assert "sigma_max" not in job.student.spec(other)
    assert "sigma_max" not in job.student.pairs().spec(other)
    assert "sigma_max" not in resolve(Cell("pd", nfe=1), SUITE, own).student.spec(own)


@pytest.mark.parametrize("sigma_range", [(0.002, 80.0), (0.03, 14.6), (0.002, 700.0)])
def test_other_ranges_are_left_alone(sigma_range: tuple[float, float]) -> None:
    assert bounded(sigma_range) == sigma_range
    assert get("distiller", "cd").make().sampling().range_in(sigma_range) == sigma_range
