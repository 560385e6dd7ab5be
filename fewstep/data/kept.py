"""What is made once of a data set and kept: its digest and the like beside its files, its decoded levels in a private cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewstep.assets import user_folder
from fewstep.files import MARK, UMASK, beginning, write_atomic

MADE = ("decoded", "facts", "images", "streams")  # folders of the cache
VERSION = 1  # of what is kept and how it is computed: raised when either changes


def _root(own: str, base: str, usual: str) -> Path | None:
    """`user_folder`; None for a user without a home, which is not made for them."""
    home = Path(os.path.expanduser("~"))
    known = os.environ.get(own) or os.environ.get(base) or (home.is_absolute() and home.is_dir())
    return user_folder(own, base, usual).absolute() if known else None


def _cache_root() -> Path | None:
    return _root("FEWSTEP_CACHE", "XDG_CACHE_HOME", ".cache")


def _private(root: Path | None, names: tuple[str, ...]) -> Path | None:
    """A folder that is made where it is not there; None where it cannot be, or others may write to it."""
    if root is None:
        return None
    folder = root.joinpath(*names)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = root.stat()
        if sys.platform != "win32" and (found.st_uid != os.getuid() or found.st_mode & 0o022):
            return None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def cache_folder(*names: str) -> Path | None:
    """A private folder of this user below $FEWSTEP_CACHE (default $XDG_CACHE_HOME/fewstep, ~/.cache/fewstep), which is made where it is not
    there; None where it cannot be, or others may write to it. What lies there can be made again."""
    return _private(_cache_root(), names)


def state_folder(*names: str) -> Path | None:
    """The same below $FEWSTEP_STATE (default $XDG_STATE_HOME/fewstep, ~/.local/state/fewstep), for the little that cannot be made again."""
    return _private(_root("FEWSTEP_STATE", "XDG_STATE_HOME", ".local/state"), names)


def cached() -> list[Path]:
    """The folders of the cache with what is made again of files that are here: one for each decoded set and stream, and one of facts."""
    root = _cache_root()
    found = list[Path]()
    for top in (root / name for name in MADE if (root / name).is_dir()) if root is not None else ():
        inside = sorted(top.iterdir())
        found += [path for path in inside if path.is_dir()] or ([top] if inside else [])
    return found


def forget(folder: Path) -> None:
    """Remove a folder of the cache, but for what another process is writing there now."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and MARK not in path.name:
            path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def text_digest(*told: object) -> str:
    """SHA-256 of values as Python writes them."""
    return hashlib.sha256(repr(told).encode()).hexdigest()


def stamp_of(files: Sequence[Path]) -> str:
    """Names, sizes and times of files, as one digest: another one says that what was made of them may be stale."""
    found = [(file.parent.name, file.name, state.st_size, state.st_mtime_ns) for file in files for state in [file.stat()]]
    return text_digest(VERSION, found)


@dataclass(frozen=True, eq=False)
class Kept:
    """Facts of the data set that `stamp` identifies, in the first of some files (`places`) that can be written.

    `about` are the arrays that they were computed of: a set with others in their place has other facts.
    """

    stamp: str
    places: tuple[Path, ...]
    about: tuple[object, ...] = ()

    def _read(self) -> dict[str, str]:
        for place in self.places:
            with suppress(OSError, ValueError):
                found = json.loads(place.read_bytes())
                if isinstance(found, dict) and found.get("stamp") == self.stamp and isinstance(found.get("facts"), dict):
                    return found["facts"]
        return {}

    def of(self, name: str, compute: Callable[[], str]) -> str:
        """The fact of that name, computed at the first time. Where no place can be written it is computed at every time."""
        known = self._read().get(name)
        value = compute() if known is None else known
        if known is None:
            facts = {**self._read(), name: value}  # which another process may have added to meanwhile
            for place in self.places:
                with suppress(OSError):
                    write_atomic(place, json.dumps({"stamp": self.stamp, "facts": facts}, indent=1, sort_keys=True).encode())
                    break
        return value


def mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The uint8 array in an .npy file as a memory map; None where there is none of this shape."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if isinstance(found, np.ndarray) and found.dtype == np.uint8 and found.shape == shape else None


def spool(path: Path, shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Write blocks of uint8 that make up an array of `shape` to an .npy file, which appears whole or not at all, and map it."""
    with beginning(path.parent, path.name) as held:
        np.lib.format.write_array_header_1_0(held.file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for block in blocks:
            held.file.write(np.ascontiguousarray(block, np.uint8).data)
        held.file.flush()
        os.fsync(held.file.fileno())
        os.chmod(held.path, 0o600 & ~UMASK)
        os.replace(held.path, path)
    found = mapped(path, shape)
    if found is None:
        raise OSError(None, "is not what was written", str(path))
    return found
