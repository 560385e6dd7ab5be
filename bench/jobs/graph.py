"""The graph of jobs: what a cell's rows need, from trainings to measurements, each job after those whose artefacts it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bench.evaluate.judge import Judge
from bench.evaluate.measuring import features_spec, spelled_out, work_of
from bench.evaluate.reference_rows import version_of
from bench.evaluate.references import KIND as REFERENCE
from bench.evaluate.references import moments_key
from bench.jobs.fits.fit import Fit
from bench.jobs.fits.teachers import teacher_fit
from bench.jobs.models import Model
from bench.jobs.resolve import Job, options_of
from bench.jobs.rows import conditions_of_cell, conditions_of_metric, config_of
from bench.jobs.samples import Bound
from bench.jobs.solutions import Sampled, Truth
from bench.jobs.spec import ROWS, TIMING, Spec
from bench.jobs.suite import Suite
from bench.store.addresses import digest
from bench.store.artefacts import Store
from bench.store.cell import NAIVE, PICTURE, Cell
from bench.store.measures import TIMINGS
from bench.store.rows import Rows, coordinates
from fewstep.plugins import modules
from metrics import compares


@dataclass(frozen=True, eq=False)
class Sweep:
    """Everything that the jobs of one suite on one model share."""

    suite: Suite
    model: Model
    store: Store
    rows: Rows
    judge: Judge
    truths: Mapping[float, Truth]
    device: str
    batch: int
    stale: frozenset[str] = frozenset()  # checksums of rows from before the sweep that do not count: failed, or superseded by later ones

    def work(self, cell: Cell, job: Job | None) -> dict[str, str]:
        """metric -> address of its work, for all metrics of the cell."""
        key, teacher = self.key(cell, job), "" if job is None else self.truths[cell.guidance].key
        return {name: work_of(name, key, teacher, self.judge, self.device) for name in spelled_out(cell.metrics, cell.method != NAIVE)}

    def coordinates(self, cell: Cell, metric: str) -> tuple[Any, ...]:
        """Those of a row of the cell."""
        own = cell.coordinates | {"options": options_of(cell, self.suite), "cohort": digest(conditions_of_cell(cell, self.suite))}
        compared_with = {} if cell.method == NAIVE else self.truths[cell.guidance].protocol()
        conditions = conditions_of_metric(metric, compared_with, self.device, self.judge)
        return coordinates({"model": self.model.name, "seed": self.suite.seed, **own, "metric": metric, "conditions": conditions})

    def key(self, cell: Cell, job: Job | None) -> str:
        if job is not None:
            return job.key
        return digest(
            {
                NAIVE: cell.solver,
                "version": version_of(cell.solver, self.judge.reference, self.suite.samples),
                "data": self.judge.reference.digest,
                "count": self.suite.samples,
                "seed": self.suite.seed,
                **({"asked": self.model.digest} if cell.solver == PICTURE else {}),
            }
        )


@dataclass(frozen=True, eq=False)
class Opened:
    """The cell of a job, made concrete: `names` are the metrics it is to give rows of; a reference row has no `job`."""

    sweep: Sweep
    cell: Cell
    job: Job | None
    names: tuple[str, ...]

    @cached_property
    def bound(self) -> Bound:
        """Its plan and its denoiser, for all of its jobs. **Raises**: UsageError where a fit is missing."""
        assert self.job is not None
        return Bound(self.job, self.sweep.model, self.sweep.store, self.sweep.device)

    @cached_property
    def fits(self) -> dict[str, Fit]:
        """What is fitted before it can be sampled, by key, in order: what others require first."""
        return fits_of(self.sweep.model, self.job)


def fits_of(model: Model, job: Job | None) -> dict[str, Fit]:
    """The fits of a job by key, those that others require before them."""
    found: dict[str, Fit] = {}

    def add(fit: Fit) -> None:
        for first in fit.requires(model).values():
            add(first)
        found[fit.key(model)] = fit

    for fit in (teacher_fit(model), *(() if job is None else job.fits)):
        if fit is not None:
            add(fit)
    return found


def params_of(cell: Cell, suite: Suite, model: Model, names: Sequence[str]) -> dict[str, Any]:
    """What every job of a cell says of it: a row's configuration, the metrics it is measured for, and the plugins."""
    return {**config_of(cell, suite, model, names), "names": list(names), "plugins": sorted(modules())}


def jobs_of(opened: Opened) -> list[Spec]:
    """The jobs of a cell in an order in which they can be done: fits, the solution it is compared with, samples, features of the real
    images and of these, and the jobs that give rows of its metrics, those that take time apart from the others."""
    sweep, cell, job = opened.sweep, opened.cell, opened.job
    params, jobs = params_of(cell, sweep.suite, sweep.model, opened.names), list[Spec]()

    def add(kind: str, key: str, inputs: Sequence[tuple[str, str]] = ()) -> tuple[str, str]:
        jobs.append(Spec(kind, key, params, tuple(inputs)))
        return kind, key

    key, quality = sweep.key(cell, job), [name for name in opened.names if name not in TIMINGS]
    rows = sweep.coordinates(cell, "")  # solvers that are alike at few steps share samples, but not rows
    read: list[tuple[str, str]] = []
    if job is not None:
        first = teacher_fit(sweep.model)
        taught = [] if first is None else [("fit", first.key(sweep.model))]
        for own, fit in opened.fits.items():
            before = [("fit", other.key(sweep.model)) for other in fit.requires(sweep.model).values()]
            add("fit", own, [] if ("fit", own) in taught else [*taught, *before])
        fitted = [("fit", own) for own in opened.fits]
        if job.solved_by(sweep.model) and any(map(compares, quality)):
            read.append(_solution(opened, sweep.truths[cell.guidance], jobs, params, taught))
        made = add("samples", key, fitted)
        read.append(made)
        if timed := [name for name in opened.names if name in TIMINGS]:
            add(TIMING, digest([key, timed, rows]), [made])  # whatever the machine: rows say on which they were measured
    extractors = sweep.judge.extractors_of(quality)
    own = [extractor for extractor in extractors if extractor.name not in sweep.judge.published]
    read += [add(REFERENCE, moments_key(sweep.judge.reference, extractor)) for extractor in own]
    features = [features_spec(key, extractor) for extractor in extractors]
    read += [add("features", digest(spec), [("samples", key)] if job is not None else []) for spec in features]
    works = {name: work for name, work in sweep.work(cell, job).items() if name in quality}
    if works:
        add(ROWS, digest([key, works, rows]), read)
    return jobs


def _solution(
    opened: Opened, truth: Truth, jobs: list[Spec], params: Mapping[str, Any], inputs: Sequence[tuple[str, str]]
) -> tuple[str, str]:
    """Add the job that makes what a cell is compared with: samples of another cell, or an artefact of its own."""
    if isinstance(truth, Sampled):
        suite, model = opened.sweep.suite, opened.sweep.model
        jobs.append(Spec("samples", truth.key, params_of(truth.job.cell, suite, model, ()), tuple(inputs)))
        return "samples", truth.key
    jobs.append(Spec("truth", truth.key, params, tuple(inputs)))
    return "truth", truth.key
