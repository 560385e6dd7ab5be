"""The share of samples whose nearest real image was trained on."""

import dataclasses

import numpy as np
import pytest
from torch.testing import assert_close

from fewstep.errors import Unavailable
from metrics import metric_named, to_uint8
from metrics.families.copying import nearest
from metrics.reference import build_reference
from support.evidence import FakeData, Projection, evidence, fresh

NN_TRAIN_SHARE = metric_named("nn_train_share")


def share(reference, images) -> float:
    return NN_TRAIN_SHARE(evidence(reference, images, np.zeros(len(images), np.int64))).value


def test_copies_of_either_split_and_ties(reference):
    assert share(reference, reference.train_x[:]) == 1
    assert share(reference, reference.heldout_x[:]) == 0
    # The training split holds every held-out image four times and nothing else: all ties, and chance is 4/5.
    same = dataclasses.replace(reference, train_x=np.concatenate([reference.heldout_x[:]] * 4))
    tied = NN_TRAIN_SHARE(fresh(same))
    assert_close(tied.value, 0.5)
    assert tied.protocol["ties"] == 240


def test_fresh_samples_score_a_half_whatever_the_split_sizes():
    for per_class in (50, 200):
        reference = build_reference(FakeData(3, per_class), [Projection()])
        measured = NN_TRAIN_SHARE(fresh(reference, per_class=500))
        # Five standard errors, plus the luck of the split itself: 40 held-out images (10 a class) move the share by a few percent.
        assert abs(measured.value - 0.5) < 5 * measured.std_error + 0.05
        assert_close(measured.protocol["chance"], 0.8)


def test_half_copies_lie_between(reference):
    both = np.concatenate([reference.train_x[:40], reference.heldout_x[:]])
    # 40 copies of each: s = 1/2, p = 4/5 -> (1/2)(1/5) / ((1/2)(1/5) + (1/2)(4/5)) = 1/5.
    assert_close(share(reference, both), 0.2)


def test_nearest_is_exact_and_free_of_chunks(reference):
    sample = fresh(reference).images
    a, b = to_uint8(sample).astype(int), to_uint8(reference.train_x[:]).astype(int)
    brute = ((a[:, None] - b[None]) ** 2).sum(axis=(2, 3, 4)).min(axis=1)
    assert np.array_equal(nearest(sample, reference.train_x[:]), brute)
    assert np.array_equal(nearest(sample, reference.train_x[:], chunk=7), brute)


def test_without_heldout_images_copying_is_unavailable(reference):
    with pytest.raises(Unavailable, match="held-out"):
        NN_TRAIN_SHARE(fresh(dataclasses.replace(reference, heldout_x=reference.heldout_x[:0])))
