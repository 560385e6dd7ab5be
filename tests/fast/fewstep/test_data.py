"""Data sets: the digits split, and the CIFAR-10 reader on files of the published format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fewstep.data import recognised
from fewstep.data.cifar10 import cifar10
from fewstep.data.digits import digits
from fewstep.data.forms.batches import BINARY as FOLDER
from fewstep.data.forms.batches import RECORD, names_of
from fewstep.errors import Unavailable, UsageError
from fewstep.noise import Rng


def test_digits_are_split_by_class_once_and_for_all() -> None:
    data = digits()
    assert len(data.train_x) + len(data.heldout_x) == 1797
    for label in range(10):
        train, heldout = (data.train_y == label).sum(), (data.heldout_y == label).sum()
        assert train == round(0.8 * (train + heldout))
    assert set(np.unique(data.train_x)) == set(np.arange(17) / 8 - 1)  # 17 grey levels over [-1, 1]
    assert data.digest() == digits().digest()
    assert data.sigma_data == pytest.approx(np.concatenate([data.train_x[:].ravel()]).astype(np.float64).std(), rel=0, abs=0)


def test_batches_are_a_function_of_their_names() -> None:
    data = digits()
    one, same, other = (data.draw(8, Rng(names)) for names in ((0, 1), (0, 1), (0, 2)))
    assert np.array_equal(one.x0, same.x0)
    assert np.array_equal(one.cond.label, same.cond.label)
    assert not np.array_equal(one.x0, other.x0)


def write_batches(folder: Path, count: int) -> np.ndarray:
    """CIFAR-10 binary files with `count` random records each; returns the first training file's records."""
    (folder / FOLDER).mkdir()
    rng = np.random.RandomState(0)
    first = None
    for name in names_of(FOLDER):
        records = rng.randint(0, 256, (count, RECORD)).astype(np.uint8)
        records[:, 0] = rng.randint(0, 10, count)
        records.tofile(folder / FOLDER / name)
        first = records if first is None else first
    assert first is not None
    return first


def test_cifar10_reads_the_binary_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    monkeypatch.setattr(recognised, "_published", dict)  # for a set of a few images
    first = write_batches(tmp_path, 6)
    data = cifar10()
    assert data.shape == (3, 32, 32)
    assert (len(data.train_x), len(data.heldout_x)) == (30, 6)
    assert data.train_y[2] == first[2, 0]
    # Red plane first, rows of 32: byte 1 + 1024 c + 32 y + x.
    levels = np.rint((data.train_x[2:3][0] + 1) * 127.5)
    assert levels[1, 5, 7] == first[2, 1 + 1024 + 32 * 5 + 7]
    assert data.train_x[:].min() >= -1
    assert data.train_x[:].max() <= 1


def test_cifar10_names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    with pytest.raises(Unavailable, match=r"have none of cifar-10-batches-bin/, .*bench.fetch what=cifar10"):
        cifar10()
    write_batches(tmp_path, 2)
    path = tmp_path / FOLDER / names_of(FOLDER)[1]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UsageError, match=r"data_batch_2.bin has 6141 bytes, not a multiple of 3073"):
        cifar10()
