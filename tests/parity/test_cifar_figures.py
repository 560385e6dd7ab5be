"""Figures of real CIFAR-10 images in real Inception features, and the packages' own code on the same ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fewstep.assets import data_folder
from fewstep.data.cifar10 import cifar10
from fewstep.data.images import ImageData
from fewstep.errors import Unavailable
from fewstep.nets.inception import inception_network
from metrics import Evidence, metric_named, quantise, to_uint8
from metrics.features.extractors import Extractor, extracted, load_extractor
from metrics.features.networks import INCEPTION
from metrics.features.statistics import read_statistics, space_of
from metrics.moments import Moments, frechet_distance
from metrics.pixels import quantised
from metrics.reference import build_reference
from support.featured import of_features

COUNT = 1000
# The first 1,000 test images against the first 1,000 training images. Float32 features move the fifth digit of a distance, and perhaps
# which of two images is nearer: two images of a thousand for shares; of kid 1e-8 of kernels of about 1.
FIGURES = {
    "fid": (46.0645, 5e-3),
    "kid": (-1.48025e-4, 1e-7),
    "precision": (0.711, 2e-3),
    "recall": (0.685, 2e-3),
    "density": (1.0536, 4e-3),
    "coverage": (0.961, 2e-3),
}


def real(what: str) -> tuple[ImageData, Extractor]:
    """CIFAR-10 and the network, or a skipped test that says what it leaves unchecked."""
    try:
        return cifar10(), load_extractor("inception")
    except Unavailable as err:
        pytest.skip(f"{err}: {what} not checked")


@pytest.mark.slow
def test_real_images_in_real_features() -> None:
    data, extractor = real("figures of CIFAR-10 in Inception features were")
    reference = build_reference(
        replace(data, train_x=data.train_x[:COUNT], train_y=data.train_y[:COUNT], heldout_x=data.heldout_x[:0], kept=None), [extractor]
    )
    images, labels = quantised(data.heldout_x[:COUNT]), data.heldout_y[:COUNT]
    features, _ = extracted(extractor, images)
    evidence = Evidence(images, labels, {"inception": features}, {}, None, reference)
    found = {name: metric_named(name)(evidence).value for name in FIGURES}
    for name, (expected, budget) in FIGURES.items():
        assert abs(found[name] - expected) < budget, name
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    both = [torch.from_numpy(np.asarray(rows, np.float64)) for rows in (features, reference.spaces["inception"].features("test")[:])]
    theirs = prc_features_to_metric(*both, prc_neighborhood=3, verbose=False)
    theirs["kid"] = kid_features_to_metric(*both, kid_subsets=1, kid_subset_size=COUNT, verbose=False)["kernel_inception_distance_mean"]
    for name in ("kid", "precision", "recall"):
        assert found[name] == pytest.approx(theirs[name], rel=1e-5)


STATISTICS = "cifar10_inception_train.npz"  # mu and sigma of the 50,000 training images
# FID of the first test images against these, by their number; the first is what the field quotes as 3.15.
BAR = {10_000: (3.1508, 1e-2), 2500: (11.5844, 1e-2), 1000: (30.4447, 1e-2)}
# The first 5,000 test images against the first 5,000 training images; one image is 2e-4 of a share.
FIVE_THOUSAND = {
    "kid": (4.8e-7, 1e-7),
    "precision": (0.6908, 5e-4),
    "recall": (0.6846, 5e-4),
    "density": (0.99468, 1e-3),
    "coverage": (0.9700, 5e-4),
}


def check_figures(test: np.ndarray, train: np.ndarray) -> None:
    """All figures, of the features of 10,000 test and 5,000 training images."""
    evidence = of_features(test[:5000], train)
    for name, (expected, budget) in FIVE_THOUSAND.items():
        assert abs(metric_named(name)(evidence).value - expected) < budget, name


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_bar_of_the_field() -> None:
    """3.15 of the test images against the training images' statistics: these weights, this resizing, this distance."""
    path = data_folder() / STATISTICS
    if not path.is_file():
        pytest.skip(f"{path} is not here: that the test images have FID {BAR[10_000][0]} was not checked")
    data, extractor = real("the field's figure for CIFAR-10, FID 3.15, was")
    test, _ = extracted(extractor, quantised(data.heldout_x))
    distance = space_of(read_statistics(path), extractor, 2048, 32).distance
    for count, (expected, budget) in BAR.items():
        assert abs(distance(Moments.of(test[:count])) - expected) < budget, count
    check_figures(test, extracted(extractor, quantised(data.train_x[:5000]))[0])


MODES = {
    "inception_clean": ("clean", lambda levels: (levels - 128) / 128),
    "inception_legacy_pytorch": ("legacy_pytorch", lambda levels: 2 * (levels / 255) - 1),
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_clean_fid_s_other_modes_are_its_own_resizers_before_the_same_network() -> None:
    """FID of 64 test images against 64 training images, by the package's resizing of each image and by ours."""
    clean = pytest.importorskip("cleanfid.resize", reason="clean-fid is not here: its two other modes were not checked")
    data, _ = real("clean-fid's two other modes were")
    network = inception_network(next(file for file in INCEPTION if file.found()).load()[0])

    def theirs(mode: str, prepared: Callable[[torch.Tensor], torch.Tensor], x: np.ndarray) -> np.ndarray:
        resized = np.stack([clean.build_resizer(mode)(image.transpose(1, 2, 0)) for image in to_uint8(x)])
        ready = prepared(torch.from_numpy(resized).permute(0, 3, 1, 2).float())
        with torch.inference_mode():
            return network(ready.contiguous(memory_format=torch.channels_last)).numpy()

    images = [quantise(x[:64]) for x in (data.heldout_x, data.train_x)]
    for name, how in MODES.items():
        own, both = load_extractor(name), [theirs(*how, x) for x in images]
        expected, found = frechet_distance(*map(Moments.of, both)), frechet_distance(*(Moments.of(own(x)[0]) for x in images))
        assert found == pytest.approx(expected, rel=1e-4), name  # features agree within 2e-6 of the largest
