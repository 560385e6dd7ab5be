"""The digit teacher without labels: what it computes, what its students are, and its reference rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench import export
from bench.evaluate.judge import make_judge
from bench.evaluate.reference_rows import naive_images
from bench.export import job_of
from bench.jobs.models import Model, load_model
from bench.jobs.resolve import resolve
from bench.jobs.samples import Bound, ensure_samples
from bench.jobs.suite import Suite
from bench.settings.compose import group_config
from bench.store.artefacts import Store
from bench.store.cell import Cell
from fewstep.cond import Cond
from fewstep.errors import UsageError
from fewstep.noise import Rng
from fewstep.students import load_student


@pytest.fixture(scope="module")
def models() -> tuple[Model, Model]:
    plain, labelled = (load_model(group_config("model", name), "cpu") for name in ("digits_unconditional", "digits"))
    return plain, labelled


def suite_of(method: str = "cd", **options) -> Suite:
    return Suite("tiny", 20, 0, "philox", "dpmpp_2m", 4, {method: options}, ())


def test_it_is_the_null_label_of_the_same_network_at_an_address_of_its_own(models: tuple[Model, Model]) -> None:
    plain, labelled = models
    assert (plain.teacher.classes, labelled.teacher.classes) == (0, 10)
    x = Rng((1,)).normal((3, 1, 8, 8))
    null = Cond(label=torch.full((3,), 10))
    with torch.no_grad():
        assert torch.equal(plain.teacher(x, 1.0), labelled.teacher(x, 1.0, null))
    assert plain.digest != labelled.digest
    assert plain.data.digest() != labelled.data.digest()
    assert np.array_equal(plain.data.train_x[:], labelled.data.train_x[:])
    assert plain.data.draw(4, Rng((2,))).cond.label is None
    cell = Cell("teacher", "euler", "polynomial", "sigma_min", nfe=4)
    assert resolve(cell, suite_of(), plain).key != resolve(cell, suite_of(), labelled).key


def test_its_students_have_no_classes_and_travel(models: tuple[Model, Model], tmp_path: Path) -> None:
    plain, _ = models
    suite = suite_of(batches=2, batch_size=4)
    job, store = job_of(Cell("cd"), 2, suite, plain), Store(tmp_path)
    job.student.ensure(plain, store, "cpu", lambda text: None)
    made = ensure_samples(Bound(job, plain, store, "cpu"), 20, lambda text: None)
    assert not made.labels.any()
    export.export(job, plain, store, tmp_path / "out")
    student = load_student(tmp_path / "out")
    assert student.denoiser.classes == 0
    assert torch.equal(student.sample(torch.arange(20))[0], torch.from_numpy(made.images[:]))
    for refused in (Cell("teacher", "euler", "polynomial", "sigma_min", nfe=8, guidance=2.0), Cell("cd", nfe=4, guidance=2.0)):
        with pytest.raises(UsageError, match="guidance 2 needs classes, and model digits_unconditional has none; use guidance=1"):
            resolve(refused, suite, plain)
    with pytest.raises(UsageError, match="gd distils guidance by class, and this teacher has no classes; use pd"):
        job_of(Cell("gd"), 2, suite_of("gd"), plain).student.ensure(plain, store, "cpu", lambda text: None)


def test_reference_rows_are_of_all_images_alike(models: tuple[Model, Model]) -> None:
    plain, _ = models
    judge = make_judge(plain.data, plain.teacher, set())
    mean = naive_images("class_means", plain.data, suite_of().samples, suite_of().seed, judge.reference)[0][:]
    np.testing.assert_allclose(mean, plain.data.train_x[:].mean(axis=0)[None].repeat(20, 0), atol=1e-6)  # float32 means of 1438 pixels
    real = naive_images("real_train", plain.data, suite_of().samples, suite_of().seed, judge.reference)[0][:]
    known = {image.tobytes() for image in judge.reference.train_x[:]}
    assert len({image.tobytes() for image in real}) > 10
    assert all(image.tobytes() in known for image in real)
