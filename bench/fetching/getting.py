"""One piece after the other: found and verified where it is, or fetched from the first source that has it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from bench.fetching.addresses import Failed, download
from bench.fetching.folder import Here, found, landing
from bench.fetching.packages import unpacked
from fewstep.assets import File, Piece, fetched_folder, shown
from fewstep.errors import Unavailable, UsageError
from fewstep.plugins import get
from fewstep.progress import say

OFFLINE = "FEWSTEP_OFFLINE"  # set to anything but 0: nothing is fetched, by no command


def offline() -> bool:
    """Whether this environment forbids to fetch anything."""
    return os.environ.get(OFFLINE, "0") not in ("", "0")


def sized(size: int) -> str:
    """Bytes for people; empty where they are not known."""
    return f"{size / 1e6:,.1f} MB" if size else ""


def read_by_data(piece: Piece) -> str:
    """What the data set that a piece serves reads, as one text; empty where it finds nothing. **Raises**: UsageError for broken files."""
    for name in piece.serves.get("data", ()):
        with suppress(Unavailable):
            data = get("data", name).make()
            counts = f"{len(data.train_x):,} training and {len(data.heldout_x):,} held-out images"
            return f"{name}: {counts} {list(data.shape)} in {data.classes} classes, digest {data.digest()[:12]}"
    return ""


def _fetched(piece: Piece, folder: Path) -> Path:
    """**Raises**: Unavailable with one line that says why none could be had, and where to put which file by hand."""
    why = [f"offline, as {OFFLINE} says"] if offline() else list[str]()
    tries = [attempt for file in piece.files for attempt in _attempts(file, folder)]
    for attempt in () if offline() else tries:
        try:
            return attempt()
        except Failed as err:
            why.append(str(err))
    told = "; ".join(why)
    raise Unavailable(f"{piece.label}: put {files_of(piece)} into {shown(fetched_folder())}{f'; {told}' if told else ''}")


def _attempts(file: File, folder: Path) -> list[Callable[[], Path]]:
    """What may give a file: its addresses, then its package."""
    return [*(partial(download, url, file, folder) for url in file.urls), *([partial(unpacked, file, folder)] if file.package else [])]


def files_of(piece: Piece) -> str:
    """The files of which one will do, with what is known of each."""
    return ", or ".join(
        f"{file.name} ({', '.join(part for part in (sized(file.size), piece.by_hand or file.source) if part)})" for file in piece.files
    )


@contextmanager
def _alone(folder: Path, piece: Piece) -> Iterator[None]:
    """While no other process gets the same piece; one that does is waited for."""
    lock = FileLock(folder / f".{piece.label}.lock")
    if not _taken(lock):
        say(f"{piece.label}: waiting for another process that gets it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _taken(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _mended(piece: Piece, here: Here, folder: Path) -> None:
    """Remove a broken file that was fetched. **Raises**: UsageError for one that the user has put somewhere."""
    if folder not in here.path.parents:
        raise UsageError(f"{here.path} {here.wrong}; delete it or put the right one there")
    say(f"{piece.label}: {here.path.name} {here.wrong}; it is fetched again")
    here.path.unlink()


def ensure(piece: Piece) -> str:
    """What there is of a piece, as one text, after it was fetched where it was not there or broken.

    **Raises**: Unavailable where no source has it; UsageError for a broken file of the user's own, and without a folder for it.
    """
    folder = landing()
    with _alone(folder, piece):
        here = found(piece)
        if here is None and (told := read_by_data(piece)):
            return told
        if here is not None and here.wrong:
            _mended(piece, here, folder)
            here = None
        path = _fetched(piece, folder) if here is None else here.path
        told = read_by_data(piece)
    how = "verified" if here is None or here.digest else "as it is, for nobody says which digest it has to have"
    return f"{piece.label}: {shown(path)}, {how}{f'; {told}' if told else ''}"


def ensure_all(pieces: Sequence[Piece]) -> list[str]:
    """Get what can be had, and say of each what came of it; the lines of those that could not be had."""
    lacking = list[str]()
    for piece in pieces:
        try:
            say(ensure(piece))
        except (Unavailable, UsageError) as err:
            lacking.append(str(err))
            say(str(err))
    return lacking
