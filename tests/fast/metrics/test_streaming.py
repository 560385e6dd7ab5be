"""Evidence that is read block by block gives the numbers of evidence in memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bench.evaluate.judge import Judge
from bench.evaluate.measuring import measured
from fewstep.errors import UsageError
from metrics import Measurement, declared, metrics_by_name, quantise, streaming
from metrics.families import energy
from metrics.features.extractors import extracted
from metrics.metric import Evidence
from metrics.moments import Moments, moments_of
from metrics.pixels import quantised
from support.components import SMALL
from support.components import evidence as complete
from support.each import each
from support.evidence import Projection


@dataclasses.dataclass(frozen=True, eq=False)
class Lazy:
    """Rows that are read when they are indexed, never many at once."""

    rows: np.ndarray
    most: int = 10**9

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        found = self.rows[index]
        assert len(found) <= self.most
        return found


NAMES = [name for name, metric in metrics_by_name().items() if not declared(metric).files and declared(metric).extractor != "inception"]


@each("name", NAMES)
@pytest.mark.parametrize("size", [1, 7])
def test_blocks_change_no_number(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, metric = complete(), dataclasses.replace(metrics_by_name()[name], **SMALL.get(name, {}))
    expected = metric(whole)
    monkeypatch.setattr(streaming, "HELD", 0)
    monkeypatch.setattr(energy, "HELD", 0)
    monkeypatch.setattr(streaming, "BLOCK_BYTES", size * whole.images[0].size * 4)
    lazy = {
        f: Lazy(v) for f in ("images", "teacher_images", "raw", "raw_teacher", "target") if isinstance(v := getattr(whole, f), np.ndarray)
    }
    features = {name: Lazy(np.asarray(rows)) for name, rows in whole.features.items()}
    logits = {name: Lazy(np.asarray(rows)) for name, rows in whole.logits.items()}
    real = dataclasses.replace(whole.reference, train_x=Lazy(whole.reference.train_x), heldout_x=Lazy(whole.reference.heldout_x))
    told = {what: Lazy(np.asarray(rows)) for what, rows in whole.condition.items()}
    found = metric(dataclasses.replace(whole, **lazy, features=features, logits=logits, condition=told, reference=real))
    # Sums of thousands of float64 in another order; roots of eigenvalues that vanish carry 1e-8 of a rounding of 1e-16.
    close = 1e-7 if expected.protocol.get("rank_deficient") else 1e-10
    np.testing.assert_allclose(found.value, expected.value, rtol=close)  # as above
    assert (found.std_error is None) == (expected.std_error is None)
    if found.std_error is not None:
        # A spread of differences of such sums.
        np.testing.assert_allclose(found.std_error, expected.std_error, rtol=1e-6)
    for field, value in expected.protocol.items():
        if isinstance(value, float):
            np.testing.assert_allclose(found.protocol[field], value, rtol=close)  # as above
        elif field != "resampled":
            assert found.protocol[field] == value


def test_moments_of_a_resample_are_those_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 7 * 5 * 4)
    rng = np.random.RandomState(0)
    rows, index = rng.standard_normal((50, 5)), rng.randint(50, size=60)
    for chosen in (None, index, np.full(4, 49)):
        found, direct = moments_of(Lazy(rows, 7), chosen), Moments.of(rows if chosen is None else rows[chosen])
        assert found.count == direct.count
        np.testing.assert_allclose(found.mean, direct.mean, rtol=1e-12)  # sums of 60 in another order
        np.testing.assert_allclose(found.scatter, direct.scatter, rtol=1e-12, atol=1e-12)  # sums of 60 in another order
    with pytest.raises(UsageError, match="moments need features"):
        moments_of(Lazy(rows[:0]))


def test_images_are_quantised_and_shown_to_extractors_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.RandomState(0).uniform(-1.2, 1.2, (50, 1, 4, 4)).astype(np.float32)
    lazy = quantised(Lazy(images))
    assert np.array_equal(lazy[3:9], quantise(images)[3:9])
    assert lazy.shape == images.shape
    for ours, direct in zip(extracted(Projection(), lazy), Projection()(quantise(images))):
        np.testing.assert_allclose(ours, direct, rtol=1e-12)  # products of matrices of another size


@dataclasses.dataclass(frozen=True)
class Restored:
    """The mean difference to the true images."""

    version: int = 1
    unit: str = "levels"
    higher_is_better: bool = False
    needs_target: bool = True

    def __call__(self, evidence: Evidence) -> Measurement:
        assert evidence.target is not None
        gaps = [np.abs(a - b).mean() for a, b in zip(streaming.blocks(evidence.images), streaming.blocks(evidence.target))]
        return Measurement(float(np.mean(gaps)), None, len(evidence.images), {})


def test_a_metric_that_needs_a_target_says_when_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.evaluate import measuring

    monkeypatch.setattr(measuring, "metric_named", lambda name: Restored())
    whole = complete()
    judge = Judge(whole.reference, {})
    without = measured(["restored"], dataclasses.replace(whole, target=None), judge)["restored"]
    assert without == "restored compares with the true images that conditions were made of, and these samples have none"
    found = measured(["restored"], dataclasses.replace(whole, target=whole.images), judge)["restored"]
    assert isinstance(found, Measurement)
    assert found.value == 0
    with pytest.raises(UsageError, match="but 3 targets"):
        dataclasses.replace(whole, target=whole.images[:3])
    with pytest.raises(UsageError, match="rows of low"):
        dataclasses.replace(whole, condition={"low": np.zeros(3)})
