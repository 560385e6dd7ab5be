"""The work of a sweep: the jobs of its cells on each model, and those that are still to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.evaluate.judge import make_judge
from bench.jobs.cell import Cell
from bench.jobs.fits.students import Student
from bench.jobs.fits.teachers import with_teacher
from bench.jobs.models import Model, load_model
from bench.jobs.resolve import Job, resolve
from bench.jobs.solutions import truth_of
from bench.jobs.suite import Suite
from bench.jobs.work import Sweep, missing
from bench.settings.compose import group_config
from bench.store.addresses import Row
from bench.store.artefacts import Store
from bench.store.measures import TIMINGS
from bench.store.rows import Rows, coordinates
from bench.store.supersession import newest
from fewstep.errors import Unreachable, UsageError, near_misses
from fewstep.noise import make_noise
from fewstep.plugins import entries, get
from fewstep.progress import say


def check_names(suite: Suite) -> None:
    """**Raises**: UsageError for a noise, metric, wrapper or method's option that does not exist, before anything is computed."""
    make_noise(suite.noise, torch.arange(0))
    solvers, distillers = entries("solver"), entries("distiller")
    for key, options in suite.options.items():
        name = key.partition("/")[0]
        if name in distillers:
            Student(name, {**suite.options.get(name, {}), **options}).distiller().phases()
        elif name in solvers:
            get("solver", name).make(**options)
        else:
            raise UsageError(f"suite.options: unknown method '{name}'{near_misses(name, [*distillers, *solvers])}")
    for wrap in {c.wrap for c in suite.cells if c.wrap}:
        get("wrapper", wrap)
    known = [*entries("metric"), *TIMINGS, "timing"]
    for name in {n for cell in suite.cells for n in cell.metrics}:
        if name not in known:
            raise UsageError(f"unknown metric '{name}'{near_misses(name, known)}")


def plan_jobs(suite: Suite, model: Model) -> tuple[list[tuple[Cell, Job | None]], list[str]]:
    """The jobs of all cells a solver can reach, and the reasons of those it cannot."""
    jobs: list[tuple[Cell, Job | None]] = []
    skipped: list[str] = []
    for cell in suite.cells:
        if cell.method == "naive":
            jobs.append((cell, None))
            continue
        try:
            job = resolve(cell, suite, model)
            jobs.append((job.cell, job))
        except Unreachable as err:
            skipped.append(str(err))
    return jobs, skipped


@dataclass(frozen=True, eq=False)
class Work:
    """All jobs of a suite on one model, those that are still to do, and why some cells have none."""

    sweep: Sweep
    jobs: Sequence[tuple[Cell, Job | None]]
    pending: list[tuple[Cell, Job | None]]
    skipped: Sequence[str]


def prepare(suite: Suite, name: str, config: Mapping[str, Any], store: Store, rows: Rows, stale: frozenset[str]) -> Work:
    """The work of a suite on a model, whose teacher is trained first where its weights are in the store (not by a dry run)."""
    model = load_model(group_config("model", name, config["conf"]), config["device"])
    if suite.samples % max(1, model.data.classes):
        raise UsageError(f"suite.samples={suite.samples} cannot be balanced over {model.data.classes} classes; use a multiple")
    if not config["dry"]:
        model = with_teacher(model, store, config["device"], say)
    jobs, skipped = plan_jobs(suite, model)
    judge = make_judge(model.data, model.teacher, {n for c in suite.cells for n in c.metrics}, store)
    truths = {scale: truth_of(suite, scale, model) for scale in {cell.guidance for cell, _ in jobs}}
    done = {coordinates(r): r for r in rows.read()}
    sweep = Sweep(suite, model, store, rows, judge, truths, config["device"], config["batch"], stale)
    return Work(sweep, jobs, [(cell, job) for cell, job in jobs if missing(sweep, cell, job, done)], skipped)


def stale_rows(rows: Sequence[Row]) -> frozenset[str]:
    """Checksums of the rows that a new sweep does not count: those that failed, and those that later ones supersede."""
    kept = {r["checksum"] for r in newest(rows) if r["status"] != "failed"}
    return frozenset(r["checksum"] for r in rows) - kept


def prepare_all(config: Mapping[str, Any], suite: Suite, store: Store, stale: frozenset[str]) -> list[Work]:
    """The work of a suite on each of its models."""
    rows, names = Rows(store, suite.name, say), config["suite"]["model"]
    return [prepare(suite, name, config, store, rows, stale) for name in (names if isinstance(names, list) else [names])]


def workers_of(config: Mapping[str, Any], suite: Suite) -> int:
    """How many processes share the cells: `workers`, or what the suite says. **Raises**: UsageError where they would spoil latencies."""
    count = config["workers"] or config["suite"].get("workers", 1)
    if not isinstance(count, int) or count < 1:
        raise UsageError(f"suite.workers must be at least 1, got {count}; e.g. workers=2")
    timed = any(set(c.metrics) & {"timing", *TIMINGS} for c in suite.cells)
    if count > 1 and timed:
        raise UsageError(f"suite {suite.name} measures latencies, which other processes would disturb; use workers=1")
    return count
