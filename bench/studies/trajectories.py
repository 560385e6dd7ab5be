"""The study +suite=trajectories: are all trajectories of one shape, and does fine-tuning at one noise level help its neighbours?

Both are what simple and fast distillation starts from (arXiv 2409.19681). Writes trajectories.png, neighbours.png, study.md and study.csv.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from bench.evaluate.timing import seconds_per_pass
from bench.jobs.fits.costs import probe_seconds
from bench.jobs.fits.teachers import teacher_fit, with_teacher
from bench.jobs.models import Model, load_model
from bench.settings.compose import group_config
from bench.store.addresses import digest
from bench.store.artefacts import Store
from bench.studies.neighbours import Exam, FineTuned, OneInterval
from bench.studies.pictures import write_study
from bench.studies.shape import Shape, likeness, shape_of
from bench.studies.writing import Change, Curves
from bench.training.engine import Settings
from fewstep.errors import UsageError, near_misses
from fewstep.files import check_name, write_atomic
from fewstep.grid import TimeGrid, make_grid
from fewstep.guidance import guide
from fewstep.noise import make_noise
from fewstep.plugins import register
from fewstep.progress import bar_settings, say
from fewstep.sampling.draw import SAMPLER_VERSION, start
from fewstep.sampling.plan import Plan
from fewstep.sampling.runner import run as run_plan
from methods.distiller import bounded
from methods.losses.distances import distance
from methods.solver import ode_solver

VERSION = 1  # of how shapes are measured
SHAPES = "shapes.safetensors"
T = TypeVar("T")


@dataclass(frozen=True)
class TrajectoryOptions:
    """The section `trajectories` of the suite: how many trajectories of which solver, on which guidance scales."""

    samples: int
    solver: str
    grid: str
    steps: int
    scales: list[float]

    def __post_init__(self) -> None:
        _at_least(self, samples=2, steps=2)
        ode_solver(self.solver, "the study")
        make_grid(self.grid, self.steps, (0.002, 80.0))
        plain = isinstance(self.scales, list) and all(type(s) in (int, float) and math.isfinite(s) for s in self.scales)
        if not plain or not self.scales or len(set(self.scales)) < len(self.scales):
            raise UsageError(f"suite.trajectories.scales takes different finite numbers, got {self.scales}; e.g. [1,2,4]")


@dataclass(frozen=True)
class NeighbourOptions:
    """The section `neighbours` of the suite: the student's grid, the teacher's steps in it, trainings, and what they are measured on."""

    intervals: int
    substeps: int
    solver: str
    loss: str
    batches: int
    batch_size: int
    lr: float
    seeds: int
    heldout: int

    def __post_init__(self) -> None:
        _at_least(self, intervals=2, substeps=1, batches=1, batch_size=1, seeds=1, heldout=1)
        ode_solver(self.solver, "the study")
        distance(self.loss)
        if not 0 < self.lr < math.inf:
            raise UsageError(f"suite.neighbours.lr must be above 0, got {self.lr}; e.g. 0.0002")

    def copies(self, seed: int) -> list[FineTuned]:
        """Every training: one of each interval with the first seed, then with the next."""
        left_out = ("seeds", "heldout")
        shared = {k: v for k, v in vars(self).items() if k not in left_out}
        return [FineTuned(OneInterval(n, **shared), seed + k) for k in range(self.seeds) for n in range(self.intervals)]


def _section(kind: type) -> str:
    return "trajectories" if kind is TrajectoryOptions else "neighbours"


def _at_least(options: Any, **least: int) -> None:
    """**Raises**: UsageError for a field that is no integer from its least value on."""
    for name, lowest in least.items():
        value = getattr(options, name)
        if type(value) is not int or value < lowest:
            where = f"suite.{_section(type(options))}.{name}"
            raise UsageError(f"{where} must be an integer from {lowest} on, got {value}; e.g. {where}={max(lowest, 2)}")


def read_options(kind: type[T], config: Mapping[str, Any]) -> T:
    """A section of the suite. **Raises**: UsageError for one with missing or unknown fields, or values out of range."""
    section, fields = _section(kind), [f.name for f in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
    values = config.get(section)
    if not isinstance(values, dict) or set(fields) - set(values):
        raise UsageError(f"suite.{section} is a table of the fields {', '.join(fields)}, got {values}")
    for name in values:
        if name not in fields:
            raise UsageError(f"unknown field '{name}' in suite.{section}{near_misses(name, fields)}")
    return kind(**values)


@dataclass(frozen=True, eq=False)
class Study:
    """One study: what it measures on which model, and where its artefacts lie."""

    name: str
    model: Model
    store: Store
    trajectories: TrajectoryOptions
    neighbours: NeighbourOptions
    seed: int
    noise: str
    device: str
    batch: int

    @property
    def grid(self) -> TimeGrid:
        """The fine solver's, over the range of students' grids."""
        own = self.trajectories
        return make_grid(own.grid, own.steps, bounded(self.model.teacher.sigma_range))

    @property
    def plan(self) -> Plan:
        """The fine solver's."""
        return ode_solver(self.trajectories.solver, "the study").plan(self.grid)

    @property
    def copies(self) -> list[FineTuned]:
        """The trainings; none for a closed form, which has no network."""
        return [] if self.model.start is not None else self.neighbours.copies(self.seed)

    @cached_property
    def exam(self) -> Exam:
        """What the copies are measured on."""
        return Exam(self.model, self.copies[0].method, self.neighbours.heldout, self.seed, self.device)

    def shape_key(self, scale: float) -> str:
        """The address of the shapes at one guidance scale: everything that can change them."""
        own = self.trajectories
        solver = {"solver": own.solver, "solver_version": ode_solver(own.solver, "the study").version, "sampler": SAMPLER_VERSION}
        levels = [float(f"{s:.10g}") for s in self.grid.sigmas]
        spec = {"model": self.model.digest, "levels": levels, "scale": float(scale), "noise": self.noise, "seed": self.seed}
        return digest({**spec, **solver, "samples": own.samples, "version": VERSION})

    @torch.inference_mode()
    def _shapes(self, scale: float, bar: Any) -> Shape:
        denoiser, plan, parts, highest = guide(self.model.teacher, scale), self.plan, [], float(self.grid.sigmas[0])
        seeds = torch.arange(self.seed, self.seed + self.trajectories.samples, device=self.device)
        for part in seeds.split(self.batch):
            own = start(self.noise, part, denoiser, highest, self.model.task)
            kept = run_plan(plan, denoiser, own.x.double(), own.source, own.cond, keep=plan.states)
            parts.append(shape_of(torch.stack([kept[name] for name in plan.states], dim=1).cpu()))
            bar.update(len(part))
        return Shape(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Shape)})

    def shapes(self, scale: float) -> Shape:
        """The shapes of the trajectories at one guidance scale, from the store or made now."""

        def fill(folder: Path) -> dict[str, Any]:
            with tqdm(total=self.trajectories.samples, desc=f"guidance {scale:g}", unit="img", **bar_settings()) as bar:
                made: dict[str, Tensor] = {k: v.contiguous() for k, v in vars(self._shapes(scale, bar)).items()}
            write_atomic(folder / SHAPES, save(made))
            return {"label": f"trajectories of {self.model.name} at guidance {scale:g}"}

        key = self.shape_key(scale)
        self.store.ensure("study", key, fill, say)
        return Shape(**load_file(self.store.path("study", key) / SHAPES))

    def change(self, tuned: FineTuned) -> Change:
        """What one training did to the loss on every interval; trained and measured now where the store lacks it."""
        if not self.store.has("study", self.exam.key(tuned)):
            tuned.ensure(self.model, self.store, self.device, say)
        record = self.exam.ensure(tuned, self.store, say)
        return Change(tuned.method.interval, tuned.seed, record["before"], record["after"])


def curves_of(scale: float, sigmas: Sequence[float], shape: Shape) -> Curves:
    """What is drawn and written of the shapes at one scale; a straight line is like no curve."""
    alike = torch.where(shape.shares.isnan().any(1), math.nan, likeness(shape.plane))
    return Curves(
        scale,
        list(sigmas),
        shape.length.numpy(),
        shape.ahead.numpy(),
        shape.away.numpy(),
        shape.plane.numpy(),
        shape.shares.numpy(),
        alike.numpy(),
    )


def made_of(config: dict[str, Any]) -> Study:
    """The study of a configuration, checked. **Raises**: UsageError for a bad value, Unavailable for a model whose files are not here."""
    suite, seed = config["suite"], config["seed"]
    check_name("suite.name", suite.get("name"), "suite.name=mine")
    if not isinstance(suite.get("model"), str):
        raise UsageError(f"a study's suite.model is one model's name, got {suite.get('model')!r}; e.g. suite.model=digits")
    if not 0 <= seed < 2**62:
        raise UsageError(f"seed must lie in 0..2^62, got {seed}; e.g. seed=0")
    make_noise(config["noise"], torch.arange(0))
    trajectories, neighbours = read_options(TrajectoryOptions, suite), read_options(NeighbourOptions, suite)
    model = load_model(group_config("model", suite["model"], config["conf"]), config["device"])
    if not model.teacher.classes and any(scale != 1 for scale in trajectories.scales):
        raise UsageError(f"guidance needs classes, and model {model.name} has none; use suite.trajectories.scales=[1]")
    axes = (seed, config["noise"], config["device"], config["batch"])
    study = Study(suite["name"], model, Store(Path(config["results"])), trajectories, neighbours, *axes)
    if study.copies:
        assert study.exam.batch
    return study


def dry_run(study: Study) -> None:
    """Print every piece, whether it is cached, and an estimate from measured passes and training batches."""
    model, own, seconds = study.model, study.trajectories, 0.0
    trained = teacher_fit(model)
    if trained is not None:
        text, cost, *_ = trained.estimates(model, study.device)[trained.key(model)]
        absent = not study.store.has("fit", trained.key(model))
        seconds += absent * cost
        print(f"{'to do ' if absent else 'cached'}  the teacher: {text}")
    per_pass = seconds_per_pass(model.teacher, study.device, study.batch)
    for scale in own.scales:
        absent = not study.store.has("study", study.shape_key(scale))
        cost = study.plan.nfe(guide(model.teacher, scale)) * own.samples * per_pass
        seconds += absent * cost
        about = f", about {cost:.0f} s" if absent else ""
        print(
            f"{'to do ' if absent else 'cached'}  {own.samples} trajectories, {own.steps} steps of {own.solver}, guidance {scale:g}{about}"
        )
    absent = [copy for copy in study.copies if not study.store.has("study", study.exam.key(copy))]
    settings = Settings(device=study.device, task=model.task)
    per_batch = probe_seconds(absent[0].method, model.teacher, model.source, settings) if absent else 0.0
    exam = per_pass * study.neighbours.heldout * study.neighbours.intervals
    for copy in study.copies:
        cost = copy.method.batches * per_batch + exam if copy in absent else 0.0
        seconds += cost
        about = f": {copy.method.batches} batches, about {cost:.0f} s" if copy in absent else ""
        print(f"{'to do ' if copy in absent else 'cached'}  fine-tuning on {copy.label}{about}")
    if not study.copies:
        print(f"left out: fine-tuning, since the closed form {model.name} has no network")
    print(f"about {seconds / 60:.1f} minutes on this machine; results in {study.store.results / study.name}")


@register("study", "trajectories", "arXiv 2409.19681")
def run(config: dict[str, Any]) -> int:
    """The entry point of the study, called by `bench.sweep`."""
    started = time.monotonic()
    study = made_of(config)
    if config["dry"]:
        dry_run(study)
        return 0
    study.store.clean_leavings()
    study = replace(study, model=with_teacher(study.model, study.store, study.device, say))
    own, copies = study.trajectories, study.copies
    sigmas = study.grid.sigmas.tolist()
    with tqdm(total=len(own.scales) + len(copies), desc=f"study {study.name}", unit="piece", **bar_settings()) as bar:
        curves = []
        for scale in own.scales:
            curves.append(curves_of(float(scale), sigmas, study.shapes(scale)))
            bar.update()
        changes = []
        for copy in copies:
            changes.append(study.change(copy))
            bar.update()
    levels = [float(study.exam.method.grid(study.model.teacher, n).sigmas[0]) for n in range(study.neighbours.intervals)] if copies else []
    levels += [float(study.model.teacher.sigma_range[0])] if copies else []
    facts = {"model": study.model.name, "seed": study.seed, "noise": study.noise, **vars(own)}
    trained = dict(vars(study.neighbours)) if copies else {}
    write_study(study.store.results / study.name, facts, trained, curves, changes, levels)
    say(f"study.md, study.csv and pictures in {study.store.results / study.name} ({time.monotonic() - started:.0f} s)")
    return 0
