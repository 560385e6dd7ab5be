"""Precision, recall, density and coverage against their formulas and torch-fidelity's code; copying in feature space."""

import dataclasses

import numpy as np
import pytest
from torch.testing import assert_close

from fewstep.errors import Unavailable
from metrics import metric_named
from metrics.families import neighbours as neighbours_module
from metrics.families.neighbours import neighbours, radii, real_radii
from support.featured import drawn, of_features

FOUR = {name: metric_named(name) for name in ("precision", "recall", "density", "coverage")}


def by_the_formulas(fake: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """As 1904.06991 (k = 3) and 2002.09797 (k = 5) write them, over all pairs at once."""

    def apart(a, b):
        return np.sqrt(((a[:, None].astype(float) - b[None]) ** 2).sum(axis=2))

    def ball(a, k):
        return np.sort(apart(a, a), axis=1)[:, k]  # place 0 is the point itself

    across = apart(real, fake)
    return {
        "precision": (across <= ball(real, 3)[:, None]).any(axis=0).mean(),
        "recall": (across <= ball(fake, 3)[None]).any(axis=1).mean(),
        "density": (across <= ball(real, 5)[:, None]).sum(axis=0).mean() / 5,
        "coverage": (across.min(axis=1) <= ball(real, 5)).mean(),
    }


def test_they_are_the_formulas_and_torch_fidelity_s():
    for seed, shift in ((0, 0.0), (1, 0.4), (2, 3.0)):
        fake, real = drawn(seed, 60) + np.float32(shift), drawn(seed + 10, 60)
        evidence = of_features(fake, real)
        found = {name: metric(evidence) for name, metric in FOUR.items()}
        for name, expected in by_the_formulas(fake, real).items():
            assert_close(found[name].value, float(expected))
            assert found[name].protocol["neighbours"] == (3 if name in ("precision", "recall") else 5)
        theirs = pytest.importorskip("torch_fidelity.metric_prc")
        import torch

        told = theirs.prc_features_to_metric(*(torch.from_numpy(v).double() for v in (fake, real)), prc_neighborhood=3, verbose=False)
        for name in ("precision", "recall"):
            assert_close(found[name].value, told[name], rtol=1e-6, atol=0)  # their mean is of float32
        assert (found["precision"].std_error is None, found["recall"].std_error) == (found["precision"].value in (0.0, 1.0), None)


def test_one_pass_serves_all_four_whatever_the_blocks(monkeypatch):
    fake, real = drawn(0, 37), drawn(1, 37)
    whole = neighbours(fake, real, real_radii(real))
    monkeypatch.setattr(neighbours_module, "block_size", lambda rows: 8)
    parted = neighbours(fake, real, real_radii(real))
    for name in ("realistic", "counts", "recalled", "covered"):
        assert np.array_equal(getattr(whole, name), getattr(parted, name))
    assert_close(radii(fake, (3, 5)), np.sort(((fake[:, None].astype(float) - fake[None]) ** 2).sum(axis=2), axis=1)[:, [3, 5]])
    calls = []
    monkeypatch.setattr(neighbours_module, "neighbours", lambda *args: calls.append(1) or whole)
    evidence = of_features(fake, real)
    for metric in FOUR.values():
        metric(evidence)
    assert len(calls) == 1


def test_as_many_real_images_as_samples_are_compared_with():
    fake, real = drawn(0, 30), drawn(1, 90)
    assert FOUR["precision"](of_features(fake, real)).value == FOUR["precision"](of_features(fake, real[::3])).value
    assert FOUR["recall"](of_features(fake, real)).protocol["reference_count"] == 30
    assert FOUR["recall"](of_features(real, fake)).protocol["reference_count"] == 30
    with pytest.raises(Unavailable, match="more than 5 samples and real images, got 5 samples and 5 real images"):
        FOUR["density"](of_features(fake[:5], real))


def test_copies_in_feature_space():
    metric = metric_named("nn_train_share_inception")
    train, heldout = drawn(0, 80), drawn(1, 20)
    assert metric(of_features(train[:30] + np.float32(1e-4), train, heldout)).value == 1
    assert metric(of_features(heldout, train, heldout)).value == 0
    both = metric(of_features(np.concatenate([train[:20], heldout]), train, heldout))
    assert_close(both.value, 0.2)  # as in test_copying
    with pytest.raises(Unavailable, match="no features of its heldout images"):
        metric(of_features(train, train))
    broken = dataclasses.replace(of_features(train, train, heldout))
    broken.features["inception"][0, 0] = np.nan
    with pytest.raises(FloatingPointError):
        metric(broken)
