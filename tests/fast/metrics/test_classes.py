"""Class accuracy and diversity on constructed evidence."""

import dataclasses
import math

import numpy as np
import pytest
from torch.testing import assert_close

from fewstep.errors import UsageError
from metrics import metric_named
from metrics.families.classes import mean_pair_distance
from support.evidence import CLASSES, DIM, fresh

CLASS_ACCURACY = metric_named("class_accuracy")
DIVERSITY_DIGITS = metric_named("diversity_digits")


def test_class_accuracy_counts_and_has_a_binomial_error(reference):
    sample = fresh(reference)
    logits = np.eye(CLASSES)[sample.labels]
    assert CLASS_ACCURACY(dataclasses.replace(sample, logits={"digits": logits})).value == 1
    wrong = np.r_[0:30, 60:75, 120:135]  # of 60 in each class 30, 15 and 15: p = 1/2, 3/4, 3/4, 1
    logits[wrong] = np.roll(logits[wrong], 1, axis=1)
    measured = CLASS_ACCURACY(dataclasses.replace(sample, logits={"digits": logits}))
    assert measured.value == 0.75
    assert_close(measured.std_error, math.sqrt((1 / 4 + 3 / 16 + 3 / 16) / 59) / 4)


def test_a_class_that_is_always_right_or_always_wrong_says_nothing_of_the_error(reference):
    """All right, and one class all wrong: neither has been seen to vary, so there is no error of 0, nor one of p (1 - p)."""
    sample = fresh(reference)
    logits = np.eye(CLASSES)[sample.labels]
    for expected in (1.0, 0.75):
        measured = CLASS_ACCURACY(dataclasses.replace(sample, logits={"digits": logits}))
        assert (measured.value, measured.std_error) == (expected, None)
        logits[:60] = np.roll(logits[:60], 1, axis=1)


def test_pair_distance_and_its_jackknife_by_brute_force():
    f = np.random.RandomState(1).randn(9, 3)

    def brute(rows):
        return np.mean([np.linalg.norm(a - b) for i, a in enumerate(rows) for b in rows[:i]])

    mean, variance = mean_pair_distance(f)
    left_out = np.array([brute(np.delete(f, i, axis=0)) for i in range(9)])
    assert_close(mean, float(brute(f)))
    assert_close(variance, float(8 / 9 * ((left_out - left_out.mean()) ** 2).sum()))


def test_diversity_is_within_classes_and_scales_with_the_features(reference):
    sample = fresh(reference)
    base = DIVERSITY_DIGITS(sample)
    # Moving whole classes apart changes nothing, doubling the features doubles the value, equal samples of a class have none.
    moved = sample.features["digits"] + 100.0 * sample.labels[:, None]
    assert_close(DIVERSITY_DIGITS(dataclasses.replace(sample, features={"digits": moved})).value, base.value)
    assert_close(DIVERSITY_DIGITS(dataclasses.replace(sample, features={"digits": 2 * moved})).value, 2 * base.value)
    flat = np.repeat(sample.labels[:, None].astype(float), DIM, axis=1) * 0.1
    none = DIVERSITY_DIGITS(dataclasses.replace(sample, features={"digits": flat}))
    assert (none.value, none.std_error) == (0, None)
    lonely = dataclasses.replace(sample, labels=np.r_[np.full(2, 3), np.zeros(238, np.int64)])
    with pytest.raises(UsageError, match="at least 3"):
        DIVERSITY_DIGITS(lonely)
