"""Doing jobs: one after the other those of a cell, and the rows that they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.evaluate import timing
from bench.evaluate.measuring import Failure, features_of, features_spec, measure_all
from bench.evaluate.pairs import pairs_by_seed, pairs_told
from bench.evaluate.reference_rows import components_of, naive_floor, naive_images, pictures_as_outputs
from bench.evaluate.references import KIND as REFERENCE
from bench.evaluate.references import ensure_space, moments_key
from bench.jobs.graph import Opened, Sweep, jobs_of
from bench.jobs.resolve import Job
from bench.jobs.rows import Facts, Made, components_of_samples, row
from bench.jobs.samples import ensure_samples, parameter_shares, parameters
from bench.jobs.session import Session
from bench.jobs.spec import ROWS, TIMING, Spec, read_spec
from bench.jobs.suite import Suite
from bench.space.keeping import keep_asked
from bench.store.addresses import Row, digest
from bench.store.cell import PICTURE, Cell
from bench.store.measures import COUNTED, TIMINGS
from bench.store.parts import Samples
from bench.store.rows import CELL_FAILED, coordinates
from bench.store.world import Lost
from fewstep.denoiser import Preconditioned, leaf
from fewstep.errors import Unavailable
from fewstep.files import full_disk
from fewstep.plugins import known
from fewstep.tasks.task import Paired
from metrics import Measurement, compares
from metrics.metric import Pairs
from metrics.pixels import quantised

Say = Callable[[str], None]


def recipe_of(sweep: Sweep, job: Job | None) -> str | None:
    """What a student's rows have, so that seeds are averaged over one recipe."""
    return None if job is None or job.student is None else job.student.recipe(sweep.model)


def missing(sweep: Sweep, cell: Cell, job: Job | None, done: Mapping[tuple[Any, ...], Row]) -> list[str]:
    """The metrics of a cell without a row that comes from the same work; none where the cell has failed since the sweep began."""
    failed = done.get(sweep.coordinates(cell, CELL_FAILED))
    if failed is not None and failed["checksum"] not in sweep.stale and failed["key"] == sweep.key(cell, job):
        return []
    absent, recipe = [], recipe_of(sweep, job)
    for name, work in sweep.work(cell, job).items():
        found = done.get(sweep.coordinates(cell, name))
        made = {} if found is None or found["checksum"] in sweep.stale else found["protocol"]
        if (made.get("work"), made.get("recipe")) != (work, recipe):
            absent.append(name)
    return absent


def made(opened: Opened) -> tuple[Made, float | None]:
    """What the rows of a sampled cell say of how its samples came about, and the seconds of its fits, None without any."""
    sweep, cell, job = opened.sweep, opened.cell, opened.job
    assert job is not None
    model, store, bound = sweep.model, sweep.store, opened.bound
    records = [store.read("fit", fit.key(model)) for fit in job.fits]
    known = bool(records) and not any(record.get("given") for record in records)  # what a student cost that was trained elsewhere is not
    seconds = sum(fit.seconds(record, job.steps) for fit, record in zip(job.fits, records)) if known else None
    samples = store.read("samples", job.key)
    found: dict[str, Any] = {}
    if job.student is not None:
        found |= {"training": job.student.training(records[0], job.steps), "fit": job.student.key(model), "fit_seed": job.student.seed}
        found |= {"distiller": vars(job.student.distiller()), "fit_made_by": records[0].get("made_by", {}), "recipe": recipe_of(sweep, job)}
        found |= {"w_trained": job.student.distiller().sampling().w}
        warnings = records[0].get("warning"), job.student.warning(cell.guidance, bound.plan, model)
        found |= {"warning": "; ".join(filter(None, warnings)) or None}
    if job.learned is not None:
        own = {"key": job.learned.key(model), "seed": job.learned.seed, "base": vars(job.solver).get("base", "")}
        found |= {"solver_fit": {**own, **records[-1].get("facts", {})}}
    told = Made(
        samples_artifact=job.key,
        levels=bound.levels(),
        dtype=job.spec["dtype"],
        form=own.precond.form if isinstance(own := leaf(model.teacher), Preconditioned) else "closed form",
        solver_options=vars(job.solver),
        samples_made_on=samples["made_on"],
        samples_made_by=samples.get("made_by", {}),
        samples_batch=samples.get("batch"),
        parameters=parameter_shares(bound.denoiser),
        passes={"backbone": samples["network_passes"], "adapter": samples["branch_passes"]} if "branch_passes" in samples else None,
        pairs=_pairs_told(sweep),
        **found,
    )
    return told, seconds


def compared(opened: Opened, names: Sequence[str]) -> bool:
    """Whether one of these metrics compares with the solution, where the cell's question has one."""
    return opened.job is not None and opened.job.solved_by(opened.sweep.model) and any(map(compares, names))


def facts_of(opened: Opened, names: Sequence[str]) -> Facts:
    """What all rows of a cell say."""
    sweep, cell, job = opened.sweep, opened.cell, opened.job
    key, work = sweep.key(cell, job), sweep.work(cell, job)
    if job is None:
        drawn = components_of(cell.solver, sweep.judge.reference, sweep.suite.samples)
        told = _pairs_told(sweep) if cell.solver == PICTURE else None
        return Facts(key, work, 0, sweep.device, made=Made(samples_artifact=key, pairs=told), components=drawn)
    told, seconds = made(opened)
    truth = sweep.truths[cell.guidance] if compared(opened, names) else None
    return Facts(
        key,
        work,
        job.steps,
        sweep.device,
        made=told if truth is None else told.against(truth.made(sweep.store)),
        train_seconds=seconds,
        params=parameters(opened.bound.denoiser),
        components=components_of_samples(job, opened.bound.denoiser),
        compared_with={} if truth is None else truth.protocol(),
        solution={} if truth is None else truth.components(),
    )


def timed(opened: Opened) -> dict[str, Measurement | str]:
    """Latency and memory of a cell's sampling, with the load of other processes meanwhile."""
    sweep, job = opened.sweep, opened.job
    assert job is not None
    machine = timing.machine(sweep.device)
    found = timing.measure(opened.bound.plan, opened.bound.denoiser, job.sigma_max, sweep.device, sweep.model.task)

    def told(result: timing.Timed | str) -> Measurement | str:
        if isinstance(result, str):
            return result
        said = {"machine": machine, "load_of_others": result.load, "metric_version": timing.VERSION}
        return Measurement(result.value, None, result.repeats, said)

    return {name: told(result) for name, result in found.items()}


def measured(opened: Opened, names: Sequence[str], say: Say) -> dict[str, Measurement | str]:
    """The metrics of a cell's samples, and the passes that they took."""
    sweep, cell, job = opened.sweep, opened.cell, opened.job
    quality, found = [name for name in names if known("metric", name)], dict[str, Measurement | str]()
    teacher, error = None, None
    if job is not None:
        passes = sweep.store.read("samples", job.key)["network_passes"]
        found[COUNTED] = Measurement(passes, None, sweep.suite.samples, {})
        if compared(opened, names):
            teacher, error = sweep.truths[cell.guidance].ensure(sweep.store, sweep.device, sweep.batch, say)
    floors = {name: naive_floor(cell.solver, name, sweep.judge, sweep.suite.samples) for name in quality} if job is None else {}
    found |= {name: value for name, value in floors.items() if value is not None}
    if rest := [name for name in quality if name not in found]:
        samples = samples_of(opened, say)
        found |= measure_all(rest, samples, teacher, sweep.key(cell, job), sweep.judge, sweep.store, say, error)
    return found


def samples_of(opened: Opened, say: Say) -> Samples:
    """The samples of a cell: from the store, or made now; real images for a reference row."""
    sweep = opened.sweep
    if opened.cell.solver == PICTURE and opened.job is None:
        return pictures_as_outputs(sweep.model.task, sweep.model.teacher, _seeds(sweep.suite))
    if opened.job is None:
        suite = sweep.suite
        return Samples(*naive_images(opened.cell.solver, sweep.model.data, suite.samples, suite.seed, sweep.judge.reference))
    drawn = {"seed": sweep.suite.seed, "noise": sweep.suite.noise, "labelling": sweep.model.labelling}
    return replace(ensure_samples(opened.bound, sweep.batch, say), **drawn, pairs=pairs_of_cell(opened))


def pairs_of_cell(opened: Opened) -> Pairs | None:
    """What the samples of a cell are compared with; None where its model's task has no true images."""
    sweep = opened.sweep
    if not isinstance(sweep.model.task, Paired):
        return None
    found = pairs_by_seed(sweep.model.task, _seeds(sweep.suite))
    if "image" in found.condition:
        keep_asked(sweep.store, _asked_key(sweep), found.condition["image"], found.target)
    return found


def _seeds(suite: Suite) -> range:
    return range(suite.seed, suite.seed + suite.samples)


def _asked_key(sweep: Sweep) -> str:
    """The address of the first pictures and true images of a suite's samples."""
    model = sweep.model
    made = model.task.identity if isinstance(model.task, Paired) else ""
    return digest({"asked": repr(model.task), "made_of": made, "heldout": model.data.heldout_digest(), "seed": sweep.suite.seed})


def _pairs_told(sweep: Sweep) -> Mapping[str, Any] | None:
    task = sweep.model.task
    told = pairs_told(task, sweep.model.data.heldout_digest()) if isinstance(task, Paired) else None
    return None if told is None else {**told, "shown": _asked_key(sweep)}


def _fit(opened: Opened, spec: Spec, say: Say) -> list[Row]:
    opened.fits[spec.key].ensure(opened.sweep.model, opened.sweep.store, opened.sweep.device, say, opened.sweep.batch)
    return []


def _samples(opened: Opened, spec: Spec, say: Say) -> list[Row]:
    ensure_samples(opened.bound, opened.sweep.batch, say)
    return []


def _truth(opened: Opened, spec: Spec, say: Say) -> list[Row]:
    opened.sweep.truths[opened.cell.guidance].ensure(opened.sweep.store, opened.sweep.device, opened.sweep.batch, say)
    return []


def _reference(opened: Opened, spec: Spec, say: Say) -> list[Row]:
    judge = opened.sweep.judge
    for extractor in judge.extractors_of(opened.names):
        if moments_key(judge.reference, extractor) == spec.key:
            ensure_space(judge.reference, extractor, opened.sweep.store)
    return []


def _features(opened: Opened, spec: Spec, say: Say) -> list[Row]:
    sweep, key = opened.sweep, opened.sweep.key(opened.cell, opened.job)
    names = {e.name for e in sweep.judge.extractors_of(opened.names) if digest(features_spec(key, e)) == spec.key}
    features_of(quantised(samples_of(opened, say).images), key, names, sweep.judge, sweep.store, say)
    return []


def _rows(opened: Opened, spec: Spec, say: Say) -> list[Row]:
    sweep, cell, job = opened.sweep, opened.cell, opened.job
    of_kind = [name for name in opened.names if (name in TIMINGS) == (spec.kind == TIMING)]
    absent = missing(sweep, cell, job, {coordinates(r): r for r in sweep.rows.read()})
    names = [name for name in of_kind if name in absent]
    if not names:
        return []
    outcomes = timed(opened) if spec.kind == TIMING else measured(opened, names, say)
    facts = facts_of(opened, names)
    return [row(cell, sweep.suite, sweep.model, sweep.judge, name, outcomes[name], facts) for name in names]


DO: dict[str, Callable[[Opened, Spec, Say], list[Row]]] = {
    "fit": _fit,
    "samples": _samples,
    "truth": _truth,
    REFERENCE: _reference,
    "features": _features,
    ROWS: _rows,
    TIMING: _rows,
}


def do(session: Session, spec: Spec) -> list[Row]:
    """Do one job, unless its artefact or its rows are there (fits look for themselves). Returns the rows that it gave, which are recorded.

    **Raises**: UsageError for a job that cannot be done here (see `Session.open`).
    """
    if spec.kind != "fit" and not spec.makes_rows and session.store.has(spec.kind, spec.key):
        return []
    if session.world.size > 1 and not spec.makes_rows:
        session.world.told(spec.text)  # to `help_first`, where the others wait
        return _shared(session, spec)
    opened = session.open(spec)
    rows = DO[spec.kind](opened, spec, session.say)
    if rows:
        opened.sweep.rows.add(rows)
    return rows


def _shared(session: Session, spec: Spec) -> list[Row]:
    """A job that all processes of a world do together. **Raises**: in all of them, what is raised in one."""
    with session.world.as_one():
        opened = session.open(spec)  # each by itself
        with session.store.shared(session.world):
            return DO[spec.kind](opened, spec, session.say)


def help_first(session: Session) -> None:
    """What the other processes of a world do: their share of each job that the first one begins, until it has no more.

    What fails in one of them fails in the first, which records it.
    """
    while text := session.world.told(lambda: ""):
        try:
            _shared(session, read_spec(text))
        except Lost:
            raise
        except Exception:
            continue


@dataclass(frozen=True)
class Branch:
    """The jobs of one cell, in order. `key` is the address of its samples: one process at a time works at it."""

    key: str
    jobs: tuple[Spec, ...]


def branch_of(sweep: Sweep, cell: Cell, job: Job | None, names: Sequence[str]) -> Branch:
    """The jobs of a cell that lacks rows of these metrics."""
    return Branch(sweep.key(cell, job), tuple(jobs_of(Opened(sweep, cell, job, tuple(names)))))


def failure(opened: Opened, err: Exception) -> Row:
    """The row that records why a cell has no numbers."""
    sweep, job = opened.sweep, opened.job
    key, text = sweep.key(opened.cell, job), Failure(f"{type(err).__name__}: {err}".splitlines()[0])
    facts = Facts(key, {}, job.steps if job else 0, sweep.device, made=Made(recipe=recipe_of(sweep, job)))
    return row(opened.cell, sweep.suite, sweep.model, sweep.judge, CELL_FAILED, text, facts)


def unavailable(opened: Opened, reason: str) -> list[Row]:
    """The rows of a cell that cannot be made here, those that say so already apart."""
    sweep, job = opened.sweep, opened.job
    facts = Facts(sweep.key(opened.cell, job), {}, job.steps if job else 0, sweep.device, made=Made(recipe=recipe_of(sweep, job)))
    told = {coordinates(found): found["error"] for found in sweep.rows.read() if found["status"] == "unavailable"}
    rows = [row(opened.cell, sweep.suite, sweep.model, sweep.judge, name, reason, facts) for name in opened.names]
    return [new for new in rows if told.get(coordinates(new)) != new["error"]]


def record(opened: Opened, err: Exception, say: Say) -> None:
    """Record why a cell has no numbers, and say it. **Raises**: the error itself where the disk is full or the other processes are lost."""
    if isinstance(err, Unavailable):
        say(f"cell unavailable: {opened.sweep.model.name} {opened.cell.label}: {err}")
        opened.sweep.rows.add(unavailable(opened, str(err)))
        return
    if isinstance(err, Lost) or (isinstance(err, OSError) and full_disk(err)):
        raise err
    say(f"cell failed: {opened.sweep.model.name} {opened.cell.label}: {type(err).__name__}: {err}")
    opened.sweep.rows.add([failure(opened, err)])


def busy(session: Session, branch: Branch) -> bool:
    """Whether another process is at one of this cell's fits right now: other cells go first."""
    for spec in branch.jobs:
        if spec.kind == "fit":
            lock = session.store.try_lock("fit", spec.key)
            if lock is None:
                return True
            lock.release()
    return False


def attempt(session: Session, branch: Branch) -> list[Row] | None:
    """Do what is missing of one cell, and record why where that fails; None when another process is at it. Returns the suite's rows."""
    lock = None if busy(session, branch) else session.store.try_lock("cell", branch.key)
    if lock is None:
        return None
    try:
        last = branch.jobs[-1]
        opened = session.cell(last)
        sweep = opened.sweep
        if not missing(sweep, opened.cell, opened.job, {coordinates(r): r for r in sweep.rows.read()}):
            return sweep.rows.read()
        try:
            for spec in branch.jobs:
                do(session, spec)
        except Exception as err:
            record(opened, err, session.say)
        return sweep.rows.read()
    finally:
        lock.release()
