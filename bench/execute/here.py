"""This process goes through the graph of a sweep, cell by cell."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tqdm import tqdm

from bench.execute.graph import Graph, Report
from bench.jobs.session import Session
from bench.jobs.work import Branch, attempt
from fewstep.plugins import register
from fewstep.progress import bar_settings


def work_through(session: Session, branches: Sequence[Branch], report: Report, label: str = "sweep") -> None:
    """All cells, in order; those another process is at are looked at again later. `report` gets each cell that is done."""
    pending = list(branches)
    with tqdm(total=len(pending), desc=label, unit="cell", **bar_settings()) as bar:
        while pending:
            waiting: list[Branch] = []
            for branch in pending:
                rows = attempt(session, branch)
                if rows is None:
                    waiting.append(branch)
                    continue
                bar.update()
                report(branch, rows)
            if len(waiting) == len(pending):
                time.sleep(0.5)
            pending = waiting


@register("executor", "local", "this project")
def local(graph: Graph) -> None:
    """This process alone."""
    work_through(graph.session, graph.branches, graph.report, graph.label)
