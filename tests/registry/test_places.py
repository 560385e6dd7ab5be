"""Every distiller wherever its teacher is: on the closed forms that suites have beside the mixture, and on a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.jobs.models import load_model
from bench.jobs.resolve import resolve
from bench.jobs.samples import Bound, ensure_samples
from bench.jobs.suite import Suite
from bench.settings.compose import group_config
from bench.store.artefacts import Store
from bench.store.cell import Cell
from fewstep.errors import UsageError
from fewstep.plugins import entries, get

BUDGET = {"batches": 1, "batch_size": 4, "start": 1, "guided": 1, "count": 8, "fake_updates": 1}
BUDGET |= {"s1": 10, "fewest": 2, "most": 2, "first": 4}
TINY = {"config": {"channels": [8, 16], "blocks": 1, "emb": 32}, "options": {"batches": 2, "batch_size": 4}}
PLACES = [("arena_digits", "cpu"), pytest.param("arena_gaussian", "cpu", marks=pytest.mark.slow)]
PLACES += [pytest.param(model, "cuda", marks=pytest.mark.gpu) for model in ("arena_mixture", "digits")]


@pytest.mark.parametrize(("place", "device"), PLACES)
@pytest.mark.parametrize("name", entries("distiller"))
def test_a_student_trains_and_samples(name: str, place: str, device: str, tmp_path: Path) -> None:
    """A batch of each phase, its warm start and pairs included, and its samples in one pass; guided ones need classes and say so."""
    config = group_config("model", place)
    if "branch" in get("distiller", name).fields:
        config |= {"task": "superres_x2"}
    model = load_model(config | TINY if "closed_form" in config else config, device)
    options = {k: v for k, v in BUDGET.items() if k in get("distiller", name).fields}
    suite, store = Suite("places", max(4, model.data.classes), 0, "philox", "dpmpp_2m", 4, {name: options}, ()), Store(tmp_path)

    def images() -> np.ndarray:
        job = resolve(Cell(name, nfe=1), suite, model)
        for fit in job.fits:
            fit.ensure(model, store, device, lambda text: None)
        return ensure_samples(Bound(job, model, store, device), 4, lambda text: None).images[:]

    if get("distiller", name).make().sampling().w and not model.data.classes:
        with pytest.raises(UsageError, match="classes"):
            images()
        return
    found = images()
    assert found.shape == (suite.samples, *model.data.shape)
    assert np.isfinite(found).all()
    assert np.ptp(found) > 0
