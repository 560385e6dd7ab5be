"""Processes that share the cells of a sweep."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from bench.execute.graph import Graph
from bench.execute.here import work_through
from bench.execute.process import tune_process
from bench.jobs.session import Session
from bench.jobs.spec import read_spec
from bench.jobs.work import Branch
from bench.store.artefacts import Store
from fewstep.plugins import load_modules, register
from fewstep.progress import say

Config = Mapping[str, Any]


def _end_with_parent() -> None:
    """End this process when the one that started it does, however that ends: a killed sweep must not go on in its helpers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _quietly(target: Callable[[Config], None], config: Config) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(os.devnull, "w") as sys.stderr, suppress(KeyboardInterrupt):
        target(config)


@contextmanager
def helping(target: Callable[[Config], None], configs: Sequence[Config]) -> Iterator[None]:
    """A process for each of `configs` runs target(config) while the block runs, and it waits for them; an error in the block stops them.

    They say nothing: what they do is in the store and in the rows. One that dies leaves its locks, and so its cells, to the others.
    """
    spawn = multiprocessing.get_context("spawn")
    others = [spawn.Process(target=_quietly, args=(target, config), daemon=True) for config in configs]
    for process in others:
        process.start()
    try:
        yield
        for process in others:
            process.join()
    finally:
        for process in others:
            process.terminate()


def _help_out(config: Config) -> None:
    """Work through cells that another process reports on and finishes."""
    tune_process(config["threads"])
    load_modules(config["plugins"])  # a process that was spawned knows none
    branches = [Branch(key, tuple(read_spec(line) for line in lines)) for key, lines in config["branches"]]
    session = Session(Store(Path(config["results"])), config["device"], config["batch"], say, config["stale"])
    work_through(session, branches, lambda rows: None)


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
