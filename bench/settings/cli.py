"""What every entry point shares: one-line errors, exit codes, and help."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from bench.settings.compose import configure, groups_of
from bench.settings.files import CONF, choices, text_of
from bench.settings.limits import check_settings
from fewstep.errors import Terminated, Unavailable, UsageError, one_line
from fewstep.files import full_disk
from fewstep.progress import say


def _help(name: str, doc: str) -> str:
    listing = "\n".join(f"  {group}: {', '.join(choices(group))}" for group in groups_of(name))
    return f"{doc.strip()}\n\nfields and defaults (override with key=value):\n\n{text_of(CONF / f'{name}.yaml')}\n{listing}"


def _streams() -> None:
    """Output that can be written to, whatever the locale and whatever the caller closed: names and tables are not all ASCII."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open as long as the process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _closed_pipe() -> int:
    """Whoever read the output has ended (`| head`): so does this, with the exit code of the signal for it, and nothing more to say."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # Python writes what is left when it ends
            os.dup2(null, stream.fileno())
    return 128 + signal.SIGPIPE


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that it can leave everything whole, unless this process answers it otherwise."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if mine:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _heard() -> Iterator[None]:
    """A signal that came in the middle of a callback, whose exceptions Python only prints, is raised again a moment later."""
    alarm, before, lost = getattr(signal, "SIGALRM", None), sys.unraisablehook, list[type[BaseException]]()
    if alarm is None or threading.current_thread() is not threading.main_thread() or signal.getsignal(alarm) != signal.SIG_DFL:
        yield
        return

    def again(number: int, frame: FrameType | None) -> None:
        raise lost.pop()

    def hook(told: sys.UnraisableHookArgs) -> None:
        if issubclass(told.exc_type, KeyboardInterrupt):
            lost.append(told.exc_type)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
        else:
            before(told)

    signal.signal(alarm, again)
    sys.unraisablehook = hook
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(alarm, signal.SIG_DFL)
        sys.unraisablehook = before


def guarded(run: Callable[[], int], hint: str = "give another path with results= or out=") -> int:
    """The exit code of `run`: 2 and one line for bad input, 130 for Ctrl-C, 143 for SIGTERM, its own otherwise;
    `hint` is for files that cannot be used."""
    _streams()
    try:
        with _terminable(), _heard():
            code = run()
        sys.stdout.flush()
        return code
    except (UsageError, Unavailable) as err:
        message, code = f"error: {err}", 2
    except Terminated:
        message, code = "terminated: finished work is kept; run the same command to go on", 128 + signal.SIGTERM
    except KeyboardInterrupt:
        message, code = "interrupted: finished work is kept; run the same command to go on", 130
    except BrokenPipeError:
        return _closed_pipe()
    except OSError as err:
        message, code = f"error: {err.filename or 'a file'} cannot be used ({err.strerror or err}); {hint}", 2
        if full_disk(err):
            message = "error: no space left on the device; finished work is kept; free some space and run the same command to go on"
    try:
        say(one_line(message))
    except BrokenPipeError:
        return _closed_pipe()
    return code


def entry(name: str, doc: str, run: Callable[[dict[str, Any]], int], args: Sequence[str] | None = None) -> int:
    """Run an entry point with its configuration (see `guarded`)."""
    args = list(sys.argv[1:] if args is None else args)

    def whole() -> int:
        if {"-h", "--help"} & set(args):
            print(_help(name, doc))
            return 0
        config = configure(name, args)
        check_settings(config)
        return run(config)

    return guarded(whole)
