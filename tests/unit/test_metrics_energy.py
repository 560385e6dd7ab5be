"""The energy distance on distributions whose distance is known."""

import math

import numpy as np
import pytest

from fewstep.energy import distances, energy
from metrics import METRICS, Evidence
from metrics.energy import ENERGY_DISTANCE
from metrics.reference import Reference

SHAPE = (1, 1, 1)


def reference(train: np.ndarray) -> Reference:
    labels = np.arange(len(train)) % 2
    return Reference("made", 2, train, labels, train[:2], labels[:2], "abc", {})


def measured(x: np.ndarray, y: np.ndarray, teacher: np.ndarray | None = None):
    return ENERGY_DISTANCE(Evidence(x, np.arange(len(x)) % 2, {}, {}, teacher, reference(y)))


def normal(count: int, mean: float, seed: int, std: float = 1.0) -> np.ndarray:
    return (mean + std * np.random.RandomState(seed).standard_normal((count, *SHAPE))).astype(np.float32)


def expected_distance(gap: float, std: float) -> float:
    """E|z| of z ~ N(gap, std^2): the folded normal."""
    return std * math.sqrt(2 / math.pi) * math.exp(-((gap / std) ** 2) / 2) + gap * math.erf(gap / std / math.sqrt(2))


def test_two_points_by_hand():
    x, y = np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[0.0, 0.0], [0.0, 1.0]])
    across = distances(x, y)
    np.testing.assert_allclose(across, [[0, 1], [5, math.sqrt(18)]])
    # 2 (0 + 1 + 5 + sqrt 18) / 4 - 5 - 1
    assert energy(across, distances(x, x), distances(y, y)) == pytest.approx((6 + math.sqrt(18)) / 2 - 6)


@pytest.mark.parametrize(("gap", "std"), [(1.0, 1.0), (0.0, 2.0), (0.0, 1.0)])
def test_two_gaussians(gap, std):
    """2 E|x - y| - E|x - x'| - E|y - y'| in one dimension, where all three are folded normals."""
    exact = 2 * expected_distance(gap, math.hypot(1, std)) - expected_distance(0, math.sqrt(2)) - expected_distance(0, std * math.sqrt(2))
    found = measured(normal(2000, 0, 0), normal(2000, gap, 1, std))
    assert abs(found.value - exact) < 4 * math.sqrt(2) * found.std_error  # that of the samples; the reference has about as much
    assert 0 < found.std_error < 0.03


def test_it_is_unbiased_and_fine_grid_is_the_teachers():
    values = [measured(normal(100, 0, s), normal(100, 0, s + 500)).value for s in range(200)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(len(values))
    x, y, fine = normal(300, 1, 0), normal(300, 0, 1), normal(300, 0, 2)
    assert measured(x, y, fine).protocol["fine_grid"] == measured(fine, y).value
    assert measured(x, y).protocol["fine_grid"] is None


def test_numbers_belong_to_the_version():
    found = METRICS["energy_distance"](Evidence(normal(60, 0.3, 0), np.arange(60) % 2, {}, {}, None, reference(normal(80, 0, 1))))
    recorded = {2: (0.03511740547483022, 0.04369128310060663)}
    # Sums of float64 in another order.
    np.testing.assert_allclose((found.value, found.std_error), recorded[ENERGY_DISTANCE.version], rtol=1e-9)
