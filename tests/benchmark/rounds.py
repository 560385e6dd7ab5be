"""How often a benchmark repeats, and what the machine does meanwhile."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.evaluate.timing import QUIET, foreign_load

LEAST, MOST = 3, 2000
PATIENCE_SECONDS, LOOK = 240, 0.1  # for a quiet machine, in a whole session


@functools.cache
def _looks() -> Iterator[None]:
    return iter([None] * int(PATIENCE_SECONDS / LOOK))


def wait_for_quiet() -> None:
    """Return when other processes leave the machine alone, or the session's patience is at its end."""
    for _ in _looks():
        if foreign_load(lambda: time.sleep(LOOK))[1] <= QUIET:
            return


def repeat(benchmark: Any, call: Callable[[], object], setup: Callable[[], None], seconds: float = 0.2) -> None:
    """Rounds for about so many seconds of everything, untimed work included, each after a setup; warm-up rounds before them."""
    once, started = 0.0, time.perf_counter()
    while not once or time.perf_counter() - started < seconds / 4:
        before = time.perf_counter()
        setup()
        call()
        once = time.perf_counter() - before
    rounds = min(max(int(seconds / once), LEAST), MOST)
    gc.collect()
    wait_for_quiet()
    gc.disable()
    try:
        _, load = foreign_load(lambda: benchmark.pedantic(call, setup=setup, rounds=rounds))
    finally:
        gc.enable()
    benchmark.extra_info["load"] = round(load, 3)
