"""Streams: what is compared when, what is refused, and what the cache keeps of them."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import storage
from fewstep.data.images import split
from fewstep.data.kept import cached, forget
from fewstep.data.streams import Parts, Stream, parts_folder
from fewstep.errors import UsageError
from support.each import each
from support.registered import put

RNG = np.random.RandomState(0)
LEVELS = RNG.randint(0, 256, (100, 3, 6, 6)).astype(np.uint8)
LABELS = RNG.randint(0, 4, 100).astype(np.int64)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEWSTEP_STATE", str(tmp_path / "state"))
    return tmp_path / "cache"


def reader(levels: np.ndarray = LEVELS, labels: np.ndarray = LABELS) -> Callable[[], Parts]:
    return lambda: ((levels[i : i + 30], labels[i : i + 30]) for i in range(0, 100, 30))


def stream(read: Callable[[], Any], **more: Any) -> Stream:
    return Stream("mine", read, 100, (3, 6, 6), 4, **more)


def with_another(index: int) -> np.ndarray:
    levels = LEVELS.copy()
    levels[index, 0, 0, 0] ^= 1
    return levels


def test_a_start_compares_the_first_part(cache: Path) -> None:
    digest = stream(reader()).data().digest()
    other_labels = LABELS.copy()
    other_labels[0] = 3 - other_labels[0]
    for read in (reader(with_another(5)), reader(labels=other_labels), reader(LEVELS[::-1]), lambda: iter(())):
        with pytest.raises(UsageError, match=r"stream 'mine' begins with other images than when it was first read; .* version than '1'"):
            stream(read).data()
    assert stream(reader(with_another(95))).data().digest() == digest
    with pytest.raises(UsageError, match="gives other images than when it was first read"):
        stream(reader(with_another(95))).check()


def test_what_cannot_be_read_for_now_is_used_as_it_was(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = stream(reader()).data().digest()

    def away() -> Parts:
        raise OSError("the disk is not there")

    assert stream(away).data().digest() == digest
    told = "stream 'mine' cannot be read after 0 of its 100 images (OSError: the disk is not there)"
    assert told in " ".join(capsys.readouterr().err.split())


@each("gone", ["levels", "stream's folder", "cache"])
def test_a_change_is_noticed_when_the_copy_was_deleted(gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEWSTEP_STATE", str(tmp_path / "state"))
    digest = stream(reader()).data().digest()
    (levels,) = (tmp_path / "cache").rglob("levels.npy")
    levels.unlink() if gone == "levels" else shutil.rmtree(levels.parent if gone == "stream's folder" else tmp_path / "cache")
    with pytest.raises(UsageError, match="gives other images than when it was first read"):
        stream(reader(with_another(95))).data()
    assert stream(reader()).data().digest() == digest


def test_a_damaged_copy_is_told_from_a_changed_stream(cache: Path) -> None:
    stream(reader()).data()
    (file,) = cache.rglob("levels.npy")
    levels = np.load(file)
    levels[95] ^= 1
    np.save(file, levels)
    with pytest.raises(UsageError, match=r"gives what it always gave, but its copy in .* is damaged; delete that folder"):
        stream(reader()).check()


def test_all_of_a_stream_is_compared_by_a_command(cache: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    levels = [LEVELS]
    put(monkeypatch, "data", "a_stream_of_mine", lambda: stream(lambda: reader(levels[0])()).data())
    assert storage.main(["check", "data=a_stream_of_mine"]) == 0
    assert "a_stream_of_mine gives what it gave first: 100 images, digest" in capsys.readouterr().err
    levels[0] = with_another(95)
    assert storage.main(["check", "data=a_stream_of_mine"]) == 2
    assert capsys.readouterr().err.startswith("error: stream 'mine' gives other images than when it was first read")
    for args, told in (
        (["check"], "error: say which stream to read again; type data=NAME"),
        (["check", "data=digits"], "error: data set 'digits' is no stream"),
    ):
        assert storage.main(args) == 2
        assert capsys.readouterr().err.startswith(told)


def failing() -> Parts:
    yield LEVELS[:30], LABELS[:30]
    raise RuntimeError("a torn\narchive")


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "list of labels": (
        lambda: iter([(LEVELS, list(LABELS))]),
        r"gives ndarray and list; let it give uint8 levels \[n, 3, 6, 6\]",
    ),
    "no labels": (lambda: iter([(LEVELS, None)]), "gives ndarray and NoneType; let it give"),
    "images alone": (lambda: iter([LEVELS]), "gives ndarray; let it give"),
    "two images": (lambda: iter([LEVELS[:2]]), "gives ndarray; let it give"),
    "nothing": (lambda: None, r"cannot be read after 0 of its 100 images \(TypeError"),
    "a failure": (failing, r"cannot be read after 30 of its 100 images \(RuntimeError: a torn.*archive\); mend what it reads"),
    "text": (lambda: iter([(LEVELS, LABELS.astype(str))]), "gives 100 images with labels <U"),
}


@each("what", REFUSED)
def test_a_stream_of_something_else_is_refused_in_one_line(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEWSTEP_STATE", str(tmp_path / "state"))
    read, told = REFUSED[what]
    with pytest.raises(UsageError, match=told) as caught:
        stream(read).data()
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.rglob("*.npy"), *tmp_path.rglob("*.json")]


@each("count, heldout", [(0, 0), (3, 3), (3, -1)])
def test_a_stream_has_something_to_learn_from(count: int, heldout: int) -> None:
    with pytest.raises(UsageError, match=f"says that it has {count} images, of which {heldout} are held out; let it have at least one"):
        Stream("mine", reader(), count, (3, 6, 6), 4, heldout)


FILES: dict[str, tuple[dict[str, Any], str]] = {
    "text labels": (
        {"images": LEVELS, "labels": LABELS.astype(str)},
        r"0\.npz has labels <U\d+ \[100\] with 100 images; give each",
    ),
    "few labels": ({"images": LEVELS, "labels": LABELS[:9]}, r"0\.npz has labels int64 \[9\] with 100 images"),
    "below zero": ({"images": LEVELS, "labels": LABELS - 1}, r"0\.npz has labels int64 \[100\] with 100 images"),
    "scalar": ({"images": np.uint8(3)}, r"0\.npz has images \[\]; make them \[n, channels, height, width\]"),
    "flat": ({"images": LEVELS[:, 0]}, r"0\.npz has images \[100, 6, 6\]"),
    "no images": ({"labels": LABELS}, r"0\.npz is no file of images"),
    "floats": ({"images": LEVELS / 255}, "gives float64"),
    "objects": ({"images": LEVELS.astype(object)}, r"0\.npz is no file of images"),
    "none at all": ({"images": LEVELS[:0]}, "parts holds no image; a class needs at least two"),
    "one": ({"images": LEVELS[:1]}, "parts holds one image; a class needs at least two"),
    "one of a class": ({"images": LEVELS[:5], "labels": np.array([0, 0, 1, 2, 2])}, "class 1 of .*parts holds one image; a class needs"),
    "a gap": ({"images": LEVELS[:4], "labels": np.array([0, 0, 10**9, 10**9])}, "class 1 of .*parts holds no image"),
}


@each("what", FILES)
def test_a_file_of_parts_of_something_else_is_refused_in_one_line(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEWSTEP_STATE", str(tmp_path / "state"))
    arrays, told = FILES[what]
    (tmp_path / "parts").mkdir()
    np.savez(tmp_path / "parts" / "0.npz", **arrays)
    with pytest.raises(UsageError, match=told) as caught:
        parts_folder(tmp_path / "parts")
    assert "\n" not in str(caught.value)
    np.savez(tmp_path / "parts" / "0.npz", images=np.asfortranarray(LEVELS), labels=LABELS)
    assert sorted(np.unique(parts_folder(tmp_path / "parts").train_y)) == [0, 1, 2, 3]


def test_files_of_other_shapes_are_named(tmp_path: Path, cache: Path) -> None:
    for name, levels in (("0", LEVELS), ("1", LEVELS[:, :1])):
        np.savez(tmp_path / f"{name}.npz", images=levels)
    with pytest.raises(UsageError, match=r"1\.npz has images \[1, 6, 6\], and 0\.npz has \[3, 6, 6\]; make them of one shape"):
        parts_folder(tmp_path)


def test_a_class_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(UsageError, match="class 2 holds one image; a class needs at least two, one to learn from and one held out"):
        split(np.array([0, 0, 1, 1, 2]), 3)
    assert [len(part) for part in split(np.zeros(4), 0)] == [3, 1]


def test_of_a_folder_that_changes_one_copy_stays(tmp_path: Path, cache: Path) -> None:
    """And another folder's, and a stream's, whatever changes."""
    stream(reader()).data()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "0.npz", images=LEVELS)
        parts_folder(tmp_path / name)
    assert len([*cache.rglob("levels.npy")]) == 3
    for i in range(1, 4):
        np.savez(tmp_path / "a" / f"{i}.npz", images=LEVELS[i:])
        assert len(parts_folder(tmp_path / "a").train_x) == round(0.8 * sum(100 - j for j in range(i + 1)))
        assert len([*cache.rglob("levels.npy")]) == 3
    assert len([*(cache / "streams").iterdir()]) == 3
    assert len([*(tmp_path / "state").rglob("*.json")]) == 3


def test_the_cache_is_counted_and_freed(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cached() == []
    stream(reader()).data().digest()
    (tmp_path / "results" / ".store").mkdir(parents=True)
    where = f"results={tmp_path / 'results'}"
    for args in (["du"], ["du", "kind=cache"]):
        assert storage.main([*args, where]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "streams/stream-" in line]
        assert line.split()[0] == "cache"
        assert "its images read again" in line
    assert storage.main(["du", "kind=samples", where]) == 0
    assert "cache" not in capsys.readouterr().out
    assert storage.main(["prune", where]) == 0
    assert [*cache.rglob("levels.npy")]
    assert storage.main(["prune", "kind=cache", where]) == 0
    assert "freed by removing 1 artefacts" in capsys.readouterr().err
    assert cached() == []
    assert len(stream(reader()).data().train_x) == 100


def test_what_another_process_writes_into_the_cache_stays(tmp_path: Path) -> None:
    for name in ("levels.npy", ".labels.npy.writing-1a2b"):
        (tmp_path / name).write_text("")
    forget(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".labels.npy.writing-1a2b"]


def test_a_large_file_of_parts_is_read_some_at_a_time(tmp_path: Path, cache: Path) -> None:
    """Its 25 MB are never in memory."""
    levels = np.zeros((2000, 3, 64, 64), np.uint8)
    levels[:, 0, 0, 0] = np.arange(2000) % 256
    np.savez_compressed(tmp_path / "0.npz", images=levels)
    tracemalloc.start()
    data = parts_folder(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6
    found = np.concatenate([data.train_x[i : i + 400][:, 0, 0, 0] for i in range(0, 1600, 400)])
    assert np.array_equal(np.round((found + 1) * 127.5), split(np.zeros(2000), 0)[0] % 256)
