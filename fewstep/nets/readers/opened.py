"""The bytes of a fetched file, after a look at what it is: a page in place of a file, and one that is empty, are said to be so."""

from __future__ import annotations

from pathlib import Path

from fewstep.errors import UsageError

PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")
POINTER = b"version https://git-lfs"  # what a repository holds in place of a large file
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
