"""Signals that ask a training to end: noted, and answered when nothing is half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from fewstep.errors import Terminated

ENDING = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Noted:
    """The first signal that came, 0 while none did."""

    number: int = 0


@contextmanager
def noting() -> Iterator[Noted]:
    """While the block runs, Ctrl-C and SIGTERM are only noted; it reads `number`, finishes what it is at, and ends.

    Then the handlers from before are back, and what was noted is raised, also where the block failed: KeyboardInterrupt, or Terminated for
    SIGTERM. Outside of the main thread, and for signals that the process ignores (as under nohup), nothing changes.
    """
    noted = Noted()

    def note(number: int, frame: FrameType | None) -> None:
        noted.number = noted.number or number

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in ENDING if main}
    own = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    try:
        for number in own:
            signal.signal(number, note)
        yield noted
    finally:
        for number, handler in own.items():
            signal.signal(number, handler)
        if noted.number:
            raise Terminated if noted.number == signal.SIGTERM else KeyboardInterrupt
