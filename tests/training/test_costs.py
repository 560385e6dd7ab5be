"""What fits are said to cost: of batches that take long by small ones, in seconds and in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from bench.evaluate.timing import peak_bytes
from bench.jobs.fits import costs
from bench.jobs.fits.students import Student
from bench.jobs.models import load_model
from bench.settings.compose import group_config
from bench.training.engine import Engine, Settings
from fewstep.plugins import get
from methods.recipe import Recipe

MODEL = load_model(group_config("model", "digits"), "cpu")


def test_a_batch_that_takes_long_is_measured_by_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    method, sizes = get("distiller", "sfd").make(batch_size=4096), list[int]()

    def seconds(of: object, *rest: object) -> float:
        sizes.append(of.phases()[0].batch_size)  # type: ignore[attr-defined]
        return 0.1 * sizes[-1]

    monkeypatch.setattr(costs, "_seconds", seconds)
    settings = Settings(0, "cpu")
    assert costs.probe_seconds(method, MODEL.teacher, MODEL.data, settings) == pytest.approx(409.6)
    assert sizes == [costs.FEW]
    sizes.clear()
    short = get("distiller", "sfd").make(batch_size=64)
    assert costs.probe_seconds(short, MODEL.teacher, MODEL.data, settings) == pytest.approx(6.4)
    assert sizes == [costs.FEW, 64]  # which is short enough to be measured itself


def test_a_small_batch_has_whole_microbatches() -> None:
    method = get("distiller", "sfd").make(batch_size=96)
    small, size = costs.smaller(method, costs.FEW, Settings(0, "cpu", Recipe(accumulate=3)))
    assert (small.phases()[0].batch_size, size) == (3 * costs.FEW, 96)
    assert costs.smaller(method, costs.FEW, Settings(0, "cpu", Recipe(accumulate=5)))[0] is method  # the engine refuses it


def test_memory_grows_with_the_batch_and_disk_with_the_phases() -> None:
    few, more, many = (Student("sfd", {"batch_size": size}).estimates(MODEL, "cpu") for size in (16, 64, 256))
    (small,), (middle,), (large,) = few.values(), more.values(), many.values()
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(Student("sfd", {"batch_size": 256}).distiller(), MODEL.teacher, MODEL.data, Path(folder), Settings(0, "cpu"))
        assert large.memory == pytest.approx(peak_bytes(lambda: engine.run(stop_after=1), "cpu"), rel=0.1)
    assert 0 < small.memory < middle.memory < large.memory
    params = sum(p.numel() for p in MODEL.teacher.net.parameters())
    assert small.disk == large.disk == 4 * params
    (halving,) = Student("pd", {"start": 4, "batch_size": 16}).estimates(MODEL, "cpu").values()
    assert halving.disk == 3 * 4 * params


def test_pairs_are_kept_as_images() -> None:
    costs_of = Student("kd", {"count": 100, "teacher_steps": 2}).estimates(MODEL, "cpu")
    assert 4 * 100 * 64 in [cost.disk for cost in costs_of.values()]
