"""python -m bench.sweep +suite=digits: sample, measure and tabulate every cell of a suite.

    python -m bench.sweep +suite=digits              tables and pictures in results/digits/
    python -m bench.sweep +suite=digits dry=true     the jobs, what is cached and what is lacking, and what the rest will cost
    python -m bench.sweep +suite=cifar budget=smoke  a suite that has budgets under one of them: smoke, cpu, short or paper
    python -m bench.sweep +suite=digits results=DIR  another results folder
    python -m bench.sweep +suite=arena workers=2     two processes share its cells, each with half of the threads
    python -m bench.sweep +suite=cifar fetch=false   get nothing from elsewhere, whatever is missing (see bench.fetch)
    torchrun --nproc-per-node 8 -m bench.sweep +suite=NAME device=cuda     eight share each large job of each cell

Missing students are trained first. A sweep can be stopped at any time and goes on where it was; several may share a results folder.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.execute.estimate import dry_run, without_model
from bench.execute.graph import Graph
from bench.execute.prepare import Work, check_names, devices_of, executor_of, parts_of, prepare, prepare_all, stale_rows, workers_of
from bench.execute.process import tune_process
from bench.execute.ranks import led
from bench.fetching.providing import provide
from bench.jobs.keeping import made_keys, needs_of, shared_keys, tidy
from bench.jobs.models import stand_in
from bench.jobs.session import Session
from bench.jobs.suite import Suite, expand
from bench.jobs.work import Branch
from bench.reports.checks import targets_of
from bench.reports.writing import findings, is_current, write_report
from bench.settings import cli
from bench.settings.compose import group_config
from bench.settings.files import choices
from bench.settings.published import untold
from bench.space.claims import Claiming, claiming
from bench.space.keeping import check_keep
from bench.store.addresses import Row, digest
from bench.store.artefacts import Store
from bench.store.cell import cell_name
from bench.store.world import device_of, joined, several
from fewstep.errors import Unavailable, UsageError
from fewstep.plugins import get
from fewstep.progress import say

PICTURES_EVERY = 60.0
REPORT_SHARE = 20.0  # tables of a large sweep are rewritten so seldom that they take a twentieth of its time


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


class Tidy:
    """What is left of a cell's samples when it is done and no other cell reads them; those of one that has failed stay."""

    def __init__(self, works: Sequence[Work], keep: str, claim: Claiming) -> None:
        self.keep, self.own = keep, claim.path
        self.sweeps = {work.sweep.key(cell, job): work.sweep for work in works for cell, job in work.jobs if job is not None}
        self.later = {key for work in works for key in shared_keys(work.sweep, work.jobs)}

    def __call__(self, branch: Branch, rows: list[Row]) -> None:
        failed = any(row["key"] == branch.key and row["status"] == "failed" for row in rows)
        if self.keep != "samples" and branch.key in self.sweeps and not failed:
            tidy(self.sweeps[branch.key], {branch.key} - self.later, self.keep, self.own)


def run(config: dict[str, Any]) -> int:
    """The entry point; exit code 1 when a cell failed."""
    if config.get("suite") is None:
        raise UsageError(f"no suite given; type +suite=NAME with one of: {', '.join(choices('suite'))}")
    tune_process(config["threads"])
    if "study" in config["suite"]:
        if config["workers"] not in (0, 1):
            raise UsageError(f"suite {config['suite']['name']} is a study, which runs in one process; leave workers out")
        if several():
            raise UsageError(f"suite {config['suite']['name']} is a study, which runs in one process; start it without torchrun")
        return get("study", config["suite"]["study"]).target(config)
    check_keep(config["keep"])
    suite = expand(config["suite"], config["seed"], config["noise"])
    check_names(suite)
    targets_of(suite.name)  # which says what is wrong with them before anything is computed
    workers = workers_of(config, suite)
    executor_of(config["executor"], workers)  # which says that there is no such one
    known = devices_of(config["device"])
    devices = [known[i % len(known)] for i in range(workers)] if workers > 1 else [config["device"]]
    with joined(config["device"]) as world:
        config = {**config, "device": device_of(devices[0])}
        session = Session(Store(Path(config["results"])), config["device"], config["batch"], say, world=world)
        return led(session, lambda: _run(config, suite, session, devices))


def _run(config: dict[str, Any], suite: Suite, session: Session, devices: Sequence[str]) -> int:
    """A sweep, or what it would cost."""
    provide(config, config["fetch"], config["dry"])
    if config["dry"]:
        session.stale = stale_rows(session.rows(suite.name).read())
        for name, part in parts_of(config, suite).items():
            try:
                dry_run(prepare(part, name, config, session))
            except Unavailable as err:
                fresh = stand_in(group_config("model", name, config["conf"]), config["device"])
                without_model(part, str(err), fresh is not None)
                if fresh is not None:
                    dry_run(prepare(part, name, config, session, fresh))
        return 0
    session.store.clean_leavings()
    with claiming(session.store, suite.name, digest([config[part] for part in ("suite", "seed", "noise")])) as claim:
        return _swept(config, suite, session, devices, claim)


def _swept(config: dict[str, Any], suite: Suite, session: Session, devices: Sequence[str], claim: Claiming) -> int:
    """The sweep itself, while others know what it needs of the store."""
    started, rows = time.monotonic(), session.rows(suite.name)
    rows.repair()
    session.stale = stale_rows(rows.read())
    works = prepare_all(config, suite, session)
    claim.tell(key for work in works for key in needs_of(work.sweep, work.jobs))
    for work in works:
        about = f"suite {suite.name} on {work.sweep.model.name}" if len(works) > 1 else f"suite {suite.name}"
        cells, todo = len(work.jobs), len(work.pending)
        say(f"{about}: {cells} cells, {cells - todo} done before, {todo} to do")
        without = {cell.method for cell, _ in work.jobs if cell.trained} - set(suite.options)
        for line in untold(suite.name, suite.budget, sorted(without), work.sweep.model.data.name):
            say(line)
        if work.skipped:
            say(f"skipped {len(work.skipped)} cells that their solver cannot reach:\n  " + "\n  ".join(dict.fromkeys(work.skipped)))
    branches = [branch for work in works for branch in work.branches()]
    tables, leave = Reports(rows.folder, session.store.root), Tidy(works, config["keep"], claim)

    def report(branch: Branch, found: list[Row]) -> None:
        leave(branch, found)
        tables(found)

    graph = Graph(session, branches, report, config, f"sweep {suite.name}", devices)
    executor_of(config["executor"], len(devices))(graph)
    final = rows.read()
    if any(work.pending for work in works) or not is_current(rows.folder, final):
        write_report(rows.folder, final, session.store.root, pictures=True)
    if told := findings(final):
        say(told)
    keys = {work.sweep.key(cell, job) for work in works for cell, job in work.jobs}
    failed = [r for r in final if r["status"] == "failed" and r["key"] in keys]
    for work in works:
        tidy(work.sweep, made_keys(work.sweep, work.jobs) - {r["key"] for r in failed}, config["keep"], claim.path)
    for r in failed:
        say(f"failed: {cell_name(r)}: {r['error']}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(f"tables and pictures in {rows.folder} ({time.monotonic() - started:.0f} s, peak memory {peak:.2f} GiB)")
    return 1 if failed else 0


def main(args: Sequence[str]) -> int:
    return cli.entry("sweep", __doc__ or "", run, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
