"""The metrics on constructed evidence whose answers are known."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
from torch.testing import assert_close

from fewstep.errors import Unavailable, UsageError
from fewstep.plugins import get
from metrics import Evidence, declared, metric_named, metrics_by_name, quantise, to_uint8
from metrics.classes import mean_pair_distance
from metrics.copying import nearest
from metrics.frechet import floor
from metrics.intervals import bootstrap, mean_and_error
from metrics.moments import Moments, frechet_distance
from metrics.paired import ROUNDING
from metrics.reference import FeatureSpace, Reference, build_reference, real_resample

PSNR_TEACHER = metric_named("psnr_teacher")
FD_DIGITS = metric_named("fd_digits")
FID = metric_named("fid")
NN_TRAIN_SHARE = metric_named("nn_train_share")
CLASS_ACCURACY = metric_named("class_accuracy")
DIVERSITY_DIGITS = metric_named("diversity_digits")

METRICS = metrics_by_name()

CLASSES, DIM = 4, 5


class FakeData:
    """Random 'images' [N, 1, 4, 4] of four classes, 80% of each for training."""

    def __init__(self, seed: int = 0, per_class: int = 50) -> None:
        rng = np.random.RandomState(seed)
        self.name, self.classes = "fake", CLASSES
        cut = per_class * 4 // 5
        self.train_y = np.repeat(np.arange(CLASSES), cut)
        self.heldout_y = np.repeat(np.arange(CLASSES), per_class - cut)
        self.train_x, self.heldout_x = self.draw(rng, self.train_y), self.draw(rng, self.heldout_y)

    @staticmethod
    def draw(rng, labels: np.ndarray) -> np.ndarray:
        means = np.linspace(-0.5, 0.5, CLASSES)[labels][:, None, None, None]
        return np.clip(means + 0.2 * rng.randn(len(labels), 1, 4, 4), -1, 1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Projection:
    """A linear 'extractor', and 'logits' from the distance of two pixels to each class mean (right for most)."""

    name: str = "digits"
    version: int = 1
    digest: str = "ab" * 32

    def __call__(self, images):
        flat = images.reshape(len(images), -1).astype(np.float64)
        features = flat @ np.random.RandomState(5).randn(flat.shape[1], DIM)
        return features, -np.abs(flat[:, :2].mean(axis=1)[:, None] - np.linspace(-0.5, 0.5, CLASSES)[None])


@pytest.fixture(scope="module")
def reference() -> Reference:
    return build_reference(FakeData(), [Projection(), Projection(name="inception")])


def evidence(reference: Reference, images, labels, teacher=None) -> Evidence:
    features, logits = Projection()(images)
    return Evidence(images, labels, {"digits": features, "inception": features}, {"digits": logits}, teacher, reference)


def fresh(reference: Reference, seed: int = 1, per_class: int = 60) -> Evidence:
    """New draws of the same distribution as the real images; the teacher's images are the same plus a pinned difference."""
    rng = np.random.RandomState(seed)
    labels = np.repeat(np.arange(CLASSES), per_class)
    images = quantise(FakeData.draw(rng, labels))
    return evidence(reference, images, labels, quantise(images + np.float32(0.05) * rng.randn(*images.shape).astype(np.float32)))


# Values on `fresh` of each metric by version. A change here asks for a new version, so that cached rows are measured again.
FINGERPRINT = {
    ("fd_digits", 3): (0.10586127033374026, 0.042636699327657346),
    ("class_accuracy", 2): (0.8375, 0.023122788996963944),
    ("diversity_digits", 2): (2.268559234110625, 0.05254911929688636),
    ("nn_train_share", 2): (0.4340527577937649, 0.036810546280505),
    ("psnr_teacher", 2): (31.992192553359338, 0.10381043871507269),
    ("fid", 3): (0.10586127033374026, 0.042636699327657346),
}


ELSEWHERE = ("lpips_teacher", "endpoint_error", "fd_moments", "energy_distance")  # each in a file of its own


@pytest.mark.parametrize("name", [n for n in METRICS if n not in ELSEWHERE])
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
    order += ["psnr_teacher", "fid", "lpips_teacher"]
    assert list(METRICS) == order
    assert all(m.unit and get("metric", name).paper for name, m in METRICS.items())
    paired = ["endpoint_error", "fd_moments", "energy_distance", "psnr_teacher", "lpips_teacher"]
    assert [n for n, m in METRICS.items() if declared(m).needs_teacher] == paired


def test_import_needs_no_torch():
    code = "import sys, metrics, metrics.reference, metrics.extractors; sys.exit('torch' in sys.modules)"
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


# --- Frechet --------------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("per_class", [2, 3, 5, 20])
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


# --- reference and floor --------------------------------------------------------------------------------------------------------


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


def test_real_resample_is_balanced_real_and_pinned(reference):
    x, y = real_resample(reference.train_x, reference.train_y, 30, seed=3)
    assert np.array_equal(y, np.repeat(np.arange(CLASSES), 30))
    assert (nearest(x, reference.train_x) == 0).all()
    assert np.array_equal(x, real_resample(reference.train_x, reference.train_y, 30, seed=3)[0])
    assert not np.array_equal(x, real_resample(reference.train_x, reference.train_y, 30, seed=4)[0])
    with pytest.raises(UsageError):
        real_resample(reference.train_x, reference.train_y, 0, seed=0)


def test_floor_is_the_mean_over_resamples(reference):
    measured = floor(reference, Projection(), per_class=30, repeats=5, seed=2)
    values = []
    for seed in range(2, 7):
        x, y = real_resample(reference.train_x, reference.train_y, 30, seed)
        values.append(FD_DIGITS(evidence(reference, x, y)).value)
    assert_close(measured.value, float(np.mean(values)))
    assert_close(measured.std_error, float(np.std(values, ddof=1) / math.sqrt(5)))
    assert measured.samples == 4 * 30
    # The bias falls as 1 / N: four times the images, about a quarter of the distance.
    assert 2 < measured.value / floor(reference, Projection(), per_class=120).value < 8


# --- classes --------------------------------------------------------------------------------------------------------------------


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


# --- copying --------------------------------------------------------------------------------------------------------------------


def share(reference, images) -> float:
    return NN_TRAIN_SHARE(evidence(reference, images, np.zeros(len(images), np.int64))).value


def test_copies_of_either_split_and_ties(reference):
    assert share(reference, reference.train_x) == 1
    assert share(reference, reference.heldout_x) == 0
    # The training split holds every held-out image four times and nothing else: all ties, and chance is 4/5.
    same = dataclasses.replace(reference, train_x=np.concatenate([reference.heldout_x] * 4))
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
    both = np.concatenate([reference.train_x[:40], reference.heldout_x])
    # 40 copies of each: s = 1/2, p = 4/5 -> (1/2)(1/5) / ((1/2)(1/5) + (1/2)(4/5)) = 1/5.
    assert_close(share(reference, both), 0.2)


def test_nearest_is_exact_and_free_of_chunks(reference):
    sample = fresh(reference).images
    a, b = to_uint8(sample).astype(int), to_uint8(reference.train_x).astype(int)
    brute = ((a[:, None] - b[None]) ** 2).sum(axis=(2, 3, 4)).min(axis=1)
    assert np.array_equal(nearest(sample, reference.train_x), brute)
    assert np.array_equal(nearest(sample, reference.train_x, chunk=7), brute)


def test_without_heldout_images_copying_is_unavailable(reference):
    with pytest.raises(Unavailable, match="held-out"):
        NN_TRAIN_SHARE(fresh(dataclasses.replace(reference, heldout_x=reference.heldout_x[:0])))


# --- agreement with the teacher -------------------------------------------------------------------------------------------------


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
