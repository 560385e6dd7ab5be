"""One cell of a sweep: what it still lacks, and the rows that doing it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.evaluate import timing
from bench.evaluate.judge import Judge
from bench.evaluate.measuring import Failure, measure_all, spelled_out, work_of
from bench.evaluate.reference_rows import VERSION as REFERENCE_ROWS
from bench.evaluate.reference_rows import naive_floor, naive_samples
from bench.jobs.cell import AXES, Cell
from bench.jobs.models import Model
from bench.jobs.resolve import Job, options_of
from bench.jobs.rows import Facts, components_of_samples, conditions_of_cell, conditions_of_metric, row
from bench.jobs.samples import denoiser_of, ensure_samples, levels_of, parameters, plan_of
from bench.jobs.solutions import Truth
from bench.jobs.suite import Suite
from bench.store.addresses import Row, digest
from bench.store.artefacts import Store
from bench.store.measures import COUNTED, TIMINGS
from bench.store.parts import Samples
from bench.store.rows import CELL_FAILED, Rows, coordinates
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.files import full_disk
from fewstep.plugins import known
from fewstep.progress import say
from metrics import Measurement, declared, metric_named


@dataclass(frozen=True, eq=False)
class Sweep:
    """Everything the jobs of one sweep share."""

    suite: Suite
    model: Model
    store: Store
    rows: Rows
    judge: Judge
    truths: Mapping[float, Truth]
    device: str
    batch: int
    stale: frozenset[str]  # checksums of rows from before the sweep that do not count: failed, or superseded by later ones

    def work(self, cell: Cell, job: Job | None) -> dict[str, str]:
        """metric -> address of its work, for all metrics of the cell."""
        key, teacher = self.key(cell, job), "" if job is None else self.truths[cell.guidance].key
        return {name: work_of(name, key, teacher, self.judge, self.device) for name in spelled_out(cell.metrics, cell.method != "naive")}

    def coordinates(self, cell: Cell, metric: str) -> tuple[Any, ...]:
        """Those of a row of the cell."""
        own = {axis: getattr(cell, axis) for axis in AXES if axis != "metrics"}
        own |= {"options": options_of(cell, self.suite), "cohort": digest(conditions_of_cell(cell, self.suite))}
        compared_with = {} if cell.method == "naive" else self.truths[cell.guidance].protocol()
        conditions = conditions_of_metric(metric, compared_with, self.device)
        return coordinates({"model": self.model.name, "seed": self.suite.seed, **own, "metric": metric, "conditions": conditions})

    def key(self, cell: Cell, job: Job | None) -> str:
        if job is not None:
            return job.key
        return digest(
            {
                "naive": cell.solver,
                "version": REFERENCE_ROWS,
                "data": self.judge.reference.digest,
                "count": self.suite.samples,
                "seed": self.suite.seed,
            }
        )


def recipe_of(sweep: Sweep, job: Job | None) -> dict[str, str]:
    """What the protocol of a student's row has, so that seeds are averaged over one recipe."""
    return {} if job is None or job.student is None else {"recipe": job.student.recipe(sweep.model)}


def missing(sweep: Sweep, cell: Cell, job: Job | None, done: Mapping[tuple[Any, ...], Row]) -> list[str]:
    """The metrics of a cell without a row that comes from the same work; none where the cell has failed since the sweep began."""
    failed = done.get(sweep.coordinates(cell, CELL_FAILED))
    if failed is not None and failed["checksum"] not in sweep.stale and failed["key"] == sweep.key(cell, job):
        return []
    absent, recipe = [], recipe_of(sweep, job).get("recipe")
    for name, work in sweep.work(cell, job).items():
        found = done.get(sweep.coordinates(cell, name))
        made = {} if found is None or found["checksum"] in sweep.stale else found["protocol"]
        if (made.get("work"), made.get("recipe")) != (work, recipe):
            absent.append(name)
    return absent


def timed(sweep: Sweep, job: Job, denoiser: Denoiser) -> dict[str, Measurement | str]:
    """Latency and memory of a cell's sampling, with the load of other processes meanwhile."""
    machine, plan = timing.machine(sweep.device), plan_of(job, sweep.model, sweep.store, sweep.device)
    found = timing.measure(plan, denoiser, job.sigma_max, sweep.device, sweep.model.task)
    return {
        name: Measurement(value, None, repeats, {"machine": machine, "load_of_others": load, "metric_version": timing.VERSION})
        for name, (value, repeats, load) in found.items()
    }


def fitted(sweep: Sweep, job: Job) -> tuple[float | None, dict[str, Any]]:
    """Do what a job's fits still need; their seconds (None without fits), and what a row says of them."""
    model, said = sweep.model, dict[str, Any]()
    records = [fit.ensure(model, sweep.store, sweep.device, say) for fit in job.fits]
    if job.student is not None:
        said |= {"training": job.student.training(records[0], job.steps)}
        said |= {"fit": job.student.key(model), "fit_seed": job.student.seed, "distiller": vars(job.student.distiller())}
        said |= recipe_of(sweep, job) | {"fit_made_by": records[0].get("made_by", {})}
        trained = job.student.distiller().sampling().w
        if trained is not None:
            said |= {"w_trained": trained}
        if warning := job.student.warning(job.cell.guidance, plan_of(job, model, sweep.store, sweep.device), model):
            said |= {"warning": warning}
    if job.learned is not None:
        own = {"key": job.learned.key(model), "seed": job.learned.seed, "base": vars(job.solver).get("base", "")}
        said |= {"solver_fit": {**own, **records[-1].get("facts", {})}}
    return sum(fit.seconds(r, job.steps) for fit, r in zip(job.fits, records)) if records else None, said


def run_cell(sweep: Sweep, cell: Cell, job: Job | None, names: list[str]) -> list[Row]:
    """Compute the named metrics of one cell (training, sampling and features come from the store where they are there)."""
    suite, model, store = sweep.suite, sweep.model, sweep.store
    key = sweep.key(cell, job)
    protocol: dict[str, Any] = {"samples_artifact": key}
    facts = Facts(key, sweep.work(cell, job), job.steps if job else 0, sweep.device, protocol=protocol)
    outcomes: dict[str, Measurement | str] = {}
    teacher, teacher_error = None, None
    quality = [n for n in names if known("metric", n)]
    if job is None:
        facts = replace(facts, components={"reference rows": REFERENCE_ROWS})
        samples = Samples(**naive_samples(cell.solver, model.data, suite.samples, suite.seed, sweep.judge.reference))
    else:
        seconds, trained = fitted(sweep, job)
        protocol |= trained
        samples = ensure_samples(job, model, store, sweep.device, sweep.batch, say)
        denoiser = denoiser_of(job, model, store, sweep.device)
        parts = components_of_samples(job, denoiser)
        facts = replace(facts, train_seconds=seconds, params=parameters(denoiser), components=parts)
        form = model.teacher.precond.form if isinstance(model.teacher, Preconditioned) else "closed form"
        protocol |= {"levels": levels_of(job, model, store), "dtype": job.spec["dtype"], "form": form, "solver_options": vars(job.solver)}
        made = store.read("samples", job.key)
        protocol |= {"samples_made_on": made["made_on"], "samples_made_by": made.get("made_by", {})}
        outcomes[COUNTED] = Measurement(made["network_passes"], None, suite.samples, {})
        if any(n in TIMINGS for n in names):
            outcomes |= timed(sweep, job, denoiser)
        if any(declared(metric_named(n)).needs_teacher for n in quality):
            own = sweep.truths[cell.guidance]
            teacher, teacher_error = own.ensure(store, sweep.device, sweep.batch, say)
            protocol["teacher_solution"] = own.protocol()
            facts = replace(facts, compared_with=own.protocol(), solution=own.components())
    if quality:
        outcomes |= measure_all(quality, samples, teacher, key, sweep.judge, store, say, teacher_error)
    for name in quality:
        floor = naive_floor(cell.solver, name, sweep.judge, suite.samples)
        outcomes[name] = floor or outcomes[name]
    return [row(cell, suite, model, sweep.judge, name, outcomes[name], facts) for name in names]


def failure(sweep: Sweep, cell: Cell, job: Job | None, err: Exception) -> Row:
    """The row that records why a cell has no numbers."""
    text = Failure(f"{type(err).__name__}: {err}".splitlines()[0])
    facts = Facts(sweep.key(cell, job), {}, job.steps if job else 0, sweep.device, protocol=recipe_of(sweep, job))
    return row(cell, sweep.suite, sweep.model, sweep.judge, CELL_FAILED, text, facts)


def busy(sweep: Sweep, job: Job | None) -> bool:
    """Whether another process is at one of this job's fits right now: other cells go first."""
    for fit in () if job is None else job.fits:
        lock = sweep.store.try_lock("fit", fit.key(sweep.model))
        if lock is None:
            return True
        lock.release()
    return False


def attempt(sweep: Sweep, cell: Cell, job: Job | None) -> list[Row] | None:
    """Do what is missing of one cell; None when another process is at it. Returns the suite's rows."""
    lock = None if busy(sweep, job) else sweep.store.try_lock("cell", sweep.key(cell, job))
    if lock is None:
        return None
    try:
        rows = sweep.rows.read()
        names = missing(sweep, cell, job, {coordinates(r): r for r in rows})
        if not names:
            return rows
        try:
            return sweep.rows.add(run_cell(sweep, cell, job, names))
        except Exception as err:
            if isinstance(err, OSError) and full_disk(err):
                raise
            say(f"cell failed: {sweep.model.name} {cell.label}: {type(err).__name__}: {err}")
            return sweep.rows.add([failure(sweep, cell, job, err)])
    finally:
        lock.release()
