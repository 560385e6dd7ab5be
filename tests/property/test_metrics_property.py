"""Properties that hold for any features and images."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from metrics import quantise, to_uint8
from metrics.intervals import resample_index
from metrics.moments import Moments, frechet_distance

SEEDS = st.integers(0, 2**32 - 1)
quick = settings(max_examples=50, deadline=None, derandomize=True)


def features(seed: int, n: int, d: int) -> np.ndarray:
    """Correlated features away from the origin, so that a merge that forgets the means fails."""
    rng = np.random.RandomState(seed)
    return rng.randn(n, d) @ rng.randn(d, d) + 3 * rng.randn(d)


def same(a: Moments, b: Moments) -> None:
    assert a.count == b.count
    assert_close(a.mean, b.mean)
    # Scatter is a sum of n squares of size 10 to 1e3; rounding is relative to its largest entry, not to each.
    assert_close(a.scatter, b.scatter, rtol=1e-7, atol=1e-9 * float(np.abs(b.scatter).max() + 1))


@quick
@given(SEEDS, st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.integers(1, 6))
def test_merge_is_associative_commutative_and_exact(seed, n, m, k, d):
    f = features(seed, n + m + k, d)
    a, b, c = Moments.of(f[:n]), Moments.of(f[n : n + m]), Moments.of(f[n + m :])
    same(a.merge(b).merge(c), a.merge(b.merge(c)))
    same(a.merge(b), b.merge(a))
    same(a.merge(b).merge(c), Moments.of(f))


@quick
@given(SEEDS, st.integers(2, 30), st.integers(2, 30), st.integers(1, 6))
def test_frechet_is_a_symmetric_distance(seed, n, m, d):
    f, g = features(seed, n, d), features(seed ^ 1, m, d)
    a, b = Moments.of(f), Moments.of(g)
    # Eigenvalues carry an absolute error of d eps lambda_max^2-like scale^2; its root is what a null direction contributes to the sum.
    scale = float(np.trace(a.cov) + np.trace(b.cov) + 1)
    rounding = 2 * d * np.sqrt(d * np.finfo(float).eps) * scale
    forth, back = frechet_distance(a, b), frechet_distance(b, a)
    assert abs(forth - back) <= rounding
    assert forth >= float(((a.mean - b.mean) ** 2).sum()) - rounding
    assert frechet_distance(a, a) <= rounding
    turn = np.linalg.qr(np.random.RandomState(seed ^ 2).randn(d, d))[0]
    assert abs(frechet_distance(Moments.of(f @ turn), Moments.of(g @ turn)) - forth) <= rounding


@quick
@given(SEEDS, st.floats(0.1, 3.0))
def test_quantise_is_idempotent_monotone_and_in_range(seed, width):
    x = (width * np.random.RandomState(seed).randn(2, 1, 3, 3)).astype(np.float32)
    q = quantise(x)
    assert q.dtype == np.float32
    assert np.array_equal(quantise(q), q)
    assert np.abs(q).max() <= 1
    order = np.argsort(x.ravel())
    assert (np.diff(to_uint8(x).ravel()[order].astype(int)) >= 0).all()


@quick
@given(SEEDS, st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 9))
def test_resamples_keep_the_classes(seed, labels, per_class):
    y = np.array(labels)
    assert np.array_equal(y[resample_index(y, seed)], np.sort(y))
    assert np.array_equal(y[resample_index(y, seed, per_class)], np.repeat(np.unique(y), per_class))
