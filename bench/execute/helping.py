"""Processes beside this one, which end when it does. Imports no torch."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

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
