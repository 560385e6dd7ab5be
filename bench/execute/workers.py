"""Processes that share the cells of a sweep."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.execute.graph import Graph
from bench.execute.helping import Config, helping
from bench.execute.here import work_through
from bench.execute.process import tune_process
from bench.jobs.session import Session
from bench.jobs.spec import read_spec
from bench.jobs.work import Branch
from bench.store.artefacts import Store
from fewstep.plugins import load_modules, register
from fewstep.progress import say


def _help_out(config: Config) -> None:
    """Work through cells that another process reports on and finishes."""
    tune_process(config["threads"])
    load_modules(config["plugins"])  # a process that was spawned knows none
    branches = [Branch(key, tuple(read_spec(line) for line in lines)) for key, lines in config["branches"]]
    session = Session(Store(Path(config["results"])), config["device"], config["batch"], say, config["stale"])
    work_through(session, branches, lambda branch, rows: None)


@register("executor", "workers", "this project")
def workers(graph: Graph) -> None:
    """Several processes on this machine, with its threads between them."""
    share = max(1, torch.get_num_threads() // len(graph.devices))
    others = graph.devices[1 : len(graph.branches)]
    torch.set_num_threads(share if others else torch.get_num_threads())
    told = [(branch.key, [job.text() for job in branch.jobs]) for branch in graph.branches]
    shared = {**graph.config, "threads": share, "stale": graph.session.stale, "branches": told}
    with helping(_help_out, [{**shared, "device": device} for device in others]):
        work_through(graph.session, graph.branches, graph.report, graph.label)
