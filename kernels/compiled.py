"""numba's compiler, with its cache on disk where there is a place for one and without it where there is none."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import wraps
from typing import Any

from numba import njit  # pyright: ignore[reportPrivateImportUsage]


def _has_place(file: str) -> bool:
    """Whether numba may look for a folder. Without a home it would make one that is named `~`, in the working directory."""
    named = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    return bool(named) or os.path.isabs(os.path.expanduser("~")) or os.access(os.path.dirname(file), os.W_OK)


def _forgiving(use: Callable[..., Any]) -> Callable[..., Any]:
    """A use of the cache that gives None where it fails: for want of space or permission, or because a file is damaged."""

    @wraps(use)
    def used(*args: Any) -> Any:
        try:
            return use(*args)
        except Exception:  # whatever a damaged pickle raises; what is not cached is compiled
            return None

    return used


def compiled(function: Callable[..., Any], inline: str = "never") -> Any:
    """The function compiled by numba, to run without the interpreter's lock.

    The cache spares a later process the seconds that compiling takes; a read-only installation, a home that cannot be written or a full
    disk cost those seconds and nothing else.
    """
    options = {"nogil": True, "error_model": "numpy", "inline": inline}
    if not _has_place(inspect.getfile(function)):
        return njit(**options)(function)
    try:
        made = njit(cache=True, **options)(function)
    except (RuntimeError, OSError):  # no place that can be written
        return njit(**options)(function)
    cache = made._cache  # pyright: ignore[reportAttributeAccessIssue] (of what numba returns in fact)
    cache.load_overload, cache.save_overload = _forgiving(cache.load_overload), _forgiving(cache.save_overload)
    return made
