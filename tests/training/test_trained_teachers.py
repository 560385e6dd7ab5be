"""Teachers that are trained before their first use and live in the store: their address, their training, and students of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.jobs.fits.students import Student
from bench.jobs.fits.teachers import teacher_fit, with_teacher
from bench.jobs.models import load_model
from bench.settings.compose import group_config
from bench.store.artefacts import Store
from fewstep.errors import UsageError
from fewstep.precond import ProcessPrecond
from fewstep.schedule import Cosine

FORMS = ("x0", "v", "eps", "x0_eps")


def config(form: str, **options) -> dict:
    """The shipped configuration with a small network and a short training."""
    found = group_config("model", f"digits_{form}")
    small = {"channels": [16, 32], "blocks": 1, "emb": 32}
    return {
        **found,
        "config": {"unet": small} if form == "x0_eps" else small,
        "options": {**found["options"], "batches": 3, "batch_size": 8, **options},
    }


@pytest.mark.parametrize("form", FORMS)
def test_a_teacher_is_trained_once_and_kept(form: str, tmp_path: Path):
    """The first use trains it, the next loads the same weights; the digest is known before, and students are told apart by it."""
    said: list[str] = []
    model, store = load_model(config(form), "cpu"), Store(tmp_path)
    assert model.teacher.precond == ProcessPrecond(Cosine(), form)
    assert model.teacher.sigma_range == pytest.approx(
        (float(Cosine().sigma(0.0)), float(Cosine().sigma(1.0))), rel=1e-11
    )  # tan near its pole
    fit = teacher_fit(model)
    assert fit is not None
    with pytest.raises(UsageError, match=f"of digits_{form} is not trained in"):
        fit.load(model, store, "cpu")
    first = with_teacher(model, store, "cpu", said.append)
    assert len(said) == 1
    assert f"of digits_{form}: 3 batches in 1 phase(s), 24 images" in said[0]
    again = with_teacher(load_model(config(form), "cpu"), store, "cpu", said.append)
    assert len(said) == 1
    assert again.digest == first.digest == model.digest
    old, one, two = (m.teacher.net.state_dict() for m in (model, first, again))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not all(torch.equal(one[k], old[k]) for k in one)
    assert not any(p.requires_grad for p in again.teacher.net.parameters())
    assert not again.teacher.net.training
    student = Student("pd", {"grid": "cosine", "start": 1, "batches": 2, "batch_size": 4})
    student.ensure(first, store, "cpu", said.append)
    loaded = student.load(again, store, 1)
    x = again.teacher.sigma_range[1] * torch.ones(1, 1, 8, 8)
    assert torch.isfinite(loaded(x, again.teacher.sigma_range[1])).all()


def test_the_address_of_a_trained_teacher_is_its_recipe():
    """Whatever can change its weights changes it; a default that is written down does not."""
    digests = {form: load_model(config(form), "cpu").digest for form in FORMS}
    assert len(set(digests.values())) == len(FORMS)
    v = config("v")
    assert load_model(config("v", loss="snr_plus_1"), "cpu").digest != digests["v"]
    assert load_model(config("v", batches=4), "cpu").digest != digests["v"]
    assert load_model({**v, "sigma_range": [0.01, 22026.0]}, "cpu").digest != digests["v"]
    assert load_model(config("v", ema=0.999), "cpu").digest == digests["v"]
    assert load_model({**v, "check": {}}, "cpu").digest == digests["v"]


def test_shipped_models_need_no_training(tmp_path: Path):
    model = load_model(group_config("model", "digits"), "cpu")
    assert teacher_fit(model) is None
    assert with_teacher(model, Store(tmp_path), "cpu", pytest.fail) is model
