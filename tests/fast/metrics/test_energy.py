"""The energy distance on distributions whose distance is known."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from fewstep.arenas import arena_mixture
from fewstep.energy import distances, energy, energy_distance, strata, within
from fewstep.errors import Unavailable, UsageError
from metrics import Evidence, metric_named, metrics_by_name
from metrics.reference import Reference

ENERGY_DISTANCE = metric_named("energy_distance")

METRICS = metrics_by_name()

SHAPE = (1, 1, 1)


def reference(train: np.ndarray, labels: np.ndarray | None = None) -> Reference:
    labels = np.arange(len(train)) % 2 if labels is None else labels
    return Reference("made", len(np.unique(labels)), train, labels, train[:2], labels[:2], "abc", {})


def measured(x: np.ndarray, y: np.ndarray, teacher: np.ndarray | None = None):
    return ENERGY_DISTANCE(Evidence(x, np.arange(len(x)) % 2, {}, {}, teacher, reference(y)))


def normal(count: int, mean: float, seed: int, std: float = 1.0) -> np.ndarray:
    return (mean + std * np.random.RandomState(seed).standard_normal((count, *SHAPE))).astype(np.float32)


def expected_distance(gap: float, std: float) -> float:
    """E|z| of z ~ N(gap, std^2): the folded normal."""
    return std * math.sqrt(2 / math.pi) * math.exp(-((gap / std) ** 2) / 2) + gap * math.erf(gap / std / math.sqrt(2))


def around_zero(values: list[float]) -> bool:
    """Whether the mean is within four of its own standard errors of 0."""
    return abs(np.mean(values)) < 4 * np.std(values, ddof=1) / math.sqrt(len(values))


def test_two_points_by_hand():
    x, y = np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[0.0, 0.0], [0.0, 1.0]])
    across, one = distances(x, y), strata(np.zeros(2, int))
    np.testing.assert_allclose(across, [[0, 1], [5, math.sqrt(18)]])
    # 2 (0 + 1 + 5 + sqrt 18) / 4 - 5 - 1
    by_hand = (6 + math.sqrt(18)) / 2 - 6
    assert energy(across, distances(x, x), distances(y, y), one, one) == pytest.approx(by_hand)
    assert energy_distance(x, y) == pytest.approx(by_hand)


@pytest.mark.parametrize("shares", [None, {0: 0.5, 1: 0.2, 2: 0.3}])
def test_pairs_of_strata_by_their_definition(shares):
    """sum_c p_c^2 E_cc + sum_{c != d} p_c p_d E_cd, with means over the pairs themselves."""
    labels = np.array([0, 1, 2, 0, 1, 2, 2, 0, 2])
    x = np.random.RandomState(0).randn(9, 3)
    p, total = shares or {0: 3 / 9, 1: 2 / 9, 2: 4 / 9}, 0.0
    for c in range(3):
        for d in range(3):
            pairs = [(i, j) for i in np.flatnonzero(labels == c) for j in np.flatnonzero(labels == d) if i != j]
            total += p[c] * p[d] * np.mean([np.linalg.norm(x[i] - x[j]) for i, j in pairs])
    assert within(distances(x, x), strata(labels, shares)) == pytest.approx(total)


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
    assert around_zero(values)
    x, y, fine = normal(300, 1, 0), normal(300, 0, 1), normal(300, 0, 2)
    assert measured(x, y, fine).protocol["fine_grid"] == measured(fine, y).value
    assert measured(x, y).protocol["fine_grid"] is None


# --- labels that matter ---------------------------------------------------------------------------------------------------------

FAR = 4.0  # between the means of neighbouring classes, whose deviation is 1


def of_classes(labels: np.ndarray, seed: int) -> np.ndarray:
    return FAR * labels.reshape(-1, *SHAPE) + normal(len(labels), 0, seed).astype(np.float64)


def drawn_labels(how: str, count: int, seed: int) -> np.ndarray:
    """Of classes with the shares 1/2, 1/4, 1/4 in the data; `even` samples have as many of each."""
    pattern = {"in turn": [0, 1, 0, 2], "even": [0, 1, 2], "at random": [0, 1, 0, 2]}[how]
    return np.random.RandomState(seed).choice(pattern, count) if how == "at random" else np.resize(pattern, count)


@pytest.mark.parametrize("how", ["in turn", "at random", "even"])
def test_exact_samples_score_zero_in_the_mean_however_their_labels_are_drawn(how):
    """Samples of each class from the distribution of the data: 0 in the mean, to 4 standard errors of 300 pairs of sets."""
    values = []
    for seed in range(300):
        own, data = drawn_labels(how, 60, 900 + seed), drawn_labels("in turn", 80, 0)
        x, y = of_classes(own, seed), of_classes(data, 5000 + seed)
        values.append(ENERGY_DISTANCE(Evidence(x, own, {}, {}, None, reference(y, data), range_known=True)).value)
    assert around_zero(values), (np.mean(values), np.std(values))


def test_pairs_without_classes_are_biased_on_a_balanced_set_and_only_there():
    """The distance without labels takes sets for i.i.d.: about E_between (1/N + 1/M) too low where they are not."""
    balanced, labels = drawn_labels("in turn", 60, 0), [drawn_labels("at random", 60, s) for s in range(600)]
    blind = [energy_distance(of_classes(balanced, s), of_classes(balanced, 5000 + s)) for s in range(300)]
    assert not around_zero(blind)
    assert np.mean(blind) < -0.05
    told = [energy_distance(of_classes(balanced, s), of_classes(balanced, 5000 + s), balanced, balanced) for s in range(300)]
    assert around_zero(told)
    random = [energy_distance(of_classes(labels[s], s), of_classes(labels[300 + s], 5000 + s)) for s in range(300)]
    assert around_zero(random)


@pytest.mark.parametrize("count", [500, 100])
def test_two_exact_sets_of_the_arena_are_at_distance_zero(count):
    arena, labels = arena_mixture(), torch.arange(count) % 10

    def pair(seed: int, *given: np.ndarray) -> float:
        return energy_distance(*(arena.draw(labels, torch.Generator().manual_seed(s)).numpy() for s in (seed, seed + 99)), *given)

    assert around_zero([pair(s, labels.numpy(), labels.numpy()) for s in range(40)])
    blind = [pair(s) for s in range(40)]
    assert not around_zero(blind)
    assert np.mean(blind) == pytest.approx(-3.6 / count, rel=0.2)  # -0.0073 of 500, -0.036 of 100


def test_a_class_that_is_too_narrow_or_displaced_is_seen():
    labels = np.arange(400) % 2
    y, good = of_classes(labels, 1), of_classes(labels, 2)
    near = ENERGY_DISTANCE(Evidence(good, labels, {}, {}, None, reference(y, labels), range_known=True)).value
    for spoilt in (np.where(labels.reshape(-1, *SHAPE) == 1, FAR, good), good + 0.5 * labels.reshape(-1, *SHAPE)):
        assert ENERGY_DISTANCE(Evidence(spoilt, labels, {}, {}, None, reference(y, labels), range_known=True)).value > near + 0.03


def test_copies_of_the_training_images_score_below_zero():
    """Each is at distance 0 from one of them: twice the E|y - y'| of a class over its number, weighted, less than fresh ones."""
    labels = np.arange(40) % 2
    y = of_classes(labels, 1)
    found = ENERGY_DISTANCE(Evidence(y, labels, {}, {}, None, reference(y, labels))).value
    each = [within(distances(z, z), strata(np.zeros(20, int))) for z in (y[labels == c].reshape(20, 1) for c in (0, 1))]
    assert found == pytest.approx(-2 * sum(e / 4 / 20 for e in each))


def test_what_has_no_unbiased_value_is_refused():
    x, labels = normal(6, 0, 0), np.array([0, 0, 1, 1, 2, 2])
    sample = Evidence(x, labels, {}, {}, None, reference(normal(6, 0, 1), labels))
    lonely = dataclasses.replace(sample, labels=np.array([0, 0, 1, 1, 1, 2]))
    with pytest.raises(
        Unavailable, match=r"^an unbiased energy distance needs at least two samples of each class, got one of class 2; take"
    ):
        ENERGY_DISTANCE(lonely)
    few = dataclasses.replace(sample, labels=np.array([0, 0, 0, 1, 1, 1]))  # their shares would count for three classes' worth
    with pytest.raises(Unavailable, match=r"^an unbiased energy distance needs samples of every class of made, got none of class 2; take"):
        ENERGY_DISTANCE(few)
    with pytest.raises(UsageError, match=r"^an unbiased energy distance needs at least two training images of made of each class, got one"):
        ENERGY_DISTANCE(dataclasses.replace(sample, reference=dataclasses.replace(sample.reference, train_y=lonely.labels)))
    with pytest.raises(UsageError, match=r"^samples of class 7, of which the training split of made has no image; give .* of 0, 1, 2$"):
        ENERGY_DISTANCE(dataclasses.replace(sample, labels=labels + 7))


def test_samples_without_classes_are_one_stratum():
    """As those of an unconditional model, whose labels are all 0, beside data with classes."""
    y, labels = of_classes(np.arange(40) % 2, 1), np.arange(40) % 2
    x = of_classes(np.random.RandomState(0).randint(0, 2, 60), 2)
    found = ENERGY_DISTANCE(Evidence(x, np.zeros(60, np.int64), {}, {}, None, reference(y, labels), range_known=True))
    assert found.value == pytest.approx(energy_distance(x, y, None, labels))
    assert found.protocol["classes"] == 1


# --- its error ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "low", "high"), [(0.15, 0.8, 1.25), (0.0, 1.0, 2.2)])
def test_its_standard_error_against_the_spread_over_fresh_samples(shift, low, high):
    """Right far from the data; near them, where the distance has no linear part left, too large by 1.7 (100 of each class)."""
    arena, labels = arena_mixture(), torch.arange(500) % 10
    y = arena.draw(labels, torch.Generator().manual_seed(7)).numpy()
    against, found = reference(y, labels.numpy()), []
    for seed in range(40):
        x = arena.draw(labels, torch.Generator().manual_seed(100 + seed)).numpy() + shift
        found.append(ENERGY_DISTANCE(Evidence(x, labels.numpy(), {}, {}, None, against, range_known=True)))
    spread = np.std([m.value for m in found], ddof=1)  # known to 11%; the claims' mean to 3%
    assert low < np.mean([m.std_error for m in found]) / spread < high


def test_numbers_belong_to_the_version():
    found = METRICS["energy_distance"](Evidence(normal(60, 0.3, 0), np.arange(60) % 2, {}, {}, None, reference(normal(80, 0, 1))))
    recorded = {3: (0.03490532710147232, 0.04366337048765245)}
    # Sums of float64 in another order.
    np.testing.assert_allclose((found.value, found.std_error), recorded[ENERGY_DISTANCE.version], rtol=1e-9)
