"""What every metric shares: its version, its evidence, images as they are measured, the real images and their floor."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
from torch.testing import assert_close

from fewstep.errors import Unavailable, UsageError
from fewstep.plugins import get
from metrics import declared, metric_named, metrics_by_name, quantise, to_uint8
from metrics.families.frechet import floor
from metrics.intervals import resample_index
from metrics.reference import build_reference
from support.each import each
from support.evidence import DIM, FakeData, Projection, evidence, fresh

FD_DIGITS = metric_named("fd_digits")

METRICS = metrics_by_name()
# Values on `fresh` of each metric by version. A change here asks for a new version, so that cached rows are measured again.
FINGERPRINT = {
    ("fd_digits", 3): (0.10586127033374026, 0.042636699327657346),
    ("class_accuracy", 2): (0.8375, 0.023122788996963944),
    ("diversity_digits", 2): (2.268559234110625, 0.05254911929688636),
    ("nn_train_share", 2): (0.4340527577937649, 0.036810546280505),
    ("psnr_teacher", 2): (31.992192553359338, 0.10381043871507269),
    ("fid", 3): (0.10586127033374026, 0.042636699327657346),
}


@each("name", [name for name, _ in FINGERPRINT])  # the others have a file of their own
def test_numbers_belong_to_the_version(reference, name):
    m = METRICS[name](fresh(reference))
    assert_close((m.value, m.std_error), FINGERPRINT[name, METRICS[name].version])
    assert m.samples == 4 * 60
    assert m.protocol["metric_version"] == METRICS[name].version


def test_resamples_of_the_same_labels_are_the_same_images(reference):
    """Their spread is the standard error; and that of sets which hardly differ is far below it."""
    one = fresh(reference)
    near = evidence(reference, quantise(one.images + np.float32(0.01)), one.labels, one.teacher_images)
    a, b = (METRICS["fd_digits"](found) for found in (one, near))
    first, second = (np.array(m.protocol["resampled"]) for m in (a, b))
    assert len(first) == 20
    assert_close(first.std(ddof=1), a.std_error, rtol=1e-4, atol=0)  # printed to six digits, of which the spread has five
    assert (first - second).std(ddof=1) < 0.3 * a.std_error
    other = METRICS["fd_digits"](fresh(reference, seed=2))
    assert (first - np.array(other.protocol["resampled"])).std(ddof=1) > 0.8 * a.std_error  # of independent ones sqrt(2)


def test_registry_order_and_fields():
    order = ["fd_digits", "endpoint_error", "fd_moments", "energy_distance", "class_accuracy", "diversity_digits", "nn_train_share"]
    order += ["psnr_teacher", "st_lpips_128", "psnr", "psnr_y", "psnr_hidden", "ssim", "ssim_hidden", "ssim_y", "rmse_known", "consistency"]
    order += ["fid_published", "fid_published_min3", "fid", "kid", "precision", "recall", "coverage", "density"]
    order += ["fd_efficientnet", "nn_train_share_inception", "diversity_condition", "diversity_condition_st_lpips", "lpips_teacher"]
    order += [
        "lpips",
        "efficientnet_distance",
        "st_lpips",
        "st_lpips_vgg",
        "fid_clean",
        "fid_legacy_pytorch",
        "fid_legacy_tensorflow",
        "kid_subsets",
    ]
    assert list(METRICS) == order
    on_request = ["fid_published", "fid_published_min3", "st_lpips", "st_lpips_vgg", *order[-4:]]
    assert [n for n, m in METRICS.items() if declared(m).on_request] == on_request
    assert all(m.unit and get("metric", name).paper for name, m in METRICS.items())
    paired = ["endpoint_error", "fd_moments", "energy_distance", "psnr_teacher", "lpips_teacher"]
    assert [n for n, m in METRICS.items() if declared(m).needs_teacher] == paired


def test_import_needs_no_torch():
    code = (
        "import sys, metrics, metrics.reference, metrics.features.extractors, metrics.features.networks; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- quantise -------------------------------------------------------------------------------------------------------------------


def test_quantise_is_the_identity_on_eight_bit_images_and_clips():
    levels = np.arange(256).reshape(1, 1, 16, 16)
    images = (levels / 127.5 - 1).astype(np.float32)
    assert np.array_equal(to_uint8(images), levels)
    assert np.array_equal(quantise(images), images)
    assert list(to_uint8(np.array([[-3.0, -1.0, 0.0, 1.0, 3.0]]))[0]) == [0, 0, 128, 255, 255]
    # Truncation of 127.5 x + 128 = rounding of 127.5 (x + 1): half a level (1 / 255) is the largest change inside [-1, 1].
    x = np.random.RandomState(0).uniform(-1, 1, (1, 1, 50, 50))
    assert np.abs(quantise(x) - x).max() <= 1 / 255 + 1e-7  # 1e-7: the result is float32


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_diverged_images_are_an_error(bad):
    images = np.zeros((3, 1, 2, 2), np.float32)
    images[1, 0, 0, 0] = bad
    with pytest.raises(FloatingPointError, match="1 of 3 images"):
        quantise(images)


# --- evidence -------------------------------------------------------------------------------------------------------------------


def test_evidence_that_disagrees_is_refused(reference):
    good = fresh(reference)
    for change in ({"labels": good.labels[1:]}, {"features": {"digits": np.zeros((3, DIM))}}, {"teacher_images": good.images[1:]}):
        with pytest.raises(UsageError):
            dataclasses.replace(good, **change)


def test_absent_evidence_is_unavailable(reference):
    bare = dataclasses.replace(fresh(reference), features={}, logits={}, teacher_images=None)
    for name in set(METRICS) - {"nn_train_share", "energy_distance"}:  # these read pixels alone
        with pytest.raises(Unavailable):
            METRICS[name](bare)


def test_reference_digest_and_chunks(reference, monkeypatch):
    assert build_reference(FakeData(), []).digest == reference.digest
    changed = FakeData()
    changed.heldout_x[0, 0, 0, 0] *= -1
    assert build_reference(changed, []).digest != reference.digest
    reshaped = FakeData()
    reshaped.train_x, reshaped.heldout_x = (x.reshape(len(x), 1, 2, 8) for x in (reshaped.train_x, reshaped.heldout_x))
    assert build_reference(reshaped, []).digest != reference.digest
    monkeypatch.setattr("metrics.reference.CHUNK", 7)
    chunked = build_reference(FakeData(), [Projection()]).spaces["digits"].moments
    whole = reference.spaces["digits"].moments
    assert chunked.count == whole.count == len(reference.train_x)
    assert_close(chunked.mean, whole.mean)
    assert_close(chunked.cov, whole.cov)


def test_floor_is_the_mean_over_resamples(reference):
    measured = floor(reference, Projection(), per_class=30, repeats=5, seed=2)
    values = []
    for seed in range(2, 7):
        index = resample_index(reference.train_y, seed, 30)
        x, y = reference.train_x[index], reference.train_y[index]
        values.append(FD_DIGITS(evidence(reference, x, y)).value)
    assert_close(measured.value, float(np.mean(values)))
    assert_close(measured.std_error, float(np.std(values, ddof=1) / math.sqrt(5)))
    assert measured.samples == 4 * 30
    # The bias falls as 1 / N: four times the images, about a quarter of the distance.
    assert 2 < measured.value / floor(reference, Projection(), per_class=120).value < 8
