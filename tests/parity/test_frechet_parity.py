"""The Frechet distance against torch-fidelity's, clean-fid's and the closed form of diagonal Gaussians."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import linalg
from torch.testing import assert_close

from metrics.moments import Moments, frechet_distance


def gaussian_features(seed: int, n: int, d: int) -> np.ndarray:
    rng = np.random.RandomState(seed)
    return rng.randn(n, d) @ (np.eye(d) + 0.3 * rng.randn(d, d)) + rng.randn(d)


CASES = [(0, 200, 3), (1, 300, 16), (2, 2000, 64)]


@pytest.mark.parametrize(("seed", "n", "d"), CASES)
def test_against_torch_fidelity(seed, n, d):
    torch_fidelity = pytest.importorskip("torch_fidelity.metric_fid")
    import torch

    f, g = gaussian_features(seed, n, d), gaussian_features(seed + 10, n, d)
    stats = [torch_fidelity.fid_features_to_statistics(torch.from_numpy(x)) for x in (f, g)]
    theirs = torch_fidelity.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    ours = frechet_distance(Moments.of(f), Moments.of(g))
    assert_close(Moments.of(f).mean, stats[0]["mu"])
    assert_close(Moments.of(f).cov, stats[0]["sigma"])
    assert_close(ours, theirs)


def sqrtm(matrix, disp=True):
    """SciPy's, with the argument that it dropped in 1.18 and that clean-fid passes for a pair of the root and its estimated error."""
    root = linalg.sqrtm(matrix)
    return root if disp else (root, None)


@pytest.mark.parametrize(("seed", "n", "d"), CASES)
def test_against_clean_fid(seed, n, d, monkeypatch):
    fid = pytest.importorskip("cleanfid.fid", reason="clean-fid is not here: agreement with its frechet_distance was not checked")
    monkeypatch.setattr(fid, "linalg", SimpleNamespace(sqrtm=sqrtm))
    f, g = gaussian_features(seed, n, d), gaussian_features(seed + 10, n, d)
    theirs = fid.frechet_distance(f.mean(axis=0), np.cov(f, rowvar=False), g.mean(axis=0), np.cov(g, rowvar=False))
    assert_close(frechet_distance(Moments.of(f), Moments.of(g)), float(theirs))


@pytest.mark.parametrize("d", [1, 7, 100])
def test_against_the_closed_form_of_diagonal_gaussians(d):
    rng = np.random.RandomState(d)
    means, stds = rng.randn(2, d), np.exp(rng.randn(2, d))
    n = 50
    a, b = (Moments(n, m, np.diag((n - 1) * s**2)) for m, s in zip(means, stds))
    expected = ((means[0] - means[1]) ** 2).sum() + ((stds[0] - stds[1]) ** 2).sum()
    assert_close(frechet_distance(a, b), float(expected))


def test_against_the_closed_form_in_singular_directions():
    # Standard deviations (2, 1, 0) and (1, 0, 3), no mean: 1 + 1 + 9. A null direction adds sqrt(eps * 4 * 9) = 9e-8 at most, of 11.
    a, b = (Moments(2, np.zeros(3), np.diag(np.array(s, float) ** 2)) for s in ((2, 1, 0), (1, 0, 3)))
    assert_close(frechet_distance(a, b), 11.0)
