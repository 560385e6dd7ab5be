"""Gzipped tar archives, whose checksum is asked before anything of them is used."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Member = Callable[[str], bytes]
BROKEN = (OSError, EOFError, KeyError, ValueError, tarfile.TarError, zlib.error)  # what damaged bytes lead to
CHUNK = 1 << 20


@contextmanager
def members(file: Path) -> Iterator[Member]:
    """What gives the bytes of a member by its name. **Raises**: one of BROKEN for an archive that is truncated or altered.

    A gzip file says at its end what it should have held, which readers of single members never come to.
    """
    with gzip.open(file) as whole:
        while whole.read(CHUNK):
            pass
    with tarfile.open(file, "r:gz") as opened:

        def read(name: str) -> bytes:
            member = opened.extractfile(name)
            if member is None:
                raise KeyError(f"no file {name}")
            return member.read()

        yield read
