"""Files that are either whole or not there, and whose maker is known to live or to be dead."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not on Unix, where files are written all the same, and what a killed process left goes by its age
    fcntl = None

from fewstep.errors import UsageError

MARK = ".writing-"  # in the name of a file that is being written
MAKING = ".making-"  # begins the name of a folder in which an artefact is being made
LOCK = "lock"  # in such a folder: the file whose lock its maker holds
ABANDONED = 24 * 3600.0  # seconds after which something without a lock is nobody's


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def check_name(what: str, name: object, example: str) -> None:
    """**Raises**: UsageError for what cannot name a folder, or names one that is elsewhere, hidden or hard to type."""
    text = name if isinstance(name, str) else ""
    sound = text.isprintable() and text == text.strip() and not text.startswith((".", "~")) and not set(text) & set("/\\")
    if not text or not sound or len(os.fsencode(text)) > 100:
        shown = f"'{text[:40]}...'" if len(text) > 100 else repr(name)
        raise UsageError(
            f"{what} names a folder and files: 1 to 100 printable characters, no slash, no dot in front; got {shown}; e.g. {example}"
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


UMASK = _umask()


def _lock(handle: int) -> bool | None:
    """Whether this process has the file's lock now; None where the file system has none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # some file systems say the second for the first
        return False
    except OSError:
        return None
    return True


@dataclass(frozen=True, eq=False)
class Held:
    """A file that this process made: open for writing, and `locked` until it is closed, unless the file system has no locks."""

    file: BinaryIO
    path: Path
    locked: bool


def _hold(path: Path, flags: int = 0) -> Held | None:
    """A new file and its lock; None when `clean` came between the two and removed the file."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
    locked = _lock(handle)
    try:
        kept = locked is not False and os.stat(path).st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        kept = False
    if not kept:
        os.close(handle)
        return None
    return Held(os.fdopen(handle, "wb"), path, locked is True)


@contextmanager
def beginning(folder: Path, name: str) -> Iterator[Held]:
    """A new file in `folder` to be written and moved to `name`; what is not moved is removed.

    The lock is the maker's sign of life: the kernel drops it when the maker ends, however that happens, and processes in other
    containers see it, which a process id does not give. It lies on the file itself, so nothing else is left behind.
    """
    held = None
    while held is None:
        with suppress(FileExistsError):
            held = _hold(folder / f".{name[:40]}{MARK}{os.urandom(6).hex()}", os.O_EXCL)
    try:
        with held.file:
            yield held
    finally:
        held.path.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Temp file, fsync, rename: a reader sees the old file or the new one, never a part. Permissions are those of a new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with beginning(path.parent, path.name) as held:
        held.file.write(data)
        held.file.flush()
        os.fsync(held.file.fileno())
        os.chmod(held.path, 0o666 & ~UMASK)
        os.replace(held.path, path)


@contextmanager
def making(parent: Path) -> Iterator[Path]:
    """A new empty folder in which to make something, which is then moved into place; what is not moved is removed.

    It lies in a folder of its own in `parent`, beside a file whose lock is its maker's sign of life (see `beginning`).
    """
    outer = Path(tempfile.mkdtemp(dir=parent, prefix=MAKING))
    held = None
    try:
        while held is None:
            outer.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):  # `clean` removed what was not locked yet
                held = _hold(outer / LOCK)
        inner = outer / "made"
        inner.mkdir()
        yield inner
    finally:
        if held is not None:
            held.file.close()  # first, or network file systems keep the file
        shutil.rmtree(outer, ignore_errors=True)


def _untouched(path: Path) -> float:
    """Seconds since the newest of a file, or of a folder and what is in it, was changed."""
    inside = path.rglob("*") if path.is_dir() else ()
    return time.time() - max(p.stat().st_mtime for p in (path, *inside))


def _remove(path: Path, lock: Path) -> None:
    """Remove a file or folder whose maker is dead, which the free lock of `lock` shows."""
    try:
        handle = os.open(lock, os.O_RDWR)  # for writing, which network file systems ask of whoever takes a lock
    except OSError:
        handle = None  # there is none, or it is another user's
    try:
        free = None if handle is None else _lock(handle)
        if free or (free is None and _untouched(path) > ABANDONED):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    finally:
        if handle is not None:
            os.close(handle)


def clean(folder: Path) -> None:
    """Remove half-made folders and half-written files, here and below, whose maker is dead.

    Dead is whose lock is free. Where nothing tells (no lock file yet, a file system without locks, another user's files), what nobody
    has touched for a day goes: a maker writes more often than that. What cannot be removed stays.
    """
    for at, folders, names in os.walk(folder):  # which passes over folders that another process moves meanwhile
        for name in [name for name in folders if name.startswith(MAKING)]:
            with suppress(OSError):
                _remove(Path(at, name), Path(at, name, LOCK))
        for name in [name for name in names if name.startswith(".") and MARK in name]:
            with suppress(OSError):
                _remove(Path(at, name), Path(at, name))


def full_disk(err: OSError) -> bool:
    """Whether a write failed for want of space or quota."""
    return err.errno in (errno.ENOSPC, errno.EDQUOT)
