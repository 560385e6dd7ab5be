"""Where fetched files lie, and what each has to be: of its published digest, or of the one that it had when it came from its publisher."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from fewstep.assets import FOLDER, File, Piece, cache_root, fetched_folder, places, record_of, recorded, shown
from fewstep.data.kept import cache_folder
from fewstep.errors import UsageError
from fewstep.files import UMASK, write_atomic

PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head", b"{")  # what stands at the beginning of a page or of an error that a server sends
MAGIC = {  # how files of these suffixes begin
    ".gz": (b"\x1f\x8b",),
    ".tgz": (b"\x1f\x8b",),
    ".zip": (b"PK",),
    ".npz": (b"PK",),
    ".pt": (b"PK", b"\x80"),
    ".pth": (b"PK", b"\x80"),
    ".pkl": (b"\x80",),
}
TEXTS = (".json",)


class Refused(Exception):
    """Why a file is not what it should be, without its name."""


@dataclass(frozen=True)
class Here:
    """A file that is on this machine: the SHA-256 that it has and is held to, empty where nobody says what it has to be; or why it cannot
    be used."""

    path: Path
    digest: str
    wrong: str = ""


def landing() -> Path:
    """The private folder of fetched files. **Raises**: UsageError where there can be none."""
    folder = cache_folder(FOLDER)
    if folder is None:
        what = f"{shown(cache_root())} cannot be written, or others may write there"
        raise UsageError(f"{what}; name a folder of your own for fetched files: FEWSTEP_CACHE=DIR")
    return folder


def _hold(name: str, digest: str, source: str) -> None:
    told = {"sha256": digest, "source": source}
    write_atomic(record_of(name), (json.dumps(told, indent=1) + "\n").encode())


def _beginning(path: Path, name: str) -> None:
    """**Raises**: Refused for a page in place of the file, and for a file that begins as none of its kind does."""
    with open(path, "rb") as file:
        first = file.read(64)
    suffix = Path(name).suffix
    if first.lstrip().lower().startswith(PAGE) and suffix not in TEXTS:
        raise Refused("is a web page or a message, not the file")
    if suffix in MAGIC and not first.startswith(MAGIC[suffix]):
        raise Refused(f"does not begin as a {suffix} file does")


def _digest(path: Path, algorithm: str = "sha256") -> str:
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, algorithm).hexdigest()


def checked(path: Path, file: File) -> str:
    """The SHA-256 of a file that is what it should be, as far as its publisher says or as it came from there; empty where neither tells.

    **Raises**: Refused, saying what differs.
    """
    _beginning(path, file.name)
    size = path.stat().st_size
    if file.size and size != file.size:
        raise Refused(f"has {size:,} bytes, expected {file.size:,}")
    if file.md5 and not file.sha256 and (told := _digest(path, "md5")) != file.md5:
        raise Refused(f"has MD5 {told[:12]}..., expected {file.md5[:12]}...")
    known = file.sha256 or recorded(file.name)
    if known and (digest := _digest(path)) != known:
        first = "" if file.sha256 else f" as it first came from its publisher; delete {shown(record_of(file.name))} if it was changed there"
        raise Refused(f"has SHA-256 {digest[:12]}..., expected {known[:12]}...{first}")
    return known


def take_in(part: Path, file: File, folder: Path, source: str, whole: bool = True) -> Path:
    """Verify a file that came from `source`, and move it to its name. Of a `whole` one whose digest nobody publishes it is recorded, so
    that the file is held to it from then on. **Raises**: Refused."""
    if not checked(part, file) and whole:
        _hold(file.name, _digest(part), source)
    with open(part, "rb") as opened:
        os.fsync(opened.fileno())
    os.chmod(part, 0o600 & ~UMASK)
    os.replace(part, folder / file.name)
    return folder / file.name


def found(piece: Piece) -> Here | None:
    """The piece's file on this machine: the first that is as it should be, else one that is not, else nothing. Reads all of it."""
    wrong = None
    for file in piece.files:
        for path in (place / file.name for place in places()):
            if not path.is_file():
                continue
            try:
                return Here(path, checked(path, file))
            except Refused as err:
                wrong = wrong or Here(path, "", str(err))
    return wrong


def present(piece: Piece) -> bool:
    """Whether there is a file of the piece, without reading it: one that was fetched and is of another size counts for nothing."""
    return any(_sized(place / file.name, file, place == fetched_folder()) for file in piece.files for place in places())


def _sized(path: Path, file: File, fetched: bool) -> bool:
    return path.is_file() and not (fetched and file.size and path.stat().st_size != file.size)
