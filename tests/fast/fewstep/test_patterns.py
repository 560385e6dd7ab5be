"""The data set that is made on the spot."""

import hashlib

import numpy as np

from bench.jobs.models import load_data
from fewstep.data.patterns import patterns


def test_patterns_are_the_same_everywhere_and_on_the_levels_of_a_file():
    data = load_data("patterns32")
    assert (data.classes, data.shape, len(data.train_x), len(data.heldout_x)) == (10, (3, 32, 32), 500, 200)
    levels = (data.train_x + 1) * 127.5
    assert np.abs(levels - levels.round()).max() < 1e-3  # float32 of a level
    assert (np.bincount(data.train_y) == 50).all()
    rounded = levels.round().astype(np.uint8).tobytes() + data.train_y.tobytes()
    assert hashlib.sha256(rounded).hexdigest()[:16] == "d0a65df3f42ef76e"
    assert not np.array_equal(data.train_x[:200], data.heldout_x)


def test_classes_differ_more_than_images_of_one_class():
    x, y = patterns(200, 2)
    spectrum = np.abs(np.fft.fft2(x.mean(axis=1)))[:, :4, :4].reshape(200, -1)
    spectrum /= np.linalg.norm(spectrum, axis=1, keepdims=True)
    alike = spectrum @ spectrum.T
    same = y[:, None] == y[None]
    assert alike[same].mean() > alike[~same].mean() + 0.1
