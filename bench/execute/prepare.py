"""The work of a sweep: the jobs of its cells on each model, and those that are still to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.execute.graph import Graph
from bench.jobs.graph import Sweep, params_of
from bench.jobs.models import Model
from bench.jobs.resolve import Job, resolve, student_of
from bench.jobs.session import Session
from bench.jobs.solutions import truth_of
from bench.jobs.spec import Spec
from bench.jobs.suite import Suite, models_of
from bench.jobs.work import Branch, branch_of, do, missing
from bench.settings.compose import group_config
from bench.store.addresses import Row
from bench.store.cell import NAIVE, Cell
from bench.store.measures import TIMINGS
from bench.store.rows import coordinates
from bench.store.supersession import newest
from bench.store.world import several
from fewstep.errors import Unavailable, Unreachable, UsageError, near_misses
from fewstep.nets.reduced import check_dtype
from fewstep.noise import make_noise
from fewstep.plugins import entries, get


def check_names(suite: Suite) -> None:
    """**Raises**: UsageError for a noise, metric, wrapper or method's option that does not exist, before anything is computed."""
    make_noise(suite.noise, torch.arange(0))
    solvers, distillers = entries("solver"), entries("distiller")
    for key, options in suite.options.items():
        name = key.partition("/")[0]
        if name in distillers:
            student_of(Cell(name, variant=key.partition("/")[2]), suite).distiller().phases()
        elif name in solvers:
            get("solver", name).make(**options)
        else:
            raise UsageError(f"suite.options: unknown method '{name}'{near_misses(name, [*distillers, *solvers])}")
    for wrap in {c.wrap for c in suite.cells if c.wrap}:
        get("wrapper", wrap)
    for dtype in {c.dtype for c in suite.cells}:
        check_dtype(dtype)
    known = [*entries("metric"), *TIMINGS, "timing"]
    for name in {n for cell in suite.cells for n in cell.metrics}:
        if name not in known:
            raise UsageError(f"unknown metric '{name}'{near_misses(name, known)}")


def plan_jobs(suite: Suite, model: Model) -> tuple[list[tuple[Cell, Job | None]], list[int], list[str]]:
    """The jobs of all cells a solver can reach, the block of the suite that each is of, and the reasons of those it cannot."""
    jobs: list[tuple[Cell, Job | None]] = []
    blocks: list[int] = []
    skipped: list[str] = []
    for cell, block in zip(suite.cells, suite.blocks or (0,) * len(suite.cells), strict=True):
        try:
            job = None if cell.method == NAIVE else resolve(cell, suite, model)
        except Unreachable as err:
            skipped.append(str(err))
            continue
        jobs.append((cell if job is None else job.cell, job))
        blocks.append(block)
    return jobs, blocks, skipped


@dataclass(frozen=True, eq=False)
class Work:
    """All cells of a suite on one model, the block of the suite that each is of, those that lack rows of some metrics, and why some cells
    cannot be sampled."""

    sweep: Sweep
    jobs: Sequence[tuple[Cell, Job | None]]
    blocks: Sequence[int]
    pending: Sequence[tuple[Cell, Job | None, Sequence[str]]]
    skipped: Sequence[str]

    def branches(self) -> list[Branch]:
        """The jobs of the cells that are still to do."""
        return [branch_of(self.sweep, cell, job, names) for cell, job, names in self.pending]


def teach(suite: Suite, model: Model, jobs: Sequence[tuple[Cell, Job | None]], session: Session) -> None:
    """Several processes train the teacher together where it is not trained yet: as the first job of a cell that is sampled."""
    cell = next((cell for cell, job in jobs if job is not None), None)
    if session.world.size > 1 and cell is not None:
        do(session, Spec("fit", model.digest, params_of(cell, suite, model, ())))


def prepare(suite: Suite, name: str, config: Mapping[str, Any], session: Session, model: Model | None = None) -> Work:
    """The work of a suite on a model, whose teacher is trained first where its weights are in the store (not by a dry run).

    A `model` stands in for it, in a dry run whose own is not here.
    """
    told = group_config("model", name, config["conf"])
    model = model or session.model(told, trained=False)
    if suite.samples % max(1, model.data.classes):
        raise UsageError(f"suite.samples={suite.samples} cannot be balanced over {model.data.classes} classes; use a multiple")
    jobs, blocks, skipped = plan_jobs(suite, model)
    if not config["dry"] and model.in_store:
        teach(suite, model, jobs, session)
        model = session.model(told)
        jobs, blocks, skipped = plan_jobs(suite, model)
    judge, rows = session.judge(model, frozenset(n for c in suite.cells for n in c.metrics)), session.rows(suite.name)
    truths = {scale: truth_of(suite, scale, model) for scale in {cell.guidance for cell, _ in jobs}}
    done = {coordinates(r): r for r in rows.read()}
    sweep = Sweep(suite, model, session.store, rows, judge, truths, session.device, session.batch, session.stale)
    found = ((cell, job, missing(sweep, cell, job, done)) for cell, job in jobs)
    return Work(sweep, jobs, blocks, [(cell, job, names) for cell, job, names in found if names], skipped)


def stale_rows(rows: Sequence[Row]) -> frozenset[str]:
    """Checksums of the rows that a new sweep does not count: those that failed, and those that later ones supersede."""
    kept = {r["checksum"] for r in newest(rows) if r["status"] != "failed"}
    return frozenset(r["checksum"] for r in rows) - kept


def prepare_all(config: Mapping[str, Any], suite: Suite, session: Session) -> list[Work]:
    """The work of a suite on each of its models. One that single blocks name and that is not here is said, and its cells are left out."""
    works = list[Work]()
    for name, part in parts_of(config, suite).items():
        try:
            works.append(prepare(part, name, config, session))
        except Unavailable as err:
            if name in models_of(config["suite"]):
                raise
            session.say(f"skipped {len(part.cells)} cells: {err}")
    return works


def parts_of(config: Mapping[str, Any], suite: Suite) -> dict[str, Suite]:
    """A suite on each of its models, and on those that single blocks name."""
    whole = models_of(config["suite"])
    return {name: suite.on(name, name in whole) for name in dict.fromkeys([*whole, *filter(None, suite.models)])}


def devices_of(device: str) -> list[str]:
    """The devices that processes of a sweep take in turn: for `cuda` each GPU of several, else the one that is named."""
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    return [f"cuda:{i}" for i in range(gpus)] if gpus > 1 else [device]


def workers_of(config: Mapping[str, Any], suite: Suite) -> int:
    """How many processes share the cells: `workers`, else one for each of several GPUs, else what the suite says; one by itself where it
    measures latencies. **Raises**: UsageError where others would spoil them."""
    if several():
        if config["workers"] > 1:
            raise UsageError(
                f"torchrun starts the processes of a sweep, and workers={config['workers']} would start more; leave workers out"
            )
        return 1
    timed = any(set(c.metrics) & {"timing", *TIMINGS} for c in suite.cells)
    gpus = len(devices_of(config["device"]))
    count = config["workers"] or (gpus if gpus > 1 and not timed else config["suite"].get("workers", 1))
    if not isinstance(count, int) or count < 1:
        raise UsageError(f"suite.workers must be at least 1, got {count}; e.g. workers=2")
    if count > 1 and timed:
        raise UsageError(f"suite {suite.name} measures latencies, which other processes would disturb; use workers=1")
    return count


def executor_of(name: str, workers: int) -> Callable[[Graph], None]:
    """Who goes through a sweep's jobs: the executor of that name, or several processes here where it has more than one worker."""
    return get("executor", name or ("workers" if workers > 1 else "local")).target
