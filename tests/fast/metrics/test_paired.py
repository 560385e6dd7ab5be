"""Agreement with the teacher's own images."""

import math

import numpy as np
from torch.testing import assert_close

from metrics import Evidence, metric_named
from metrics.families.paired import ROUNDING
from metrics.moments import Moments
from metrics.reference import FeatureSpace
from support.evidence import fresh

PSNR_TEACHER = metric_named("psnr_teacher")


def test_psnr_of_a_constant_difference(reference):
    # A difference of 25.5 levels of 127.5 is 0.2: 10 log10(4 / 0.04) = 20 dB. Half the images exact: + 10 log10 2, not infinity.
    images = np.zeros((10, 1, 2, 2), np.float32)
    other = images + np.float32(0.2)
    # 0.2 in float32 is off by 1.5e-8 relative, which is 1.3e-7 dB; the defaults allow 2e-6.
    assert_close(PSNR_TEACHER(evidence_of(reference, images, other)).value, 20.0)
    assert PSNR_TEACHER(evidence_of(reference, images, other)).std_error is None  # no image differs from another
    other[:5] = 0
    half = PSNR_TEACHER(evidence_of(reference, images, other))
    assert_close(half.value, 20 + 10 * math.log10(2))
    # Per-image MSE 0 or 0.04, five each: s / sqrt(10) = 0.02 sqrt(10 / 9) / sqrt(10) = 0.02 / 3, over the mean 0.02.
    assert_close(half.std_error, 10 / math.log(10) / 3)


def evidence_of(reference, images, teacher) -> Evidence:
    return Evidence(images, np.zeros(len(images), np.int64), {}, {}, teacher, reference)


def test_psnr_of_identical_sets_is_capped_and_says_so(reference):
    images = fresh(reference).images
    measured = PSNR_TEACHER(evidence_of(reference, images, images.copy()))
    # (2/255)^2 / 12 against the peak: 10 log10(12 * 255^2) = 58.92 dB.
    assert_close(measured.value, 10 * math.log10(12 * 255**2))
    assert_close(ROUNDING, 4 / (12 * 255**2))
    assert measured.std_error is None
    assert measured.protocol["saturated"] is True


def test_spaces_name_their_extractor():
    space = FeatureSpace("digits", 2, "0123456789abcdef" * 4, Moments.of(np.eye(3)))
    assert space.identity == "digits-2-0123456789abcdef"
