"""What an executor is given: the cells of a sweep that are still to do, each with its jobs in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.jobs.session import Session
from bench.jobs.spec import Spec
from bench.jobs.work import Branch
from bench.store.addresses import Row

Report = Callable[[Branch, list[Row]], None]


@dataclass(frozen=True, eq=False)
class Graph:
    """The jobs of a sweep. `report` is given each cell that is done and the suite's rows; `config` is the command's configuration.

    A job may be done by any process with the same results folder: `bench.jobs.work.do`, or `python -m bench.job` with its line of JSON.
    """

    session: Session
    branches: Sequence[Branch]
    report: Report
    config: Mapping[str, Any]
    label: str
    devices: Sequence[str]  # of each worker

    def jobs(self) -> list[Spec]:
        """Every job once, each after those that it needs."""
        return jobs_once(self.branches)


def jobs_once(branches: Sequence[Branch]) -> list[Spec]:
    """Every job of these cells once, each after those that it needs."""
    found: dict[str, Spec] = {}
    for branch in branches:
        for job in branch.jobs:
            found.setdefault(job.name, job)
    return list(found.values())
