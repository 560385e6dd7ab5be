"""Figures of real CIFAR-10 images in real Inception features, and the packages' own code on the same ones."""

from dataclasses import replace

import numpy as np
import pytest

from fewstep.data.cifar10 import cifar10
from fewstep.errors import Unavailable
from metrics import Evidence, metric_named
from metrics.features.extractors import extracted, load_extractor
from metrics.pixels import quantised
from metrics.reference import build_reference

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


@pytest.mark.slow
def test_real_images_in_real_features() -> None:
    try:
        data, extractor = cifar10(), load_extractor("inception")
    except Unavailable as err:
        pytest.skip(f"{err}: figures of CIFAR-10 in Inception features were not checked")
    real = build_reference(
        replace(data, train_x=data.train_x[:COUNT], train_y=data.train_y[:COUNT], heldout_x=data.heldout_x[:0], kept=None), [extractor]
    )
    images, labels = quantised(data.heldout_x[:COUNT]), data.heldout_y[:COUNT]
    features, _ = extracted(extractor, images)
    evidence = Evidence(images, labels, {"inception": features}, {}, None, real)
    found = {name: metric_named(name)(evidence).value for name in FIGURES}
    for name, (expected, budget) in FIGURES.items():
        assert abs(found[name] - expected) < budget, name
    from torch import from_numpy
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    both = [from_numpy(np.asarray(rows, np.float64)) for rows in (features, real.spaces["inception"].features("test")[:])]
    theirs = prc_features_to_metric(*both, prc_neighborhood=3, verbose=False)
    theirs["kid"] = kid_features_to_metric(*both, kid_subsets=1, kid_subset_size=COUNT, verbose=False)["kernel_inception_distance_mean"]
    for name in ("kid", "precision", "recall"):
        assert found[name] == pytest.approx(theirs[name], rel=1e-5)
