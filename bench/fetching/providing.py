"""What a sweep does about files of others that it lacks: it says so, and gets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.fetching.getting import ensure_all, files_of, offline
from bench.fetching.wants import absent, needed
from fewstep.progress import say


def provide(config: Mapping[str, Any], fetch: bool, dry: bool) -> None:
    """Get what the suite of a sweep's configuration needs and is not here; a dry run only says what that is.

    What cannot be had is said in a line, and the sweep finds out what it can do without it. Nothing is fetched, or said, with `fetch`
    false or where the environment forbids it.
    """
    if not fetch or offline():
        return
    lacking = absent(needed(config))
    for piece in lacking if dry else ():
        say(f"would be fetched: {piece.label}: {files_of(piece)}")
    if lacking and not dry:
        say(f"not here yet: {', '.join(piece.label for piece in lacking)}; getting them now (fetch=false never does)")
        ensure_all(lacking)
