"""How long work shows what it does: lines for whoever waits, and progress bars. On stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def say(message: str) -> None:
    """A line for the person who waits, on stderr."""
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)


def bar_settings(shown: bool = True) -> dict[str, Any]:
    """How progress bars look: gone when done, and a line every ten seconds where the output is no terminal."""
    watched = sys.stderr.isatty()
    return {"disable": not shown, "leave": False, "mininterval": 0.2 if watched else 10.0, "delay": 0.0 if watched else 10.0}


@contextmanager
def counting_bar(count: int, label: str) -> Iterator[Callable[[int], Any]]:
    """A bar that appears when it is first asked for, at so many images: those that an interrupted run has made are no news."""
    from tqdm import tqdm

    bars: list[Any] = []

    def at(done: int) -> Any:
        if not bars:
            bars.append(tqdm(total=count, initial=done, desc=label, unit="img", **bar_settings()))
        bars[0].update(done - bars[0].n)
        return bars[0]

    try:
        yield at
    finally:
        for bar in bars:
            bar.close()
