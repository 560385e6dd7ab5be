"""Frechet distances and their standard errors on constructed features."""

import dataclasses
import math

import numpy as np
import pytest
from torch.testing import assert_close

from fewstep.errors import UsageError
from metrics import metric_named, quantise
from metrics.intervals import bootstrap, mean_and_error
from metrics.moments import Moments, frechet_distance
from support.evidence import CLASSES, DIM, FakeData, evidence, fresh

FD_DIGITS = metric_named("fd_digits")
FID = metric_named("fid")
CLASS_ACCURACY = metric_named("class_accuracy")
DIVERSITY_DIGITS = metric_named("diversity_digits")


def test_frechet_of_a_shift_and_of_a_scaling():
    f = np.random.RandomState(0).randn(100, DIM)
    shift = np.arange(DIM) / 10
    a = Moments.of(f)
    # Equal covariances leave |shift|^2. Rounding: sqrt of eigenvalues near 1 is accurate to 1e-15, so the defaults hold.
    assert_close(frechet_distance(a, Moments.of(f + shift)), float(shift @ shift))
    # f -> c f: tr(S) + c^2 tr(S) - 2 c tr(S) = (c - 1)^2 tr(S), plus (c - 1)^2 |mean|^2.
    assert_close(frechet_distance(a, Moments.of(3 * f)), float(4 * (np.trace(a.cov) + a.mean @ a.mean)))


def test_frechet_of_rank_deficient_sets_is_finite_and_flagged(reference):
    few = np.zeros((4, 1, 4, 4), np.float32)
    few[:, 0, 0, 0] = quantise(np.array([[[[-1.0]]], [[[0.0]]], [[[0.5]]], [[[1.0]]]])).ravel()
    measured = FD_DIGITS(evidence(reference, few, np.zeros(4, np.int64)))
    assert measured.protocol["rank_deficient"] is True
    assert measured.value > 0
    assert FD_DIGITS(fresh(reference)).protocol["rank_deficient"] is False


def test_bad_features_are_errors(reference):
    broken = fresh(reference)
    broken.features["digits"][3, 2] = np.nan
    for metric in (FD_DIGITS, DIVERSITY_DIGITS):
        with pytest.raises(FloatingPointError):
            metric(broken)
    broken.logits["digits"][3, 2] = np.nan
    with pytest.raises(FloatingPointError):
        CLASS_ACCURACY(broken)
    with pytest.raises(FloatingPointError):
        frechet_distance(Moments(2, np.zeros(2), np.eye(2) * 1e308), Moments(2, np.zeros(2), np.eye(2) * 1e308))
    with pytest.raises(FloatingPointError, match="covariance"):
        Moments.of(np.array([[1e200], [-1e200]]))
    with pytest.raises(UsageError, match="at least 2 samples"):
        _ = Moments.of(np.ones((1, 3))).cov
    with pytest.raises(UsageError, match="shape"):
        Moments.of(np.ones(3))
    with pytest.raises(UsageError, match="one extractor"):
        frechet_distance(Moments.of(np.eye(2)), Moments.of(np.eye(3)))


def test_bootstrap_error_is_the_spread_over_fresh_samples(reference):
    values = [FD_DIGITS(fresh(reference, seed)) for seed in range(1, 41)]
    spread = np.std([m.value for m in values], ddof=1)
    claimed = np.median([m.std_error for m in values])
    # The spread of 40 has 11% error, each claim 16%, their median 3%; the bootstrap's own bias is of order one at so few samples.
    assert 0.6 < claimed / spread < 1.7


SINGLE = "none: a class has one sample, and its resamples are all the same"


def test_classes_of_one_sample_have_no_bootstrap(reference):
    """Each resample of such a class is the class: the error would be 0 where all are, and too small where some are."""
    for labels, said in (
        (np.arange(4), SINGLE),
        (np.array([0, 0, 1, 1, 2, 2, 3]), SINGLE),
        (np.array([0, 0, 1, 1, 2, 2, 3, 3]), "bootstrap, 20 resamples within classes"),
    ):
        images = quantise(FakeData.draw(np.random.RandomState(1), labels))
        measured = FD_DIGITS(evidence(reference, images, labels))
        assert measured.protocol["std_error"] == said
        assert (measured.std_error is None, "resampled" in measured.protocol) == ((True, False) if said == SINGLE else (False, True))
        assert math.isfinite(measured.value)


@pytest.mark.parametrize("classes", [CLASSES, 1])
def test_samples_that_are_all_alike_have_no_error(reference, classes):
    """The mean image of each class, or of all: resamples differ by the rounding of sums alone, 1e-15 and no standard error."""
    labels = np.arange(240) % classes
    means = np.random.RandomState(3).uniform(-1, 1, (classes, 1, 4, 4)).astype(np.float32)
    measured = FD_DIGITS(evidence(reference, quantise(means)[labels], labels))
    assert measured.value > 0
    assert measured.std_error is None
    assert measured.protocol["std_error"] == "none: all resamples have the same value"


@pytest.mark.parametrize("per_class", [3, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 5, 20))])
def test_a_bootstrap_of_few_samples_of_each_class(per_class):
    """Of a mean, whose standard error is 1 / sqrt(N) here, it is too small by sqrt((n - 1) / n), as it says."""
    labels, claims = np.arange(10 * per_class) % 10, []
    for seed in range(60):
        x = labels + np.random.RandomState(seed).standard_normal(len(labels))
        claims.append(bootstrap(labels, 200, lambda index, x=x: x[index].mean())[0])
    ratio = math.sqrt(np.mean(np.square(claims)) * len(labels))
    assert ratio == pytest.approx(math.sqrt((per_class - 1) / per_class), rel=0.06)  # 200 resamples know it to 5%, all the same ones


def test_the_error_of_a_mean_leaves_out_the_spread_between_classes():
    labels = np.arange(200) % 4
    values = [10 * labels + np.random.RandomState(seed).standard_normal(200) for seed in range(200)]
    spread = np.std([v.mean() for v in values], ddof=1)
    claimed = [mean_and_error(v, labels)[1] for v in values]
    assert 0.85 < np.mean(claimed) / spread < 1.15  # the spread of 200 is known to 5%
    assert mean_and_error(values[0])[1] > 10 * spread  # over all, as if labels were drawn anew each time
    by_hand = sum(values[0][labels == c].var(ddof=1) / 50 / 16 for c in range(4))
    assert_close(claimed[0], math.sqrt(by_hand))
    # Unequal classes: a mean weighs them by their numbers. With a class of one, over all; without any spread, nothing.
    x, y = np.array([1.0, 3.0, 2.0, 5.0, 9.0]), np.array([0, 0, 1, 1, 1])
    assert_close(mean_and_error(x, y), (4.0, math.sqrt(2 * 2 + 3 * x[2:].var(ddof=1)) / 5))
    assert_close(mean_and_error(x, np.array([0, 0, 1, 1, 2])), (4.0, x.std(ddof=1) / math.sqrt(5)))
    assert mean_and_error(np.array([1.0, 1.0, 3.0, 3.0]), np.array([0, 0, 1, 1])) == (2.0, None)
    assert mean_and_error(np.full(4, 0.1)) == (pytest.approx(0.1), None)


def test_fid_reads_inception_features_only(reference):
    sample = fresh(reference)
    moved = dataclasses.replace(sample, features={**sample.features, "inception": sample.features["inception"] + 1})
    assert FID(moved).value > FID(sample).value + 1
    assert FD_DIGITS(moved).value == FD_DIGITS(sample).value
