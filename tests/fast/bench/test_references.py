"""Features of the real images are artefacts: computed once, the same as without a store, and read without any network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.evaluate import references
from bench.evaluate.judge import make_judge
from bench.evaluate.reference_rows import naive_floor, naive_images, version_of
from bench.evaluate.references import KIND
from bench.store.artefacts import Store
from fewstep.data.digits import digits
from metrics.intervals import resample_index
from metrics.reference import build_reference
from support.each import each

METRICS = {"fd_digits", "class_accuracy"}


def test_the_second_judge_reads_what_the_first_computed_and_loads_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, store = digits(), Store(tmp_path)
    alone, first = make_judge(data, None, METRICS), make_judge(data, None, METRICS, store)
    assert "digits" in first.reference.spaces
    assert not (tmp_path / ".store" / KIND).exists()  # nothing is computed before it is asked for
    built = build_reference(data, alone.extractors.values())
    assert built.digest == first.reference.digest
    floor = naive_floor("real_train", "fd_digits", first, 100)
    for found in (alone.reference, first.reference, built):
        moments = found.spaces["digits"].moments
        assert moments.count == 1438
        assert np.array_equal(moments.mean, built.spaces["digits"].moments.mean)
        assert np.array_equal(moments.scatter, built.spaces["digits"].moments.scatter)
    assert floor == naive_floor("real_train", "fd_digits", alone, 100)
    assert len([*(tmp_path / ".store" / KIND).iterdir()]) == 2  # features and moments
    monkeypatch.setattr("fewstep.nets.loading.load_digit_classifier", None)
    second = make_judge(data, None, METRICS, store)
    assert not second.missing
    assert second.reference.spaces["digits"].identity == built.spaces["digits"].identity
    assert naive_floor("real_train", "fd_digits", second, 100) == floor
    with pytest.raises(TypeError):
        second.extractors["digits"](data.train_x[:1])  # now it is needed


def test_features_too_many_to_keep_leave_their_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = digits()
    monkeypatch.setattr(references, "KEPT", 1000)
    found = make_judge(data, None, METRICS, Store(tmp_path)).reference.spaces["digits"]
    assert np.array_equal(found.moments.scatter, make_judge(data, None, METRICS).reference.spaces["digits"].moments.scatter)
    assert len([*(tmp_path / ".store" / KIND).iterdir()]) == 1


def test_features_that_were_changed_are_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, store = digits(), Store(tmp_path)
    before = make_judge(data, None, METRICS, store).reference.spaces["digits"].moments
    for file in (tmp_path / ".store" / KIND).rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-8] + bytes(8))
    after = make_judge(data, None, METRICS, store).reference.spaces["digits"].moments
    assert np.array_equal(before.scatter, after.scatter)
    assert "corrupt artefact" in capsys.readouterr().err


@each("kind", ["class_means", "real_train", "real_heldout", "real_train_subset"])
def test_reference_rows_are_read_where_they_are_indexed(kind: str) -> None:
    data = digits()
    reference = make_judge(data, None, set()).reference
    images, labels = naive_images(kind, data, 50, 0, reference)
    assert not isinstance(images, np.ndarray)
    assert np.array_equal(images[10:20], images[:][10:20])
    assert labels.shape == (50,)
    assert images.shape == (50, 1, 8, 8)


def test_no_real_image_stands_twice_in_a_row_whose_split_has_enough() -> None:
    """Of each class, and where some have not, or none has: digits at 2,000 stay as they were drawn before, under the former version."""
    data = digits()
    reference = make_judge(data, None, set()).reference
    for kind, most in (("real_heldout", 359), ("real_train_subset", 359), ("real_train", 1438)):
        images, labels = naive_images(kind, data, 200, 0, reference)
        assert np.bincount(labels).tolist() == [20] * 10
        assert len(np.unique(images[:].reshape(200, -1), axis=0)) == 200, kind
        assert (version_of(kind, reference, 200), version_of(kind, reference, 2000)) == (2, 1)
        assert version_of(kind, reference, most) == 2  # some classes have as many
    assert version_of("class_means", reference, 200) == 1
    images, labels = naive_images("real_heldout", data, 2000, 3, reference)
    index = resample_index(data.heldout_y, 3, 200)
    assert np.array_equal(images[:], reference.heldout_x[index])
    assert np.array_equal(labels, data.heldout_y[index])
