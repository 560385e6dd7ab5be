"""python -m bench.sweep +suite=digits: sample, measure and tabulate every cell of a suite.

    python -m bench.sweep +suite=digits              tables and pictures in results/digits/
    python -m bench.sweep +suite=digits dry=true     the jobs, what is cached, and what the rest will cost
    python -m bench.sweep +suite=digits results=DIR  another results folder
    python -m bench.sweep +suite=arena workers=2     two processes share its cells, each with half of the threads

Missing students are trained first. A sweep can be stopped at any time and goes on where it was; several may share a results folder.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench import cli
from bench.execute.workers import helping
from bench.jobs.fits.fit import Fit
from bench.jobs.fits.students import teacher_fit, with_teacher
from bench.jobs.models import WRAPS, Model, load_model
from bench.jobs.samples import Job, resolve
from bench.jobs.solutions import truth_of
from bench.jobs.suite import Cell, Suite, cell_name, expand
from bench.jobs.work import Sweep, attempt, missing
from bench.measure import timing
from bench.measure.judge import make_judge
from bench.report import findings, is_current, write_report
from bench.store.artefacts import Row, Rows, Store, coordinates, newest
from bench.studies import trajectories
from fewstep.errors import Unreachable, UsageError, near_misses
from fewstep.noise import make_noise
from fewstep.plugins import entries, get
from metrics import METRICS

STUDIES: Mapping[str, Callable[[dict[str, Any]], int]] = {"trajectories": trajectories.run}
PICTURES_EVERY = 60.0
REPORT_SHARE = 20.0  # tables of a large sweep are rewritten so seldom that they take a twentieth of its time


def check_names(suite: Suite) -> None:
    """**Raises**: UsageError for a noise, metric, wrapper or method's option that does not exist, before anything is computed."""
    make_noise(suite.noise, torch.arange(0))
    solvers, distillers = entries("solver"), entries("distiller")
    for key, options in suite.options.items():
        name = key.partition("/")[0]
        if name in distillers:
            get("distiller", name).make(**{**suite.options.get(name, {}), **options}).phases()
        elif name in solvers:
            get("solver", name).make(**options)
        else:
            raise UsageError(f"suite.options: unknown method '{name}'{near_misses(name, [*distillers, *solvers])}")
    for wrap in {c.wrap for c in suite.cells if c.wrap and c.wrap not in WRAPS}:
        raise UsageError(f"unknown wrap '{wrap}'{near_misses(wrap, list(WRAPS))}")
    known = [*METRICS, *timing.METRICS, "timing"]
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


class Reports:
    """Tables as cells finish, with pictures once a minute."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder, self.store = folder, store
        self.drawn, self.due = time.monotonic(), 0.0

    def __call__(self, rows: list[Row]) -> None:
        began = time.monotonic()
        if began < self.due:
            return
        pictures = began - self.drawn > PICTURES_EVERY
        write_report(self.folder, rows, self.store, pictures)
        self.drawn = time.monotonic() if pictures else self.drawn
        self.due = time.monotonic() + REPORT_SHARE * (time.monotonic() - began)


def work_through(sweep: Sweep, pending: list[tuple[Cell, Job | None]], report: Callable[[list[Row]], None]) -> None:
    """All pending cells, in order; those another process is at are looked at again later. `report` gets the rows after each cell."""
    with tqdm(total=len(pending), desc=f"sweep {sweep.suite.name}", unit="cell", **cli.bar_settings()) as bar:
        while pending:
            waiting: list[tuple[Cell, Job | None]] = []
            for cell, job in pending:
                rows = attempt(sweep, cell, job)
                if rows is None:
                    waiting.append((cell, job))
                    continue
                bar.update()
                report(rows)
            if len(waiting) == len(pending):
                time.sleep(0.5)
            pending = waiting


@dataclass(frozen=True, eq=False)
class Work:
    """All jobs of a suite on one model, those that are still to do, and why some cells have none."""

    sweep: Sweep
    jobs: Sequence[tuple[Cell, Job | None]]
    pending: list[tuple[Cell, Job | None]]
    skipped: Sequence[str]


def prepare(suite: Suite, name: str, config: Mapping[str, Any], store: Store, rows: Rows, stale: frozenset[str]) -> Work:
    """The work of a suite on a model, whose teacher is trained first where its weights are in the store (not by a dry run)."""
    model = load_model(cli.group_config("model", name), config["device"])
    if suite.samples % max(1, model.data.classes):
        raise UsageError(f"suite.samples={suite.samples} cannot be balanced over {model.data.classes} classes; use a multiple")
    if not config["dry"]:
        model = with_teacher(model, store, config["device"], cli.say)
    jobs, skipped = plan_jobs(suite, model)
    judge = make_judge(model, {n for c in suite.cells for n in c.metrics})
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
    rows, names = Rows(store, suite.name, cli.say), config["suite"]["model"]
    return [prepare(suite, name, config, store, rows, stale) for name in (names if isinstance(names, list) else [names])]


def workers_of(config: Mapping[str, Any], suite: Suite) -> int:
    """How many processes share the cells: `workers`, or what the suite says. **Raises**: UsageError where they would spoil latencies."""
    count = config["workers"] or config["suite"].get("workers", 1)
    if not isinstance(count, int) or count < 1:
        raise UsageError(f"suite.workers must be at least 1, got {count}; e.g. workers=2")
    timed = any(set(c.metrics) & {"timing", *timing.METRICS} for c in suite.cells)
    if count > 1 and timed:
        raise UsageError(f"suite {suite.name} measures latencies, which other processes would disturb; use workers=1")
    return count


def help_out(config: Mapping[str, Any]) -> None:
    """Work through the cells of a sweep that another process prepares, reports on and finishes."""
    cli.tune_process(config["threads"])
    suite = expand(config["suite"], config["seed"], config["noise"])
    for work in prepare_all(config, suite, Store(Path(config["results"])), config["stale"]):
        work_through(work.sweep, work.pending, lambda rows: None)


def dry_run(work: Work) -> None:
    """Print every job with its NFE and whether it is cached, and an estimate from a measured network pass."""
    sweep, jobs, pending, skipped = work.sweep, work.jobs, work.pending, work.skipped
    per_pass = timing.seconds_per_pass(sweep.model.teacher, sweep.device, sweep.batch)
    for reason in dict.fromkeys(skipped):
        print(f"skipped {reason}")
    to_do = {cell for cell, _ in pending}
    seconds, sampled = 0.0, set[str]()  # cells that are the same at few steps share their samples
    for cell, job in jobs:
        key = sweep.key(cell, job)
        own = 0.0 if job is None or key in sampled or sweep.store.has("samples", key) else per_pass * cell.nfe * sweep.suite.samples
        seconds += own + ((1.0 if "timing" in cell.metrics else 0.1) if cell in to_do else 0.0)
        sampled.add(key)
        print(f"{'to do ' if cell in to_do else 'cached'}  {cell.label}  {f'about {own:.1f} s' if own else ''}".rstrip())
    if any(METRICS[n].needs_teacher for cell, _ in pending for n in cell.metrics if n in METRICS):
        for own in sweep.truths.values():
            seconds += 0 if own.done(sweep.store) else per_pass * own.evals * sweep.suite.samples
            print(f"{'cached' if own.done(sweep.store) else 'to do '}  fine-grid solution {own.label}")
    first = teacher_fit(sweep.model)
    fits: dict[str, Fit] = {} if first is None else {first.key(sweep.model): first}
    fits |= {f.key(sweep.model): f for _, j in jobs if j for f in j.fits}
    for key, fit in fits.items():
        if sweep.store.has("fit", key):
            print(f"cached  fit {fit.label}")
    costs = [f.estimates(sweep.model, sweep.device) for key, f in fits.items() if not sweep.store.has("fit", key)]
    for key, (text, own) in {k: v for found in costs for k, v in found.items()}.items():
        if not sweep.store.has("fit", key):
            seconds += own
            print(f"to do   fit {text}")
    print(f"{len(jobs)} cells, {len(pending)} to do, about {seconds / 60:.1f} minutes on this machine")


def study_of(suite: Mapping[str, Any]) -> Callable[[dict[str, Any]], int]:
    """What runs a suite that is a study. **Raises**: UsageError for an unknown one."""
    if suite["study"] not in STUDIES:
        raise UsageError(f"unknown study '{suite['study']}'{near_misses(suite['study'], list(STUDIES))}")
    return STUDIES[suite["study"]]


def run(config: dict[str, Any]) -> int:
    """The entry point; exit code 1 when a cell failed."""
    if config.get("suite") is None:
        raise UsageError(f"no suite given; type +suite=NAME with one of: {', '.join(cli.choices('suite'))}")
    started = time.monotonic()
    cli.tune_process(config["threads"])
    if "study" in config["suite"]:
        if config["workers"] not in (0, 1):
            raise UsageError(f"suite {config['suite']['name']} is a study, which runs in one process; leave workers out")
        return study_of(config["suite"])(config)
    suite = expand(config["suite"], config["seed"], config["noise"])
    check_names(suite)
    workers = workers_of(config, suite)
    store = Store(Path(config["results"]))
    rows = Rows(store, suite.name, cli.say)
    if not config["dry"]:
        store.clean_leavings()
        rows.repair()
    stale = stale_rows(rows.read())
    works = prepare_all(config, suite, store, stale)
    if config["dry"]:
        for work in works:
            dry_run(work)
        return 0
    for work in works:
        about = f"suite {suite.name} on {work.sweep.model.name}" if len(works) > 1 else f"suite {suite.name}"
        cells, todo = len(work.jobs), len(work.pending)
        cli.say(f"{about}: {cells} cells, {cells - todo} done before, {todo} to do")
        if work.skipped:
            cli.say(f"skipped {len(work.skipped)} cells that their solver cannot reach:\n  " + "\n  ".join(dict.fromkeys(work.skipped)))
    share = max(1, torch.get_num_threads() // workers)
    others = min(workers, max(len(work.pending) for work in works)) - 1
    torch.set_num_threads(share if others > 0 else torch.get_num_threads())
    report = Reports(rows.folder, store.root)
    with helping(help_out, {**config, "threads": share, "stale": stale}, others):
        for work in works:
            work_through(work.sweep, work.pending, report)
    final = rows.read()
    if any(work.pending for work in works) or not is_current(rows.folder, final):
        write_report(rows.folder, final, store.root, pictures=True)
    if told := findings(final):
        cli.say(told)
    keys = {work.sweep.key(cell, job) for work in works for cell, job in work.jobs}
    failed = [r for r in final if r["status"] == "failed" and r["key"] in keys]
    for r in failed:
        cli.say(f"failed: {cell_name(r)}: {r['error']}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cli.say(f"tables and pictures in {rows.folder} ({time.monotonic() - started:.0f} s, peak memory {peak:.2f} GiB)")
    return 1 if failed else 0


def main(args: Sequence[str]) -> int:
    return cli.entry("sweep", __doc__ or "", run, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
