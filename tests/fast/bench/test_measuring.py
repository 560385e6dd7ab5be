"""From samples to measurements: what is told of how they were drawn, and what is computed with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.evaluate.judge import Judge
from bench.evaluate.measuring import measure_all
from bench.jobs.models import load_model
from bench.settings.compose import group_config
from bench.settings.files import choices
from bench.store.artefacts import Store
from bench.store.parts import Samples
from metrics import Measurement
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


def test_models_say_by_which_task_their_samples_have_labels() -> None:
    config = group_config("model", "digits")
    for task, told in (("", "class_conditional"), ("class_conditional_edm", "class_conditional_edm"), ("unconditional", "")):
        assert load_model(config | ({"task": task} if task else {}), "cpu").labelling == told
    published = [name for name in choices("model") if "-cond-" in str(group_config("model", name).get("weights"))]
    assert {"cifar10_edm_cond_vp", "cifar10_edm_cond_ve", "imagenet64"} == set(published)
    assert {group_config("model", name).get("task") for name in published} == {"class_conditional_edm"}
