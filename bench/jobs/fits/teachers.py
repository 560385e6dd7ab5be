"""Trainings of a model's own network: a teacher that is not shipped, or the warm start of a closed form's students."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.jobs.fits.costs import Cost, cost, parameters, probe_memory, probe_seconds
from bench.jobs.fits.fit import BATCH, Fit, Say, changed, ensure_fit, keep, phase_weights, settings_of, shown, trained_by
from bench.jobs.models import Model, as_asked
from bench.store.addresses import digest
from bench.store.artefacts import Store, seconds_taken
from bench.training.engine import Engine, Settings
from bench.training.sharing import why_alone
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import UsageError
from fewstep.nets.loading import load_strict, network_version
from methods.recipe import split
from methods.start import WARM_START, WarmStarted
from methods.training import Trainable


@dataclass(frozen=True)
class Start:
    """A model's own network, trained: on data (a teacher that is not shipped), or by the warm start, which fits it to a closed form so that
    students can start from it."""

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    pretrain: str = WARM_START

    def method(self) -> Trainable:
        return trained_by("pretrain", self.pretrain, self.options)

    @property
    def label(self) -> str:
        return f"{shown(self.pretrain, self.options)} of {self.model}"

    def key(self, model: Model) -> str:
        if model.in_store:
            return model.prior or model.digest  # whatever pictures its students are told
        spec = {"method": WARM_START, "options": changed("pretrain", WARM_START, self.options), "version": self.method().version}
        card = model.untrained_card()
        return digest({**spec, "teacher": model.digest, "data": model.source.digest(), "card": card, "seed": 0, **network_version(card)})

    def requires(self, model: Model) -> dict[str, Fit]:
        return {}

    def _settings(self, model: Model, device: str) -> Settings:
        return settings_of(self.options, model, 0, device)

    def _teacher(self, model: Model) -> Denoiser:
        return model.untrained(0) if model.in_store else WarmStarted(model.teacher, model.untrained(0))

    def ensure(self, model: Model, store: Store, device: str, say: Say, batch: int = BATCH) -> dict[str, Any]:
        """The record of the warm start (see `ensure_fit`)."""
        key = self.key(model)

        def fill(folder: Path, work: Path) -> dict[str, Any]:
            settings = replace(self._settings(model, device), world=store.world)
            seconds = probe_seconds(self.method(), self._teacher(model), model.source, settings)
            say(f"training {cost(self.label, self.method(), seconds).text}")
            return keep(Engine(self.method(), self._teacher(model), model.source, work, settings).run(), folder)

        return ensure_fit(store, key, fill, say, why_alone(self.method(), split(self.options)[1], store.world.size))

    def seconds(self, record: Mapping[str, Any], steps: int) -> float:
        return seconds_taken(record) or 0.0

    def _seconds(self, model: Model, device: str) -> float:
        return probe_seconds(self.method(), self._teacher(model), model.source, self._settings(model, device))

    def estimates(self, model: Model, device: str) -> dict[str, Cost]:
        memory = probe_memory(self.method(), self._teacher(model), model.source, self._settings(model, device))
        return {self.key(model): cost(self.label, self.method(), self._seconds(model, device), memory, parameters(self._teacher(model)))}

    def load(self, model: Model, store: Store, device: str) -> Preconditioned:
        """The fitted network. **Raises**: UsageError when it was not trained yet."""
        if not store.has("fit", self.key(model)):
            raise UsageError(f"{self.label} is not trained in {store.root}; run the sweep, or python -m bench.train")
        fresh = model.untrained(0)
        weights = phase_weights(store, self.key(model), self.method().phases()[-1].name, device)
        load_strict(fresh.net, weights, f"{self.label} weights").to(device).requires_grad_(False)
        return fresh


def teacher_fit(model: Model) -> Start | None:
    """The training of a teacher that is in the store."""
    return Start(model.name, model.config["options"], model.config["pretrain"]) if model.in_store else None


def with_teacher(model: Model, store: Store, device: str, say: Say) -> Model:
    """The model with its teacher's weights: itself, or one whose teacher is in the store, trained now if it is not there yet."""
    fit = teacher_fit(model)
    if fit is None:
        return model
    fit.ensure(model, store, device, say)
    return replace(model, teacher=as_asked(fit.load(model, store, device), model.task))
