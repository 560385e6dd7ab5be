"""Students that are there already, by the path of their weights: published checkpoints, and exported ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from bench.jobs.models import Model
from bench.store.provenance import provenance
from fewstep.denoiser import Denoiser
from fewstep.errors import Unavailable, UsageError
from fewstep.nets.loading import read
from fewstep.nets.readers.card import here, how_to_get
from fewstep.students import check_trained, load_student, published_student, unsaid
from fewstep.wrappers import WithScalars
from methods.distiller import Distiller


class Given(Protocol):
    """A student with its weights in a file."""

    @property
    def method(self) -> str: ...
    @property
    def weights_file(self) -> str: ...
    def distiller(self) -> Distiller: ...


def path_of(student: Given) -> Path:
    """The file, or that of its name among those that were fetched. **Raises**: Unavailable, saying how to get it."""
    found = here(student.weights_file)
    if found is None:
        raise Unavailable(f"the student {student.weights_file} of {student.method} is not here; {how_to_get(student.weights_file)}")
    return found


def _card(student: Given, model: Model) -> tuple[Any, dict[str, Any]]:
    """Tensors and card of the file. **Raises**: UsageError where it is no student, or one for other images or classes than the model's."""
    path = path_of(student)
    tensors, card = read(path)
    if "student" not in card:
        raise UsageError(f"weights {path} are no student but a {card['arch']}; give it as a model, or the weights of a student here")
    told = card["student"]
    if told.get("published") and not f"{student.method}_".startswith(f"{told['method']}_"):
        raise UsageError(
            f"the student in {path} is one of {told['method']}, not of {student.method}; give it under suite.options.{told['method']}"
        )
    if tuple(card["shape"]) != model.teacher.shape:
        both = f"{list(card['shape'])} and model {model.name} makes {list(model.teacher.shape)}"
        raise UsageError(f"the student in {path} makes images of {both}; both must agree")
    if card["classes"] not in (0, model.teacher.classes):
        both = f"{card['classes']} classes and model {model.name} has {model.teacher.classes}"
        raise UsageError(f"the student in {path} has {both}; both must agree")
    return tensors, dict(card)


def given(student: Given, model: Model) -> dict[str, Any]:
    """The record of a student that nobody trained here: what it cost is not known."""
    tensors, card = _card(student, model)
    phases = [phase.name for phase in student.distiller().phases()]
    return {
        "start_seconds": 0.0,
        "start_passes": {},
        "diverged": "",
        "given": student.weights_file,
        "warning": unsaid(card["student"]),
        "train_seconds": dict.fromkeys(phases, 0.0),
        "samples": dict.fromkeys(phases, 0),
        "passes": {name: {} for name in phases},
        "peak_bytes": 0,
        "params": sum(v.numel() for v in tensors.values()),
        "sha256": card["sha256"],
        "made_by": provenance(),
    }


def given_student(student: Given, model: Model, steps: int, device: str) -> Denoiser:
    """The denoiser of the file, for a number of steps. **Raises**: as `_card`; UsageError for an exported student of another method."""
    path = path_of(student)
    tensors, card = _card(student, model)
    told = card["student"]
    if not told.get("published"):
        if (told["method"], told["steps"]) != (student.method, steps):
            other = f"{told['method']} for {told['steps']} step(s)"
            raise UsageError(f"{path} was exported as {other}, not as {student.method} for {steps}; name its own method and NFE")
        return load_student(path, device).denoiser
    denoiser, sampling = published_student(path, tensors, card, device), student.distiller().sampling()
    check_trained(told, steps, sampling, denoiser.sigma_range, f"the student in {path}")
    return WithScalars(denoiser, {"steps": float(steps)}) if sampling.tells_steps else denoiser
