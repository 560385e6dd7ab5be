"""Images of another type or range than metrics take: one line that says what to type, and no number."""

import dataclasses

import numpy as np
import pytest
import torch

from bench.evaluate.judge import Judge
from bench.evaluate.measuring import measure_all
from bench.store.artefacts import Store
from bench.store.parts import Samples
from fewstep.arenas import arena_mixture
from fewstep.data.digits import digits
from fewstep.errors import UsageError
from fewstep.plugins import get
from metrics import Evidence, Measurement, metrics_by_name, quantise, to_uint8
from metrics.features.extractors import load_extractor
from metrics.features.networks import PREPARATIONS, NetworkExtractor
from metrics.reference import build_reference
from support.each import each

METRICS = metrics_by_name()

DIGITS = digits()
LABELS = DIGITS.heldout_y[:200]
IMAGES = DIGITS.heldout_x[:200]  # float32 in [-1, 1]


@pytest.fixture(scope="module")
def judge() -> Judge:
    extractors = {"digits": load_extractor("digits")}
    return Judge(build_reference(DIGITS, extractors.values()), extractors)


def overshooting(images: np.ndarray) -> np.ndarray:
    """As few-step samplers leave them: off by 5%, and beyond [-1, 1]."""
    return (images + 0.05 * np.random.RandomState(0).standard_normal(images.shape)).astype(np.float32)


LEVELS = np.round(127.5 * (IMAGES + 1))
TYPES = {
    "uint8": "images / 127.5 - 1$",
    "uint16": "images / 32767.5 - 1$",
    "int64": r"images / 127.5 - 1 if they are levels from 0 to 255$",
    "bool": r"2.0 \* images - 1$",
    "float16": r'images.astype\("float32"\)$',
}


@each("dtype", TYPES)
def test_other_types_are_refused_wherever_images_go_in(judge, dtype):
    images = (LEVELS / 255 > 0.5 if dtype == "bool" else LEVELS).astype(dtype)
    line = rf"^images are a NumPy array of float32 or float64 in \[-1, 1\], got {dtype}; type {TYPES[dtype]}"
    good = judge.evidence({"images": IMAGES, "labels": LABELS})
    for take in (
        quantise,
        to_uint8,
        judge.extractors["digits"],
        NetworkExtractor(None, PREPARATIONS["inception"], "", "inception", 2),
        lambda x: judge.evidence({"images": x, "labels": LABELS}),
        lambda x: Evidence(x, LABELS, {}, {}, None, judge.reference),
        *(lambda x, f=field: dataclasses.replace(good, **{f: x}) for field in ("images", "raw", "teacher_images", "raw_teacher")),
        lambda x: build_reference(dataclasses.replace(DIGITS, train_x=x), []),
    ):
        with pytest.raises(UsageError, match=line):
            take(images)


def test_tensors_and_lists_are_refused_in_a_line():
    for what in (torch.from_numpy(IMAGES), IMAGES.tolist()):
        with pytest.raises(UsageError, match=r"^images are a NumPy array .*, got (Tensor|list); type images.cpu\(\).numpy\(\) of a tensor"):
            quantise(what)


@pytest.mark.parametrize("spoil", [lambda x: x, overshooting])
@pytest.mark.parametrize("data", ["digits", "arena_mixture"])
def test_other_ranges_are_refused_where_the_data_show_it(judge, data, spoil):
    if data == "digits":
        against, images, labels = judge, IMAGES, LABELS
    else:
        labels = np.arange(100) % 10
        images = arena_mixture().draw(torch.from_numpy(labels), torch.Generator().manual_seed(0)).numpy()
        against = Judge(build_reference(get("data", "arena_mixture").make(), []), {})
    right = spoil(images)
    against.evidence({"images": right, "labels": labels})  # no complaint
    for wrong, bounds, how in (
        ((right + 1) / 2, r"\[0, 1\]", r"2 \* images - 1"),
        ((right + 1) * 127.5, r"\[0, 255\]", r"images / 127.5 - 1"),
    ):
        line = (
            rf"^98% of the pixels lie in .* those of {data} in .*: images in {bounds}\? type {how}; if they are meant .* range_known=True$"
        )
        with pytest.raises(UsageError, match=line):
            against.evidence({"images": wrong, "labels": labels})
        with pytest.raises(UsageError, match=line):
            Evidence(quantise(wrong), labels, {}, {}, None, against.reference, wrong)
        assert against.evidence({"images": wrong, "labels": labels}, range_known=True).range_known
    if data == "digits" and spoil is not overshooting:  # what quantise was given in [0, 1] and in [0, 255] alike ends in [0, 1]
        for wrong in ((right + 1) / 2, (right + 1) * 127.5):
            with pytest.raises(UsageError, match=r"images in \[0, 1\]\? type"):
                Evidence(quantise(wrong), labels, {}, {}, None, against.reference)


@each(
    "failed",
    [
        lambda x: 0 * x,  # a dead network
        lambda x: 0 * x + 0.5,
        lambda x: 0 * x + 1,
        lambda x: 80 * np.random.RandomState(0).standard_normal(x.shape),  # noise that was never removed
        lambda x: 1e6 * x,
        lambda x: 100 * np.abs(x) + 1e4,
        lambda x: np.broadcast_to(DIGITS.train_x.mean(axis=0), x.shape),
        lambda x: 0.2 * x,
    ],
)
def test_samples_of_a_failed_sampler_are_measured(judge, failed):
    """They are bad, and get a bad number: nothing maps them to the range of the data either."""
    images = failed(IMAGES).astype(np.float32)
    evidence = judge.evidence({"images": images, "labels": LABELS})
    assert METRICS["fd_digits"](evidence).value > 5


def test_a_sweep_measures_what_its_samplers_leave(judge, tmp_path):
    """Whatever it looks like: there is nobody to type anything else, and a cell that failed must not blame its range."""
    samples, store = Samples((IMAGES + 1) / 2, LABELS), Store(tmp_path)
    found = measure_all(["fd_digits", "nn_train_share"], samples, (IMAGES + 1) / 2, "key", judge, store, print)
    assert all(isinstance(m, Measurement) for m in found.values())


def test_data_that_keep_away_from_the_ends_of_the_range_are_no_other_range(judge):
    """Real images in [-0.2, 0.9]: samples like them are not taken for images in [0, 1]."""
    bright = dataclasses.replace(DIGITS, train_x=0.55 * DIGITS.train_x + 0.35, heldout_x=0.55 * DIGITS.heldout_x + 0.35)
    Evidence(quantise(0.55 * IMAGES + 0.35), LABELS, {}, {}, None, build_reference(bright, []))


def test_extractors_want_images_as_quantise_leaves_them(judge):
    line = r"^extractors take images in \[-1, 1\], as metrics.quantise leaves them, got 0 to 255; type quantise\(images\), of levels"
    for extractor in (judge.extractors["digits"], NetworkExtractor(None, PREPARATIONS["inception"], "", "inception", 2)):
        with pytest.raises(UsageError, match=line):
            extractor(LEVELS.astype(np.float32))
