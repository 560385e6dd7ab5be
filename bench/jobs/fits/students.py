"""Students as fits: a distiller with its options and seed, and what it has to wait for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.jobs.fits.costs import Cost, cost, parameters, probe_memory, probe_seconds
from bench.jobs.fits.fit import (
    BATCH,
    Fit,
    Say,
    changed,
    ensure_fit,
    keep,
    phase_weights,
    settings_of,
    shown,
    starts_lower,
    trained_by,
    uses,
)
from bench.jobs.fits.pairs import PAIRS, TeacherPairs, probe_pairs
from bench.jobs.fits.published import given, given_student, path_of
from bench.jobs.fits.teachers import Start
from bench.jobs.models import Model
from bench.store.addresses import digest
from bench.store.artefacts import Store
from bench.training.engine import Diverged, Engine
from bench.training.sharing import why_alone
from bench.training.tracking import Tracker
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.nets.branches.transplant import with_branch_of
from fewstep.nets.loading import read
from fewstep.plugins import get
from fewstep.sampling.plan import Plan
from fewstep.students import as_prior, as_student, student_network
from methods.conditional import Branched
from methods.distiller import Distiller, Paired
from methods.recipe import split
from methods.start import WarmStarted


@dataclass(frozen=True)
class Student:
    """One student to train: a distiller, its options and its recipe's where they are not the default (the number of steps too, where it has
    one of its own), and the seed. `tracker` watches the training, and is no part of what it is.

    It is trained on the model's teacher, or on another student, `taught_by`, as that samples in `taught_steps` steps. When it is sampled,
    the branch of an `adapter`, a student whose backbone is frozen, is put on its network as it is.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    tracker: Tracker | None = field(default=None, repr=False, compare=False)
    taught_by: Student | None = None
    taught_steps: int = 0
    adapter: Student | None = None

    def distiller(self) -> Distiller:
        return trained_by("distiller", self.method, self.options)

    @property
    def label(self) -> str:
        return shown(self.method, self.options)

    @property
    def weights_file(self) -> str:
        """The file of a student that is there already; empty for one that is trained."""
        return str(self.options.get("weights", ""))

    def at(self, steps: int) -> Student:
        """The student that samples in so many steps: itself, unless its distiller trains one for each number of steps."""
        if "steps" not in get("distiller", self.method).fields or "steps" in self.options:
            return self
        return replace(self, options={**self.options, "steps": steps})

    @staticmethod
    def start(model: Model) -> Start | None:
        """The warm start of the students of a closed form."""
        return None if model.start is None else Start(model.name, model.start)

    def pairs(self) -> TeacherPairs | None:
        """The pairs that the distiller learns from, if it does."""
        method = self.distiller()
        return TeacherPairs(method.pairs()) if isinstance(method, Paired) else None

    def requires(self, model: Model) -> dict[str, Fit]:
        """What has to be fitted first."""
        if self.weights_file:
            return {}
        found: dict[str, Fit | None] = {"requires": self.start(model), "pairs": self.pairs(), "taught_by": self.taught_by}
        return {name: fit for name, fit in found.items() if fit is not None}

    def spec(self, model: Model) -> dict[str, Any]:
        """Everything that can change the weights: non-default options, versions, teacher and data digests, seed."""
        return {
            "method": self.method,
            "options": changed("distiller", self.method, self.options),
            "version": self.distiller().version,
            "uses": uses(vars(self.distiller()).values()),
            "teacher": self._taught_on(model),
            "data": model.source.digest(),
            "seed": self.seed,
            **{name: fit.key(model) for name, fit in self.requires(model).items()},
            **({} if self.taught_by is None else {"taught_phase": self.taught_by.distiller().phase_for(self.taught_steps)}),
            **starts_lower(self.distiller().sampling().range_in(model.teacher.sigma_range), model),
        }

    def _taught_on(self, model: Model) -> str:
        """The digest of what it learns from: a student that is told no pictures of a task is one of the prior, whatever the task."""
        if not model.prior:
            return model.digest
        return model.asking if self.told_pictures else model.prior

    @property
    def told_pictures(self) -> bool:
        """Whether its network is told the pictures of a task, through a branch of its own or of the student that taught it."""
        return isinstance(self.distiller(), Branched) or (self.taught_by is not None and self.taught_by.told_pictures)

    def key(self, model: Model) -> str:
        return digest(self.spec(model))

    def recipe(self, model: Model) -> str:
        """What students share that differ in the training seed, and in the number of steps where each has a fit of its own."""
        spec = self.spec(model)
        options = {name: value for name, value in spec["options"].items() if name != "steps"}
        return digest({**{name: value for name, value in spec.items() if name != "seed"}, "options": options})

    def _teacher(self, model: Model, store: Store, device: str) -> Denoiser:
        if self.taught_by is not None:
            return as_prior(self.taught_by.load(model, store, self.taught_steps, device), model.teacher)
        first = self.start(model)
        return model.teacher if first is None else WarmStarted(model.teacher, first.load(model, store, device))

    def _untaught(self, model: Model) -> Denoiser:
        """Its teacher with weights that nobody has trained, for estimates."""
        if self.taught_by is not None:
            return as_prior(self.taught_by.untrained(model), model.teacher)
        return model.teacher if self.start(model) is None else WarmStarted(model.teacher, model.untrained(0))

    def untrained(self, model: Model) -> Denoiser:
        """The student before its training."""
        method, teacher = self.distiller(), self._untaught(model)
        return method.student(student_network(method, teacher), teacher)

    def _steps_of(self, fit: Fit) -> int:
        """In how many steps it needs what was fitted before it."""
        return self.taught_steps if fit is self.taught_by else 0

    def ensure(self, model: Model, store: Store, device: str, say: Say, batch: int = BATCH) -> dict[str, Any]:
        """The record of a trained student, after what it requires (see `ensure_fit`)."""
        if self.weights_file:
            return store.ensure("fit", self.key(model), lambda _: {"spec": self.spec(model), **given(self, model)}, say)
        first = [(fit, fit.ensure(model, store, device, say, batch)) for fit in self.requires(model).values()]
        before, passes = sum(fit.seconds(record, self._steps_of(fit)) for fit, record in first), Counter[str]()
        shrunk = {f"{PAIRS}_batch": record["batch"] for fit, record in first if isinstance(fit, TeacherPairs) and "batch" in record}
        for fit, record in first:
            own = fit.phase(record, self.taught_steps) if isinstance(fit, Student) else list(record["passes"])[-1]
            passes.update(record["passes"][own])

        def fill(folder: Path, work: Path) -> dict[str, Any]:
            method, teacher = self.distiller(), self._teacher(model, store, device)
            pairs = self.pairs()
            data = model.source if pairs is None else pairs.load(model, store)
            settings = replace(settings_of(self.options, model, self.seed, device), tracker=self.tracker, world=store.world)
            say(f"training {cost(self.label, method, probe_seconds(method, teacher, data, settings)).text}")
            try:
                result, lost = Engine(method, teacher, data, work, settings).run(), ""
            except Diverged as err:
                if err.finished is None:
                    raise
                again = f"delete {store.path('fit', self.key(model)).relative_to(store.results)} to go on from its checkpoint"
                result, lost = err.finished, f"{err}; {again}"  # the students of the phases before are whole
            own = {"spec": self.spec(model), "start_seconds": before, "start_passes": dict(passes), "diverged": lost}
            return {**own, **shrunk, **keep(result, folder)}

        alone = why_alone(self.distiller(), split(self.options)[1], store.world.size)
        return ensure_fit(store, self.key(model), fill, say, alone)

    def phase(self, record: Mapping[str, Any], steps: int) -> str:
        """The phase that samples in a number of steps. **Raises**: Diverged when the training did not get there."""
        name = self.distiller().phase_for(steps)
        if name not in record["train_seconds"]:
            raise Diverged(record["diverged"])
        return name

    def seconds(self, record: Mapping[str, Any], steps: int) -> float:
        return float(record["start_seconds"] + record["train_seconds"][self.phase(record, steps)])

    def training(self, record: Mapping[str, Any], steps: int) -> dict[str, Any]:
        """What the student for so many steps took beside seconds: images passed forward by network and drawn, peak memory, and how many
        of its pairs were made at once where that had to be fewer than was asked for."""
        phase = self.phase(record, steps)
        passes = Counter(record["start_passes"]) + Counter(record["passes"][phase])
        shrunk = {name: record[name] for name in (f"{PAIRS}_batch",) if name in record}
        return {"passes": dict(passes), "samples": record["samples"][phase], "peak_bytes": record["peak_bytes"], **shrunk}

    def warning(self, guidance: float, plan: Plan, model: Model) -> str:
        """Why the student should not be trusted at this guidance, which it reads, or in this plan; empty where it may."""
        return self.distiller().sampling().warning(guidance, plan, model.teacher.sigma_range)

    def estimates(self, model: Model, device: str) -> dict[str, Cost]:
        method = self.distiller()
        if self.weights_file:
            path_of(self)
            return {self.key(model): Cost(f"{self.label}: read from {self.weights_file}", 0.0)}
        teacher = self._untaught(model)
        data = model.source if self.pairs() is None else probe_pairs(model.data)
        probed = method, teacher, data, settings_of(self.options, model, self.seed, device)
        own = cost(self.label, method, probe_seconds(*probed), probe_memory(*probed), parameters(teacher))
        before = [fit.estimates(model, device) for fit in self.requires(model).values()]
        return {key: line for lines in before for key, line in lines.items()} | {self.key(model): own}

    def weights(self, model: Model, store: Store, steps: int, device: str = "cpu") -> dict[str, Tensor]:
        """The weights that sample in a number of steps. **Raises**: UsageError when they were not trained yet."""
        if self.weights_file:
            return dict(read(path_of(self))[0])
        key = self.key(model)
        if not store.has("fit", key):
            raise UsageError(f"{self.label} is not trained in {store.root}; run a sweep that has it: python -m bench.sweep +suite=NAME")
        return phase_weights(store, key, self.phase(store.read("fit", key), steps), device)

    def load(self, model: Model, store: Store, steps: int, device: str = "cpu") -> Denoiser:
        """The trained student for a number of steps, as a denoiser. **Raises**: UsageError when it was not trained yet."""
        if self.weights_file:
            return given_student(self, model, steps, device)
        weights = self.weights(model, store, steps, device)
        own = as_student(self.distiller(), self._teacher(model, store, device), weights, steps, f"{self.label} weights", device)
        return own if self.adapter is None else with_branch_of(own, self.adapter.load(model, store, steps, device))
