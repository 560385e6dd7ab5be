"""Stored pairs: their address, interrupted making, sharing by seeds, and what a batch of them is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.jobs.fits import pairs as module
from bench.jobs.fits.pairs import TeacherPairs, probe_pairs
from bench.jobs.fits.students import Student
from bench.jobs.models import Model
from bench.store.artefacts import Store
from fewstep.data.pairs import PairData, pair_seeds
from fewstep.errors import UsageError
from fewstep.grid import make_grid
from fewstep.noise import LATENT, PhiloxNoise, Rng
from fewstep.plugins import get
from fewstep.sampling.draw import sample
from methods.distiller import Pairs
from support.tiny import mixture_data, network

PAIRS = Pairs("heun", 2, "polynomial", "zero", 50)


def tiny_model(classes: int = 2, digest: str = "a") -> Model:
    _, data = mixture_data()
    data = replace(data, classes=classes)
    return Model("tiny", network(data), digest, data, {})


def made(store: Store, pairs: Pairs = PAIRS, model: Model | None = None) -> tuple[dict, PairData]:
    fit, model = TeacherPairs(pairs), model or tiny_model()
    return fit.ensure(model, store, "cpu", lambda text: None), fit.load(model, store)


@pytest.mark.parametrize("classes", [2, 0])
def test_pairs_are_what_the_teacher_makes_of_their_noise(classes: int, tmp_path: Path) -> None:
    """By the same sampler as everything else, from seeds of their own; a batch holds the noise again, and the label."""
    model = tiny_model(classes)
    record, data = made(Store(tmp_path), model=model)
    grid = make_grid("polynomial", 2, model.teacher.sigma_range, "zero")
    images, labels = sample(get("solver", "heun").make().plan(grid), model.teacher, 80.0, pair_seeds(50))
    assert torch.equal(data.images, images)
    assert record["passes"] == {"pairs": {"teacher": 150}}  # Heun's two steps to 0 are three passes
    assert record["train_seconds"]["pairs"] > 0
    batch = data.draw(40, Rng((1,)))
    assert batch.noise is not None
    every = PhiloxNoise(data.seeds).normal(LATENT, model.teacher.shape)
    for i in range(40):
        (index,) = (images == batch.x0[i]).flatten(1).all(1).nonzero().flatten().tolist()
        assert torch.equal(batch.noise[i], every[index])
        assert batch.cond.label is None if not classes else batch.cond.label[i] == labels[index]
    assert torch.equal(data.draw(40, Rng((1,))).x0, batch.x0)
    assert not torch.equal(data.draw(40, Rng((2,))).x0, batch.x0)


def test_evaluations_use_other_seeds() -> None:
    assert pair_seeds(3).tolist() == [2**40, 2**40 + 1, 2**40 + 2]
    assert pair_seeds(10**6).unique().numel() == 10**6


def test_the_address_depends_on_what_can_change_the_pairs() -> None:
    keys = {TeacherPairs(PAIRS).key(tiny_model())}
    for name, value in (("solver", "euler"), ("steps", 3), ("count", 51), ("end", "sigma_min"), ("grid", "logsnr")):
        keys.add(TeacherPairs(replace(PAIRS, **{name: value})).key(tiny_model()))
    keys.add(TeacherPairs(PAIRS).key(tiny_model(digest="b")))
    assert len(keys) == 7
    assert TeacherPairs(replace(PAIRS)).key(tiny_model()) in keys


def test_interrupted_making_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that were made stay; the result is that of an uninterrupted run; nothing is left behind."""
    monkeypatch.setattr(module, "PART", 20)  # parts of 20, 20 and 10
    whole = made(Store(tmp_path / "whole"))[1]
    store, original, parts = Store(tmp_path / "cut"), TeacherPairs._made, []

    def interrupted(self, model, first, last, device):
        parts.append(first)
        if len(parts) == 2:
            raise KeyboardInterrupt
        return original(self, model, first, last, device)

    monkeypatch.setattr(TeacherPairs, "_made", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(store)
    assert not store.has("fit", TeacherPairs(PAIRS).key(tiny_model()))
    record, data = made(store)
    assert parts == [0, 20, 20, 40]
    assert torch.equal(data.images, whole.images)
    assert record["passes"]["pairs"]["teacher"] == 150
    assert not list((store.root / "training").iterdir())
    made(store)  # nothing more is made
    assert len(parts) == 4


def test_students_of_all_seeds_share_their_pairs(tmp_path: Path) -> None:
    store, model, said = Store(tmp_path), tiny_model(), []
    options = {"batches": 2, "batch_size": 4, "count": 30, "teacher_steps": 2}
    students = [Student("kd", options, seed) for seed in (0, 1)] + [Student("kd", options | {"loss": "l2"})]
    records = [student.ensure(model, store, "cpu", said.append) for student in students]
    assert sum("making 30 pairs" in line for line in said) == 1
    assert len({student.key(model) for student in students}) == 3
    assert len({record["spec"]["pairs"] for record in records}) == 1
    pairs = students[0].pairs()
    assert pairs is not None
    seconds = store.read("fit", pairs.key(model))["train_seconds"]["pairs"]
    assert all(record["start_seconds"] == seconds for record in records)  # their time is in every student's
    other = Student("kd", options | {"count": 31})
    assert other.key(model) != students[0].key(model)
    assert pairs.key(model) in students[0].estimates(model, "cpu")


def test_absent_pairs_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"50 pairs of noise and the teacher's samples in 2 steps of heun are not in .*; run the sweep"):
        TeacherPairs(PAIRS).load(tiny_model(), Store(tmp_path))


def test_broken_samples_are_an_error(tmp_path: Path) -> None:
    """A teacher that makes NaN must not become targets."""
    model = tiny_model()
    torch.nn.init.constant_(model.teacher.net.conv_out.bias, float("nan"))
    with pytest.raises(UsageError, match=r"50 of 50 of the teacher's samples are not finite; check the teacher"):
        made(Store(tmp_path), model=model)


def test_probes_have_the_shapes_of_pairs() -> None:
    batch = probe_pairs(mixture_data()[1]).draw(4, Rng((0,)))
    assert batch.noise is not None
    assert batch.noise.shape == batch.x0.shape == (4, 1, 4, 4)
    assert batch.cond.label is not None
