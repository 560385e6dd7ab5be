"""This process works through the cells of a sweep."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.execute.prepare import prepare_all
from bench.execute.process import tune_process
from bench.jobs.cell import Cell
from bench.jobs.resolve import Job
from bench.jobs.suite import expand
from bench.jobs.work import Sweep, attempt
from bench.store.addresses import Row
from bench.store.artefacts import Store
from fewstep.plugins import load_modules
from fewstep.progress import bar_settings

After = Callable[[Cell, Job | None, list[Row]], None]


def nothing_more(cell: Cell, job: Job | None, rows: list[Row]) -> None:
    """What is done after a cell where everything stays."""


def work_through(
    sweep: Sweep, pending: list[tuple[Cell, Job | None]], report: Callable[[list[Row]], None], after: After = nothing_more
) -> None:
    """All pending cells, in order; those another process is at are looked at again later. `after` gets each cell that is done and the
    rows, `report` the rows."""
    with tqdm(total=len(pending), desc=f"sweep {sweep.suite.name}", unit="cell", **bar_settings()) as bar:
        while pending:
            waiting: list[tuple[Cell, Job | None]] = []
            for cell, job in pending:
                rows = attempt(sweep, cell, job)
                if rows is None:
                    waiting.append((cell, job))
                    continue
                bar.update()
                after(cell, job, rows)
                report(rows)
            if len(waiting) == len(pending):
                time.sleep(0.5)
            pending = waiting


def help_out(config: Mapping[str, Any]) -> None:
    """Work through the cells of a sweep that another process prepares, reports on and finishes."""
    tune_process(config["threads"])
    load_modules(config["plugins"])  # a process that was spawned knows none
    suite = expand(config["suite"], config["seed"], config["noise"])
    for work in prepare_all(config, suite, Store(Path(config["results"])), config["stale"]):
        work_through(work.sweep, work.pending, lambda rows: None)
