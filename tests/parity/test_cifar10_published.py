"""The real CIFAR-10, where it is: what its author and others state of it."""

from __future__ import annotations

import numpy as np
import pytest

from fewstep.assets import data_folder
from fewstep.data.cifar10 import cifar10
from fewstep.data.images import ImageData
from fewstep.data.recognised import pixels
from fewstep.errors import Unavailable

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data() -> ImageData:
    try:
        found = cifar10()
    except Unavailable:
        pytest.skip(f"no CIFAR-10 in {data_folder()} (set FEWSTEP_DATA): its counts, means, first labels and digests were not checked")
    if len(found.train_x) != 50_000:
        pytest.skip(f"CIFAR-10 in {data_folder()} is a made one: counts, means, first labels and digests of the real one were not checked")
    return found


def test_counts_and_first_labels_are_the_published_ones(data: ImageData) -> None:
    assert np.bincount(data.train_y).tolist() == [5000] * 10
    assert data.train_y[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    if len(data.heldout_x):
        assert np.bincount(data.heldout_y).tolist() == [1000] * 10
        assert data.heldout_y[:5].tolist() == [3, 8, 8, 0, 6]


def test_channel_means_and_deviations_are_the_published_ones(data: ImageData) -> None:
    sums, squares = np.zeros(3), np.zeros(3)
    for first in range(0, 50_000, 1000):
        part = (data.train_x[first : first + 1000].astype(np.float64) + 1) / 2
        sums += part.sum((0, 2, 3))
        squares += (part**2).sum((0, 2, 3))
    count = 50_000 * 32 * 32
    mean = sums / count
    # Stated with four digits.
    assert np.allclose(mean, [0.4914, 0.4822, 0.4465], rtol=0, atol=5.1e-5)
    # And so are these.
    assert np.allclose(np.sqrt(squares / count - mean**2), [0.2470, 0.2435, 0.2616], rtol=0, atol=5.1e-5)


def test_the_digests_are_those_that_are_recorded(data: ImageData) -> None:
    """Whatever form it is in; `cifar10` itself would have refused others."""
    assert pixels(data, "train").startswith("973ef2abb589")
    assert data.digest().startswith("594ccca8e941")
