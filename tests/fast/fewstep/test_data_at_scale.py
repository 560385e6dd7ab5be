"""Sets that are read where they are indexed: arrays, facts that are kept, streams, and augmentation."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.jobs.models import load_data
from fewstep.cond import NULL
from fewstep.data import folders, recognised, streams
from fewstep.data.arrays import Joined, Picked, Scaled, class_means, parts, pixel_std
from fewstep.data.augment import Flipped
from fewstep.data.cifar10 import cifar10
from fewstep.data.folders import image_folder
from fewstep.data.forms.batches import BINARY as FOLDER
from fewstep.data.forms.batches import RECORD, names_of
from fewstep.data.images import ImageData
from fewstep.data.kept import Kept, cache_folder
from fewstep.data.pairs import PairData
from fewstep.data.streams import Parts, Stream
from fewstep.errors import UsageError
from fewstep.noise import Rng
from support.each import each

RNG = np.random.RandomState(0)
LEVELS = RNG.randint(0, 256, (3001, 3, 7, 5)).astype(np.uint8)
LABELS = RNG.randint(0, 4, 3001).astype(np.int64)
IMAGES = LEVELS.astype(np.float32) / 127.5 - 1


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEWSTEP_STATE", str(tmp_path / "state"))
    return tmp_path / "cache"


def test_images_are_the_same_however_they_are_held() -> None:
    order = RNG.permutation(3001)
    for found, wanted in (
        (Scaled(LEVELS), IMAGES),
        (Picked(Scaled(LEVELS), order), IMAGES[order]),
        (Joined((Scaled(LEVELS[:1000]), Scaled(LEVELS[1000:1001]), IMAGES[1001:])), IMAGES),
    ):
        assert found.shape == IMAGES.shape
        for index in (slice(None), slice(990, 1010), slice(0, 3001, 7), order[:50], LABELS == 2, np.array([-1, 0])):
            assert np.array_equal(found[index], wanted[index])
            assert found[index].dtype == np.float32
        assert np.array_equal(np.concatenate([*parts(found, 500)]), wanted)
    with pytest.raises(IndexError):
        Joined((IMAGES,))[np.array([3001])]


@each("leaf", [100, 4096, 10**7])
def test_the_standard_deviation_in_parts_is_numpy_s_to_the_last_bit(leaf: int) -> None:
    assert pixel_std(Scaled(LEVELS), leaf) == float(IMAGES.astype(np.float64).std())


def test_class_means_in_parts_are_numpy_s_to_the_last_bit() -> None:
    wanted = np.stack([IMAGES[c == LABELS].mean(axis=0) for c in range(4)])
    assert np.array_equal(class_means(Scaled(LEVELS), LABELS, 4), wanted)
    assert np.isnan(class_means(Scaled(LEVELS), LABELS, 5)[4]).all()


def filed(folder: Path) -> ImageData:
    """A set in a file of levels, whose facts are kept beside it."""
    file = folder / "levels.npy"
    if not file.exists():
        np.save(file, LEVELS)
    x = Scaled(np.load(file, mmap_mode="r"))
    return ImageData("filed", 4, Picked(x, np.arange(2500)), LABELS[:2500], Picked(x, np.arange(2500, 3001)), LABELS[2500:]).beside([file])


def test_facts_are_computed_once_and_again_when_the_files_change(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ImageData("filed", 4, IMAGES[:2500], LABELS[:2500], IMAGES[2500:], LABELS[2500:])
    data, without = filed(tmp_path), plain.unlabelled().digest()
    assert (data.digest(), data.sigma_data) == (plain.digest(), plain.sigma_data)
    assert (tmp_path / ".fewstep-filed.json").is_file()
    assert data.unlabelled().digest() == without != plain.digest()

    def forbidden(*args: object) -> Iterator[np.ndarray]:
        raise AssertionError("the set was read again")

    with monkeypatch.context() as patch:
        patch.setattr("fewstep.data.images.parts", forbidden)
        patch.setattr("fewstep.data.images.pixel_std", forbidden)
        again = filed(tmp_path)
        assert (again.digest(), again.sigma_data) == (plain.digest(), plain.sigma_data)
        assert again.unlabelled().digest() == without
        with pytest.raises(AssertionError):
            replace(again, train_x=IMAGES[:2500]).digest()  # other arrays have facts of their own
    changed = LEVELS.copy()
    changed[0, 0, 0, 0] ^= 1
    np.save(tmp_path / "levels.npy", changed)
    assert filed(tmp_path).digest() != plain.digest()


def test_facts_go_to_the_cache_where_the_data_s_folder_cannot_be_written(tmp_path: Path, cache: Path) -> None:
    kept = Kept("stamp", (tmp_path / "file" / "facts.json", cache / "facts.json"))
    (tmp_path / "file").write_text("no folder")
    asked: list[str] = []

    def compute() -> str:
        asked.append("")
        return "value"

    assert [kept.of("fact", compute), kept.of("fact", compute)] == ["value"] * 2
    assert len(asked) == 1
    (cache / "facts.json").write_text("{")  # which is no reason to fail
    assert kept.of("fact", compute) == "value"
    nowhere = Kept("stamp", (tmp_path / "file" / "facts.json",))
    assert [nowhere.of("fact", compute), nowhere.of("fact", compute)] == ["value"] * 2


def test_a_cache_that_others_may_write_to_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, mode in (("own", 0o700), ("shared", 0o777)):
        monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / name))
        (tmp_path / name).mkdir()
        os.chmod(tmp_path / name, mode)
        assert (cache_folder("x") is None) == (name == "shared")
    monkeypatch.setenv("FEWSTEP_CACHE", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    assert cache_folder() is None
    assert not (tmp_path / "nobody").exists()


def reader(count: int = 3001, levels: np.ndarray = LEVELS, step: int = 700) -> Callable[[], Parts]:
    return lambda: ((levels[i : min(count, i + step)], LABELS[i : min(count, i + step)]) for i in range(0, count, step))


def streamed(read: Callable[[], Parts], version: str = "1") -> Stream:
    return Stream("mine", read, 3001, (3, 7, 5), 4, heldout=500, version=version)


def test_a_stream_is_read_once_and_is_then_a_set_like_any_other(cache: Path) -> None:
    readings: list[int] = []

    def counted() -> Parts:
        readings.append(0)
        yield next(parts := reader()())
        if len(readings) > 1:
            raise AssertionError("all of it was read again")
        yield from parts

    plain = ImageData("mine", 4, IMAGES[:2501], LABELS[:2501], IMAGES[2501:], LABELS[2501:])
    for _ in range(2):
        data = streamed(counted).data()
        assert data.digest() == plain.digest()
        assert torch.equal(data.draw(8, Rng((1,))).x0, plain.draw(8, Rng((1,))).x0)
        assert np.array_equal(data.heldout_x[:], plain.heldout_x)
    assert len(readings) == 2  # of which the second gave one part
    streamed(reader(step=33)).check()  # the size of parts does not matter


REFUSED = {
    "ends early": (reader(2100), r"stream 'mine' ended after 2100 of the 3001 images that it says it has; read it again; nothing was kept"),
    "goes on": (lambda: iter([(LEVELS, LABELS), (LEVELS[:1], LABELS[:1])]), "goes on after the 3001 images"),
    "floats": (lambda: iter([(IMAGES, LABELS)]), r"gives float32 \[3001, 3, 7, 5\]; let it give uint8 levels \[n, 3, 7, 5\]"),
    "other shape": (lambda: iter([(LEVELS[:, :1], LABELS)]), r"gives uint8 \[3001, 1, 7, 5\]"),
    "few labels": (lambda: iter([(LEVELS, LABELS[:4])]), r"gives 3001 images with labels int64 \[4\]"),
    "labels": (lambda: iter([(LEVELS, LABELS + 1)]), "gives labels from 1 to 4 and says that it has 4 classes"),
}


@each("what", REFUSED)
def test_a_stream_that_is_not_what_it_says_is_refused_in_one_line(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / what))
    monkeypatch.setenv("FEWSTEP_STATE", str(tmp_path / "state"))
    read, told = REFUSED[what]
    with pytest.raises(UsageError, match=told) as caught:
        streamed(read).data()
    assert "\n" not in str(caught.value)
    assert not [*(tmp_path / what).rglob("*levels*")]
    assert streamed(reader()).data().digest()  # nothing of the failure is left


def test_a_stream_that_changes_between_readings_is_noticed_and_nothing_is_lost(cache: Path) -> None:
    first = streamed(reader()).data().digest()
    changed = LEVELS.copy()
    changed[3000, 2, 6, 4] ^= 1
    other = streamed(reader(levels=changed))
    assert other.data().digest() == first  # of which the first part is read again
    with pytest.raises(UsageError, match=r"stream 'mine' gives other images than when it was first read .*another version than '1'"):
        other.check()
    for name in ("labels.npy", "levels.npy"):
        (file,) = cache.rglob(name)
        file.unlink()
        with pytest.raises(UsageError, match="gives other images than when it was first read"):
            other.data()
    assert streamed(reader()).data().digest() == first
    assert streamed(reader(levels=changed), version="2").data().digest() == first  # the image that changed is held out
    with pytest.raises(UsageError, match="gives other images"):
        streamed(reader(), version="2").check()


def test_a_stream_without_a_cache_is_read_into_a_nameless_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "cache_folder", lambda *names: None)
    data = streamed(reader()).data()
    assert np.array_equal(data.train_x[:], IMAGES[:2501])


def test_a_folder_of_parts_is_a_data_set(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    for i in range(3):
        np.savez(folder / f"{i}.npz", images=LEVELS[i * 100 : i * 100 + 100], labels=LABELS[i * 100 : i * 100 + 100])
    data = load_data(f"{folder}/")
    assert (len(data.train_x), len(data.heldout_x), data.shape, data.classes) == (240, 60, (3, 7, 5), 4)
    assert load_data(f"{folder}/").digest() == data.digest()
    found = [image.tobytes() for part in (data.train_x, data.heldout_x) for image in part[:]]
    assert sorted(found) == sorted(image.tobytes() for image in IMAGES[:300])
    np.savez(folder / "3.npz", images=LEVELS[300:310])
    assert len(load_data(f"{folder}/").train_x) > 240
    (folder / "4.npz").write_text("no archive")
    with pytest.raises(UsageError, match=r"4\.npz is no file of images .*write it with numpy\.savez") as caught:
        load_data(f"{folder}/")
    assert "\n" not in str(caught.value)


def test_flips_belong_to_the_source() -> None:
    data = ImageData("plain", 4, Scaled(LEVELS), LABELS, Scaled(LEVELS[:9]), LABELS[:9])
    source = Flipped(data)
    assert source.digest() != data.digest()
    plain, one, same, other = data.draw(400, Rng((1,))), *(source.draw(400, Rng(names)) for names in ((1,), (1,), (2,)))
    assert torch.equal(one.x0, same.x0)
    assert not torch.equal(one.x0, other.x0)
    assert torch.equal(one.cond.label, plain.cond.label)  # pyright: ignore[reportArgumentType]
    mirrored = (one.x0 == plain.x0.flip(-1)).flatten(1).all(1)
    assert ((one.x0 == plain.x0).flatten(1).all(1) ^ mirrored).all()
    assert 150 < int(mirrored.sum()) < 250
    pairs = PairData(np.zeros((8, 1, 4, 4), np.float32), lambda seeds: NULL, "")
    with pytest.raises(UsageError, match="leave augment out"):
        Flipped(pairs).draw(4, Rng((1,)))


def test_what_goes_through_a_whole_set_holds_little_of_it(tmp_path: Path, cache: Path) -> None:
    """A digest, sigma_data and class means of 36 MB of floats."""
    levels = np.lib.format.open_memmap(tmp_path / "many.npy", "w+", np.uint8, (3000, 3, 32, 32))
    data = ImageData("many", 4, Scaled(levels), LABELS[:3000], Scaled(levels[:10]), LABELS[:10])
    tracemalloc.start()
    data.digest(), data.draw(16, Rng((0,)))
    digest_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    assert data.sigma_data == 0
    std_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(digest_peak, std_peak) < 16e6


def test_cifar10_stays_on_the_disk(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images are strided views of the files; its numbers are those of all of it in memory; the second start reads them."""
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    monkeypatch.setattr(recognised, "_published", dict)  # for a set of a few images
    (tmp_path / FOLDER).mkdir()
    records = RNG.randint(0, 256, (6, 20, RECORD)).astype(np.uint8)
    records[..., 0] %= 10
    for name, part in zip(names_of(FOLDER), records):
        part.tofile(tmp_path / FOLDER / name)
    data = cifar10()
    assert isinstance(data.train_x, Joined)
    for piece in data.train_x.pieces:
        assert isinstance(piece, Scaled)
        assert isinstance(piece.levels, np.memmap)
        assert not piece.levels.flags.owndata
    images = records[:5].reshape(-1, RECORD)[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 127.5 - 1
    labels = records[:5].reshape(-1, RECORD)[:, 0].astype(np.int64)
    assert np.array_equal(data.train_x[:], images)
    assert data.digest() == hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    assert data.sigma_data == float(images.astype(np.float64).std())
    monkeypatch.setattr("fewstep.data.images.parts", None)
    assert cifar10().digest() == data.digest()


def test_a_folder_of_images_is_decoded_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(10):
        Image.fromarray(LEVELS[i].transpose(1, 2, 0)).save(folder / f"{i}.png")
    first = image_folder(folder)
    digest = first.digest()
    with monkeypatch.context() as patch:
        patch.setattr(folders, "read_image", None)
        again = image_folder(folder)
        assert again.digest() == digest
        assert np.array_equal(again.train_x[:], first.train_x[:])
        assert again.how == first.how
    Image.fromarray(255 - LEVELS[1].transpose(1, 2, 0)).save(folder / "1.png")  # the first is held out
    assert image_folder(folder).digest() != digest
    assert len([*cache.rglob("*.npy")]) == 1  # the stale one is gone
    monkeypatch.setattr(folders, "cache_folder", lambda *names: None)
    assert image_folder(folder).digest() != digest
