"""The bytes of a fetched file, after a look at what it is: a page in place of a file, and one that is empty, are said to be so."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from fewstep.assets import held
from fewstep.errors import UsageError

PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")
POINTER = b"version https://git-lfs"  # what a repository holds in place of a large file
BROKEN = (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError, ValueError)  # what archives raise
AGAIN = "delete it and get it again from its publisher"


def check_head(path: Path, head: bytes) -> None:
    """**Raises**: UsageError for the first bytes of something that a server gave in place of the file."""
    start = head.lstrip()[:64].lower()
    if not head:
        raise UsageError(f"{path} is empty; {AGAIN}")
    if start.startswith(PAGES):
        raise UsageError(f"{path} is a web page and not the file (an error of the server, or a page to confirm the download); {AGAIN}")
    if start.startswith(POINTER):
        raise UsageError(f"{path} is a pointer of git-lfs and not the file; get the file itself from its publisher")


def opened(path: Path) -> bytes:
    """All of a file. **Raises**: UsageError for one that cannot be read, is empty, or is a web page."""
    try:
        data = path.read_bytes()
    except OSError as err:
        raise UsageError(f"{path} cannot be read ({err.strerror or err}); {AGAIN}") from None
    check_head(path, data[:1024])
    return data


def check_file(path: Path) -> None:
    """`opened` without reading the whole. **Raises**: as it does."""
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError as err:
        raise UsageError(f"{path} cannot be read ({err.strerror or err}); {AGAIN}") from None
    check_head(path, head)


def most_bytes(size: int) -> int:
    """How much may come out of a file of `size` bytes: weights do not shrink to half, and what unpacks to more is a bomb."""
    return 2 * size + 2**20


def check_unpacked(archive: zipfile.ZipFile, size: int, what: str) -> None:
    """**Raises**: UsageError for an archive of `size` bytes that says it unpacks to far more."""
    if sum(info.file_size for info in archive.infolist()) > most_bytes(size):
        raise UsageError(f"{what} unpacks to far more than its size; {AGAIN}")


def check_held(name: str, digest: str, what: str) -> None:
    """Whether a file of a published name is the published one, as far as its digest is known. **Raises**: UsageError."""
    published = held(name)
    if published and digest != published:
        found = f"has SHA-256 {digest[:12]}..., and the published {name} has {published[:12]}..."
        raise UsageError(f"{what} {found}; {AGAIN}, or give another file another name")
