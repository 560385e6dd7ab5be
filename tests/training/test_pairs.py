"""Stored pairs: their address, interrupted making, sharing by seeds, and what a batch of them is."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from bench.jobs.fits import pairs as module
from bench.jobs.fits.pairs import TeacherPairs, probe_pairs
from bench.jobs.fits.students import Student
from bench.jobs.models import Model
from bench.store.artefacts import Store
from bench.store.parts import stored, work_folder, write_part
from fewstep.cond import NULL
from fewstep.data.pairs import PairData, pair_seeds
from fewstep.errors import UsageError
from fewstep.grid import make_grid
from fewstep.noise import LATENT, PhiloxNoise, Rng
from fewstep.plugins import get
from fewstep.sampling.draw import sample
from methods.distiller import Pairs
from support.each import each
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
    images, labels = sample(get("solver", "heun").make().plan(grid), model.teacher, 80.0, pair_seeds(0, 50))
    assert np.array_equal(data.images[:], images)
    assert record["passes"] == {"pairs": {"teacher": 150}}  # Heun's two steps to 0 are three passes
    assert record["seconds"] > 0
    batch = data.draw(40, Rng((1,)))
    assert batch.noise is not None
    every = PhiloxNoise(pair_seeds(0, 50)).normal(LATENT, model.teacher.shape)
    for i in range(40):
        (index,) = (images == batch.x0[i]).flatten(1).all(1).nonzero().flatten().tolist()
        assert torch.equal(batch.noise[i], every[index])
        assert batch.cond.label is None if not classes else batch.cond.label[i] == labels[index]
    assert torch.equal(data.draw(40, Rng((1,))).x0, batch.x0)
    assert not torch.equal(data.draw(40, Rng((2,))).x0, batch.x0)


def test_evaluations_use_other_seeds() -> None:
    assert pair_seeds(0, 3).tolist() == [2**40, 2**40 + 1, 2**40 + 2]
    assert pair_seeds(0, 10**6).unique().numel() == 10**6


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
    assert np.array_equal(data.images[:], whole.images[:])
    assert record["passes"]["pairs"]["teacher"] == 150
    assert not list((store.root / "unfinished").iterdir())
    made(store)  # nothing more is made
    assert len(parts) == 4


def changed(path: Path, what: str) -> None:
    """A part that was torn, or filled with other numbers by somebody who left its checksum."""
    if what == "torn":
        path.write_bytes(path.read_bytes()[:100])
        return
    with safe_open(path, "numpy") as f:
        tensors, told = {name: np.full_like(f.get_tensor(name), 7.0) for name in f.keys()}, f.metadata()  # noqa: SIM118
    save_file(tensors, path, told)


@each("what", ["torn", "other numbers"])
@pytest.mark.parametrize("finished", [False, True])
def test_a_part_that_was_changed_is_made_again_and_only_that_one(what: str, finished: bool, tmp_path: Path, monkeypatch) -> None:
    """Of pairs that are not complete, and of those that are."""
    monkeypatch.setattr(module, "PART", 20)
    store, fit, model, said, parts = Store(tmp_path / what), TeacherPairs(PAIRS), tiny_model(), list[str](), list[int]()
    whole, original = made(store)[1].images[:], TeacherPairs._made
    place = store.path("fit", fit.key(model))
    if not finished:
        (place / "record.json").unlink()
        place = place.rename(work_folder(store, "fit", fit.key(model)))
    changed(place / "pairs-00000020.safetensors", what)

    def counted(self, model, first, last, device):
        parts.append(first)
        return original(self, model, first, last, device)

    with monkeypatch.context() as patch:
        patch.setattr(TeacherPairs, "_made", counted)
        fit.ensure(model, store, "cpu", said.append)
    assert parts == [20]
    assert any(line.startswith("corrupt part: ") for line in said)
    assert np.array_equal(fit.load(model, store).images[:], whole)


def test_pairs_in_one_file_are_those_in_parts(tmp_path: Path) -> None:
    """As they were stored before there were parts: read as they are, and made again where they are damaged."""
    model, fit = tiny_model(), TeacherPairs(PAIRS)
    record, data = made(Store(tmp_path / "new"))
    store, key = Store(tmp_path / "old"), fit.key(model)

    folder = work_folder(store, "fit", key)
    folder.mkdir(parents=True)
    save_file({"images": data.images[:]}, folder / "pairs.safetensors")
    store.adopt("fit", key, folder, {"spec": record["spec"], "train_seconds": {"pairs": 3.0}, "passes": record["passes"]})
    old, found = made(store)
    assert fit.seconds(old, 2) == 3.0
    assert torch.equal(found.draw(40, Rng((1,))).x0, data.draw(40, Rng((1,))).x0)
    (store.path("fit", key) / "pairs.safetensors").write_bytes(b"torn")
    assert torch.equal(made(store)[1].draw(40, Rng((1,))).x0, data.draw(40, Rng((1,))).x0)
    assert [path.name for path in store.path("fit", key).glob("*.safetensors")] == ["pairs-00000000.safetensors"]


def test_memory_does_not_grow_with_the_count_of_pairs(tmp_path: Path) -> None:
    """Neither for batches of them nor for having them: 12 parts of 4 MB."""
    folder, image = tmp_path, np.ones((1000, 1, 32, 32), np.float32)
    for i in range(12):
        write_part(folder / f"pairs-{i * 1000:08d}.safetensors", {"images": image * i}, {})
    tracemalloc.start()
    data = PairData(stored(folder, "pairs", "images"), lambda seeds: NULL, "")
    for i in range(20):
        batch = data.draw(64, Rng((i,)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    index = Rng((19,)).integers(12000, (64,))
    assert torch.equal(batch.x0[:, 0, 0, 0], (index // 1000).float())
    assert peak < 4e6


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
    seconds = store.read("fit", pairs.key(model))["seconds"]
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
