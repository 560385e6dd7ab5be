"""From samples to measurements: what is told of how they were drawn, and what is computed with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from bench.evaluate import judge as judges
from bench.evaluate.judge import Judge
from bench.evaluate.measuring import measure_all
from bench.evaluate.references import ensure_space
from bench.jobs.models import load_model
from bench.settings.compose import group_config
from bench.settings.files import choices
from bench.store.artefacts import Store
from bench.store.parts import Samples
from fewstep.errors import UsageError
from metrics import Measurement
from metrics.families import neighbours
from metrics.families.neighbours import radii
from metrics.features.statistics import read_statistics
from metrics.reference import build_reference
from support.evidence import FakeData, Projection

SEEN = Projection(name="inception")


def judged(store: Store) -> Judge:
    """A judge of made-up images, whose Inception is a projection."""
    return Judge(build_reference(FakeData(), [SEEN]), {"inception": SEEN}, store=store)  # pyright: ignore[reportArgumentType]


def test_a_published_distance_is_of_labels_that_were_drawn_as_published(tmp_path: Path) -> None:
    store = Store(tmp_path)
    labels = np.arange(50_000) % 4
    samples = Samples(FakeData.draw(np.random.RandomState(1), labels), labels, 0, "edm")
    for labelling, told in (
        ("class_conditional_edm", ""),
        ("", ""),
        ("class_conditional", "of the task class_conditional; write"),
    ):
        own = replace(samples, labelling=labelling)
        found = measure_all(["fid_published"], own, None, "key", judged(store), store, lambda text: None)["fid_published"]
        assert (told in str(found)) if told else isinstance(found, Measurement), (labelling, found)


def test_balls_of_real_images_are_measured_once_for_all_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, counted = Store(tmp_path), list[int]()
    alone = judged(store)
    space = ensure_space(alone.reference, SEEN, store)  # pyright: ignore[reportArgumentType]
    kept = replace(alone, reference=replace(alone.reference, spaces={"inception": space}))
    monkeypatch.setattr(neighbours, "real_radii", lambda real: counted.append(len(real)) or radii(real, (3, 5)))
    names, labels = ["precision", "recall", "density", "coverage"], np.arange(100) % 4

    def found(judge: Judge, seed: int, count: int) -> dict[str, Measurement | str]:
        samples = Samples(FakeData.draw(np.random.RandomState(seed), labels[:count]), labels[:count])
        return measure_all(names, samples, None, f"{seed} {count}", judge, store, lambda text: None)

    for seed, count in ((1, 100), (2, 100), (3, 60)):
        assert found(kept, seed, count) == found(alone, seed, count)
    assert counted == [100, 100, 100, 60, 60]  # of samples of 100, once by the first judge and each time by the one that keeps nothing


def test_statistics_that_are_not_of_a_metric_leave_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric that somebody asked for by name, or the last one, is refused."""
    dims = {"inception": 6, "efficientnet_lite0": 9}

    @dataclass(frozen=True)
    class Flat:
        name: str
        version: int = 1
        digest: str = "0" * 64

        def __call__(self, images: np.ndarray) -> tuple[np.ndarray, None]:
            return np.zeros((len(images), dims[self.name])), None

    monkeypatch.setattr(judges, "load_extractor", lambda name, device: Flat(name))
    np.savez(tmp_path / "cifar10-32x32.npz", mu=np.zeros(6), sigma=np.eye(6))
    statistics, shape = read_statistics(tmp_path / "cifar10-32x32.npz"), (3, 32, 32)
    found = judges.judge_by(statistics, shape, {"fid", "fd_efficientnet", "nn_train_share"}, None, asked=False)
    assert [*found.extractors] == [*found.reference.spaces] == ["inception"]
    assert found.absence("fd_efficientnet").startswith("statistics cifar10-32x32.npz are of 6 features, and efficientnet_lite0 has 9")
    assert "compares with real images" in found.absence("nn_train_share")
    assert not found.absence("fid")
    for names, asked in (({"fid", "fd_efficientnet"}, True), ({"fd_efficientnet", "nn_train_share"}, False)):
        with pytest.raises(UsageError, match="are of 6 features, and efficientnet_lite0 has 9"):
            judges.judge_by(statistics, shape, names, None, asked=asked)


def test_models_say_by_which_task_their_samples_have_labels() -> None:
    config = group_config("model", "digits")
    for task, told in (("", "class_conditional"), ("class_conditional_edm", "class_conditional_edm"), ("unconditional", "")):
        assert load_model(config | ({"task": task} if task else {}), "cpu").labelling == told
    published = [name for name in choices("model") if "-cond-" in str(group_config("model", name).get("weights"))]
    assert {"cifar10_edm_cond_vp", "cifar10_edm_cond_ve", "imagenet64", "imagenet64_baseline"} == set(published)
    assert {group_config("model", name).get("task") for name in published} == {"class_conditional_edm"}
