"""Rows: what one line of runs.jsonl says of one metric of one cell. The schema is in docs/protocol.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import torch

from bench.evaluate import timing
from bench.evaluate.judge import Judge
from bench.evaluate.measuring import Failure
from bench.jobs.fits.fit import changed, shown, solvers_in
from bench.jobs.models import Model
from bench.jobs.resolve import Job, options_of, options_used
from bench.jobs.samples import leaf_of
from bench.jobs.suite import Suite
from bench.settings.budgets import NAME as BUDGET
from bench.store.addresses import Row, digest
from bench.store.cell import DEFAULTS, NAIVE, Cell, foreign
from bench.store.measures import COUNTED, TIMINGS
from bench.store.provenance import provenance
from bench.store.rows import CELL_FAILED, SCHEMA
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.nets.branches.adapted import Adapted
from fewstep.nets.partial import whole_of
from fewstep.nets.reduced import full
from fewstep.plugins import entries, get, known
from fewstep.sampling.draw import SAMPLER_VERSION
from metrics import Measurement, compares, declared, metric_named


@dataclass(frozen=True)
class Made:
    """How the samples of a cell came about, as its rows' `protocol` says it; what does not apply is None and is left out there."""

    samples_artifact: str | None = None
    levels: Sequence[float | str] | None = None
    dtype: str | None = None
    form: str | None = None  # what the teacher predicts
    solver_options: Mapping[str, Any] | None = None
    samples_made_on: Mapping[str, Any] | None = None
    samples_made_by: Mapping[str, Any] | None = None
    samples_batch: int | None = None  # how many were made at once, where that had to be fewer than was asked for
    teacher_solution: Mapping[str, Any] | None = None  # what it is compared with
    solver_fit: Mapping[str, Any] | None = None  # of a learned solver; those below are of students
    fit: str | None = None
    fit_seed: int | None = None
    fit_made_by: Mapping[str, Any] | None = None
    distiller: Mapping[str, Any] | None = None
    recipe: str | None = None
    training: Mapping[str, Any] | None = None
    w_trained: tuple[float, float] | None = None
    warning: str | None = None
    parameters: Mapping[str, int] | None = None  # of a network with a branch: all, trained, and those of backbone and adapter
    passes: Mapping[str, float] | None = None  # of an image, through such a network's backbone and through its branch
    pairs: Mapping[str, Any] | None = None  # the true images that it is compared with, and how conditions were made of them

    def against(self, solution: Mapping[str, Any]) -> Made:
        """The same, compared with a solution."""
        return replace(self, teacher_solution=solution)

    def marked(self, mark: str) -> Made:
        """The same with what its suite says of every row, before any other warning."""
        return replace(self, warning="; ".join(part for part in (mark, self.warning) if part)) if mark else self

    def protocol(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Facts:
    """What all rows of one cell say: the address of its samples, that of each metric's work, how it was made and what it cost."""

    key: str
    work: Mapping[str, str]
    steps: int
    device: str
    made: Made
    train_seconds: float | None = None
    params: int | None = None
    components: Mapping[str, Any] = field(default_factory=dict)
    compared_with: Mapping[str, Any] = field(default_factory=dict)
    solution: Mapping[str, Any] = field(default_factory=dict)  # the versions of what made the one that it is compared with


def conditions_of_cell(cell: Cell, suite: Suite) -> dict[str, Any]:
    """What was chosen for all metrics of a cell alike and can move their numbers (`bench.reports.cohorts`). Real images have no noise."""
    chosen: dict[str, Any] = {"samples": suite.samples, "seed": suite.seed}
    if suite.budget:
        chosen["budget"] = f"{suite.budget} ({suite.mark})" if suite.mark else suite.budget
    return chosen if cell.method == NAIVE else {**chosen, "noise": suite.noise, "dtype": "float32"}


def conditions_of_metric(name: str, compared_with: Mapping[str, Any], device: str, judge: Judge) -> dict[str, Any]:
    """What was chosen for one metric alone: the solution or the published statistics that it compares with, or the machine of a timing."""
    if name in TIMINGS:
        return {"machine": timing.machine(device)}
    if compares(name) and compared_with:
        return {"compared_with": {field: value for field, value in compared_with.items() if field not in ("artifact", "version")}}
    published = judge.published_for(name)
    return {"statistics": published} if published else {}


def config_of(cell: Cell, suite: Suite, model: Model, names: Sequence[str]) -> dict[str, Any]:
    """What makes rows again: a suite of their cell alone with the options that it uses, its model's configuration, seed and noise."""
    axes = {axis: value for axis, value in cell.coordinates.items() if axis not in foreign(cell.trained)}
    block = {axis: value for axis, value in axes.items() if value != DEFAULTS[axis] or axis == "method"}
    used = (*options_used(cell, suite), cell.solver, suite.reference)
    return {
        "suite": {
            "name": suite.name,
            "model": model.name,
            "samples": suite.samples,
            "reference": suite.reference,
            "reference_steps": suite.reference_steps,
            **({BUDGET: suite.budget} if suite.budget else {}),
            **({"mark": suite.mark} if suite.mark else {}),
            "options": {name: dict(suite.options[name]) for name in used if name in suite.options},
            "blocks": [{**block, "metrics": [name for name in names if name not in (COUNTED, CELL_FAILED)]}],
        },
        "model": dict(model.config),
        "seed": suite.seed,
        "noise": suite.noise,
    }


def components_of_samples(job: Job, denoiser: Denoiser) -> dict[str, Any]:
    """The versions of what a cell's samples came through, by name. A later row with another version of one supersedes a row."""
    cell, own = job.cell, solvers_in(vars(job.solver).values())
    student = {}
    if job.student is not None:
        method = job.student.distiller()
        own |= solvers_in(vars(method).values())
        student = {f"distiller {shown(cell.method, changed('distiller', cell.method, job.student.options))}": method.version}
    wrap = {f"wrap {cell.wrap}": get("wrapper", cell.wrap).version} if cell.wrap else {}
    leaf = leaf_of(denoiser)
    whole = whole_of(full(leaf.net)) if isinstance(leaf, Preconditioned) else None
    branch = {f"branch {whole.name}": get("branch", whole.name).version} if isinstance(whole, Adapted) else {}
    net = type(whole.base if isinstance(whole, Adapted) else whole)
    network = {f"network {arch}": known.version for arch, known in entries("network").items() if known.target is net}
    solvers = {f"solver {name}": version for name, version in {**own, cell.solver: job.solver.version}.items()}
    return {"sampler": SAMPLER_VERSION, **solvers, **student, **_others(job), **wrap, **network, **branch}


def _others(job: Job) -> dict[str, int]:
    """The versions of the methods of students that taught a job's, or whose branch it has."""
    found: dict[str, int] = {}
    left = [] if job.student is None else [job.student.taught_by, job.student.adapter]
    while left:
        if (own := left.pop()) is not None:
            found[f"distiller {shown(own.method, changed('distiller', own.method, own.options))}"] = own.distiller().version
            left += [own.taught_by, own.adapter]
    return found


def components_of_metric(name: str, model: Model, judge: Judge, solution: Mapping[str, Any]) -> dict[str, Any]:
    """The versions of what measured a number: metric, reference data and features, and of the `solution` where it compares with one."""
    if name in TIMINGS:
        return {"timing": timing.VERSION}
    if not known("metric", name):
        return {}
    metric = metric_named(name)
    told = declared(metric)
    extractor = judge.extractors.get(told.extractor or "")
    published = judge.published_for(name)
    features = {} if extractor is None else {f"features {extractor.name}": f"{extractor.version} {extractor.digest[:16]}"}
    return {
        f"metric {name}": metric.version,
        f"reference {model.name}": judge.reference.digest[:16],
        **features,
        **({"statistics": published} if published else {}),
        **(solution if told.needs_teacher else {}),
    }


def _made(facts: Facts, name: str) -> Made:
    """How a metric's samples came about; what they are compared with is said of metrics that compare."""
    found = facts.made if compares(name) else replace(facts.made, teacher_solution=None)
    return found if known("metric", name) and declared(metric_named(name)).needs_target else replace(found, pairs=None)


def row(cell: Cell, suite: Suite, model: Model, judge: Judge, name: str, outcome: Measurement | str, facts: Facts) -> Row:
    """One row of runs.jsonl."""
    measured = isinstance(outcome, Measurement)
    status = "ok" if measured else ("failed" if isinstance(outcome, Failure) else "unavailable")
    own, made = conditions_of_cell(cell, suite), provenance()
    return {
        "schema": SCHEMA,
        "key": facts.key,
        "suite": suite.name,
        "dataset": model.data.name,
        "model": model.name,
        **cell.coordinates,
        "w": cell.guidance - 1,
        "options": options_of(cell, suite),
        "steps": facts.steps,
        "seed": suite.seed,
        "cohort": digest(own),
        "conditions": {**own, **conditions_of_metric(name, facts.compared_with, facts.device, judge)},
        "components": {**facts.components, **components_of_metric(name, model, judge, facts.solution)},
        "metric": name,
        "value": outcome.value if measured else None,
        "std_error": outcome.std_error if measured else None,
        "samples": outcome.samples if measured else None,
        "status": status,
        "error": "" if measured else str(outcome),
        "train_seconds": facts.train_seconds,
        "params": facts.params,
        "device": timing.machine(facts.device)["device"],
        "commit": made["commit"],
        "date": datetime.now(UTC).isoformat(timespec="microseconds"),  # a failure that repeats at once is a row of its own
        "protocol": {
            **_made(facts, name).marked(suite.mark).protocol(),
            **(outcome.protocol if measured else {}),
            "work": facts.work.get(name, ""),
            "model_digest": model.digest,
            **({"weights_sha256": model.sha256} if model.sha256 else {}),
            "classes": model.data.classes,
            **({"data": model.data.how} if model.data.how else {}),
            "noise": suite.noise,
            "threads": torch.get_num_threads(),
            "version": made["version"],
            "code": made["code"],
            "versions": made["versions"],
        },
        "config": config_of(cell, suite, model, [name]),
    }
