"""How long work shows what it does: lines for whoever waits, and progress bars. On stderr."""

from __future__ import annotations

import sys
from typing import Any


def say(message: str) -> None:
    """A line for the person who waits, on stderr."""
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)


def bar_settings(shown: bool = True) -> dict[str, Any]:
    """How progress bars look: gone when done, and a line every ten seconds where the output is no terminal."""
    watched = sys.stderr.isatty()
    return {"disable": not shown, "leave": False, "mininterval": 0.2 if watched else 10.0, "delay": 0.0 if watched else 10.0}
