"""Fits of learned solvers (AMED, GITS, searched levels): an artefact for one solver, teacher or student, guidance, grid and AFS."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from bench.evaluate.timing import seconds_per_pass
from bench.jobs.fits.costs import Cost
from bench.jobs.fits.fit import BATCH, Fit, Say, changed, ensure_fit, shown, uses
from bench.jobs.fits.students import Student
from bench.jobs.models import Model, wrap_version, wrapped
from bench.store.addresses import digest
from bench.store.artefacts import Store, seconds_taken
from bench.store.provenance import provenance
from bench.training.engine import Engine, Settings
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.files import file_digest, write_atomic
from fewstep.grid import TimeGrid, make_grid
from fewstep.guidance import guide
from fewstep.plugins import get
from fewstep.wrappers import WithScalars
from methods.solver import Fitting, Learned, Solver
from methods.training import Trainable

ARTEFACT = "artefact.safetensors"
SHARED = "shared"  # the kind of artefact that fits to one teacher share


def _kept(make: Callable[[], Mapping[str, Tensor]], folder: Path) -> dict[str, Any]:
    """Write what was made into an artefact's folder."""
    write_atomic(folder / ARTEFACT, save({k: v.detach().cpu().contiguous() for k, v in make().items()}))
    return {"made_by": provenance()}


def as_sampled(base: Denoiser, student: Student | None, guidance: float, wrap: str) -> Denoiser:
    """The teacher or a student as a cell samples it: guided (a student that reads w is told it) and wrapped."""
    reads_w = student is not None and student.distiller().sampling().w is not None
    return wrapped(WithScalars(base, {"w": guidance - 1}) if reads_w else guide(base, guidance), wrap)


@dataclass(frozen=True)
class SolverFit:
    """One learned solver to fit: its options, the grid it is fitted for, AFS and guidance of its cells, the seed, and the student that it
    is fitted to where that is not the teacher."""

    solver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    grid: str = "polynomial"
    end: str = "sigma_min"
    steps: int = 5
    afs: bool = False
    guidance: float = 1.0
    wrap: str = ""
    seed: int = 0
    student: Student | None = None

    def made(self) -> Learned:
        solver = get("solver", self.solver).make(**self.options)
        assert isinstance(solver, Learned)
        return solver

    @property
    def label(self) -> str:
        of = f" of {self.student.label}" if self.student else ""
        return f"{shown(self.solver, self.options)} for {self.steps} steps of {self.grid}{' with AFS' if self.afs else ''}{of}"

    def requires(self, model: Model) -> dict[str, Fit]:
        return {} if self.student is None else {"student": self.student}

    def levels(self, model: Model, steps: int) -> TimeGrid:
        """The grid of the fit's family, range and end with this many steps."""
        own = model.teacher.sigma_range
        return make_grid(self.grid, steps, self.student.distiller().sampling().range_in(own) if self.student else own, self.end)

    def spec(self, model: Model) -> dict[str, Any]:
        """Everything that can change the artefact: the solvers it builds on with their versions, and the levels, among it."""
        fields = {**get("solver", self.solver).fields, **self.options}
        return {
            "solver": self.solver,
            "options": changed("solver", self.solver, self.options),
            "version": self.made().version,
            "uses": uses(fields.values()),
            "teacher": model.digest,
            "data": model.source.digest(),
            "levels": [float(f"{s:.10g}") for s in self.levels(model, self.steps).sigmas],
            "axes": [self.grid, self.end, self.steps, self.afs, self.guidance, self.wrap],
            "seed": self.seed,
            **wrap_version(self.wrap),
            **({"student": self.student.key(model)} if self.student else {}),
        }

    def key(self, model: Model) -> str:
        return digest(self.spec(model))

    def _shared(self, model: Model, key: Sequence[Any]) -> str:
        """The address of what fits share that have the same teacher (or student), seed and `key` (see `Fitting.once`)."""
        student = [self.student.key(model), self.steps] if self.student else None
        to = [model.digest, student, self.guidance, self.wrap, wrap_version(self.wrap), self.seed]
        return digest({"to": to, "key": list(key), "uses": uses(key)})

    def ensure(self, model: Model, store: Store, device: str, say: Say, batch: int = BATCH) -> dict[str, Any]:
        """The record of the fit (see `ensure_fit`), after the student that it is fitted to."""
        if self.student is not None:
            self.student.ensure(model, store, device, say, batch)

        def fill(folder: Path, work: Path) -> dict[str, Any]:
            say(f"fitting {self.label}")
            earlier = 0.0  # seconds of a training that an interruption split, and of what another fit made

            def train(method: Trainable) -> Mapping[str, Tensor]:
                nonlocal earlier
                began = time.monotonic()
                result = Engine(method, teacher, model.source, work, Settings(self.seed, device, task=model.task)).run()
                earlier += result.whole.seconds - (time.monotonic() - began)
                return result.exports[method.phases()[-1].name]

            def once(key: Sequence[Any], make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
                nonlocal earlier
                began, address = time.monotonic(), self._shared(model, key)
                record = store.ensure(SHARED, address, lambda into: _kept(make, into), say)
                earlier += record["seconds"] - (time.monotonic() - began)  # what it took, whoever made it
                return load_file(store.path(SHARED, address) / ARTEFACT, device=device)

            base = model.teacher if self.student is None else self.student.load(model, store, self.steps, device)
            teacher = as_sampled(base, self.student, self.guidance, self.wrap)
            started = time.monotonic()
            levels = partial(self.levels, model)
            fitting = Fitting(teacher, levels, self.steps, self.afs, self.seed, device, train, model.source, once, model.task)
            found = self.made().fit(fitting)
            write_atomic(folder / ARTEFACT, save({k: v.detach().cpu().contiguous() for k, v in found.items()}))
            spent = time.monotonic() - started + earlier
            facts = {k: v.item() for k, v in found.items() if v.numel() == 1}  # such as how many features a predictor reads
            found_by = {"seconds": spent, "sha256": file_digest(folder / ARTEFACT), "made_by": provenance()}
            return {"spec": self.spec(model), "facts": facts, **found_by}

        return ensure_fit(store, self.key(model), fill, say, "processes do not share the fit of a solver")

    def seconds(self, record: Mapping[str, Any], steps: int) -> float:
        return seconds_taken(record) or 0.0

    def estimates(self, model: Model, device: str) -> dict[str, Cost]:
        scale = 1.0 if self.student and self.student.distiller().sampling().w else self.guidance  # one that reads w takes one pass
        seconds = seconds_per_pass(guide(model.teacher, scale), device) * self.made().passes(self.steps, self.afs)
        return {self.key(model): Cost(f"{self.label}, about {seconds:.0f} s", seconds)}

    def bound(self, model: Model, store: Store, device: str = "cpu") -> Solver:
        """The fitted solver. **Raises**: UsageError when it was not fitted yet."""
        key = self.key(model)
        if not store.has("fit", key):
            raise UsageError(f"{self.label} is not fitted in {store.root}; run the sweep, or python -m bench.sample solver={self.solver}")
        return self.made().bound(load_file(store.path("fit", key) / ARTEFACT, device=device))
