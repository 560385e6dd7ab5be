"""The kernel distance against its definition, whatever the blocks, and against torch-fidelity's own code."""

import dataclasses

import numpy as np
import pytest
from torch.testing import assert_close

from fewstep.errors import Unavailable
from metrics import metric_named
from metrics.families import kernel as kernel_module
from metrics.families.kernel import cubic, sums_with, sums_within
from support.featured import drawn, of_features

KID, SUBSETS = metric_named("kid"), metric_named("kid_subsets")


def test_it_is_the_unbiased_estimate_of_all_pairs():
    x, y = drawn(0, 30), drawn(1, 50) + 0.1
    a, b, c = (
        cubic(*pair)
        for pair in ((x.astype(float), x.astype(float)), (y.astype(float), y.astype(float)), (x.astype(float), y.astype(float)))
    )
    expected = (a.sum() - np.trace(a)) / (30 * 29) + (b.sum() - np.trace(b)) / (50 * 49) - 2 * c.mean()
    measured = KID(of_features(x, y))
    assert_close(measured.value, float(expected))
    assert measured.protocol["reference_count"] == 50
    assert measured.samples == 30


def test_blocks_do_not_show(monkeypatch):
    x, y = drawn(0, 23), drawn(1, 31)
    whole = sums_within(x), sums_with(x, y)
    monkeypatch.setattr(kernel_module, "block_size", lambda rows: 5)
    monkeypatch.setattr(kernel_module, "blocks", lambda rows: (rows[i : i + 5] for i in range(0, len(rows), 5)))
    assert_close(sums_within(x), whole[0])
    assert_close(sums_with(x, y), whole[1])


def test_exact_samples_score_nothing_within_the_error_that_is_claimed():
    y = drawn(99, 2000)
    found = [KID(of_features(drawn(seed, 100), y)) for seed in range(40)]
    spread = np.std([m.value for m in found], ddof=1)
    assert abs(np.mean([m.value for m in found])) < 4 * spread / 40**0.5 + 2 * spread * (100 / 2000) ** 0.5  # the training images' own luck
    assert 0.6 < np.median([m.std_error for m in found]) / spread < 2.5


def test_subsets_are_torch_fidelity_s():
    theirs = pytest.importorskip("torch_fidelity.metric_kid")
    import torch

    x, y = drawn(0, 60, 20), drawn(1, 80, 20) + np.float32(0.05)
    metric = dataclasses.replace(SUBSETS, subsets=7, size=30)
    doubles = [torch.from_numpy(v).double() for v in (x, y)]
    found = theirs.kid_features_to_metric(*doubles, kid_subsets=7, kid_subset_size=30, rng_seed=2020, verbose=False)
    measured = metric(of_features(x, y))
    assert_close(measured.value, found["kernel_inception_distance_mean"], rtol=1e-10, atol=0)  # sums of float64 in another order
    assert_close(measured.protocol["std"], found["kernel_inception_distance_std"], rtol=1e-8, atol=0)  # as above, less their mean
    once = theirs.kid_features_to_metric(doubles[0], doubles[1][:60], kid_subsets=1, kid_subset_size=60, verbose=False)
    # All pairs are one subset of everything, in another order.
    assert_close(KID(of_features(x, y[:60])).value, once["kernel_inception_distance_mean"], rtol=1e-9, atol=0)
    with pytest.raises(Unavailable, match="subsets of 1000, and there are 60 samples and 80 training images"):
        SUBSETS(of_features(x, y))


def test_bad_features_and_bare_statistics():
    x, y = drawn(0, 30), drawn(1, 50)
    broken = x.copy()
    broken[3, 2] = np.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        KID(of_features(broken, y))
    bare = of_features(x, y)
    space = dataclasses.replace(bare.reference.spaces["inception"], rows={}, statistics="cifar10-32x32-0123")
    with pytest.raises(Unavailable, match=r"only statistics \(cifar10-32x32-0123\); give the images with reference="):
        KID(dataclasses.replace(bare, reference=dataclasses.replace(bare.reference, spaces={"inception": space})))
