"""Which artefacts may go, and their going. Imports no torch."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from safetensors import SafetensorError

from bench.space.claims import Claim, changing, claims
from bench.space.keeping import keep_shown, remove
from bench.space.usage import CACHE, CORRUPT, UNFINISHED, Artefact, Needed, needed, rows_stamp
from bench.store.artefacts import Store
from bench.store.parts import SAMPLES, TRUTH
from fewstep.data.kept import forget
from fewstep.errors import UsageError, near_misses

KINDS = (SAMPLES, TRUTH, "features", "shown", "unfinished", "fit", "training", "study", "reference", "shared", "asked", CORRUPT, CACHE)
CHEAP = KINDS[:5]  # what goes without being named: it is made again by sampling
UNNAMED = ("fit", "reference", "shared")  # what an unfinished sweep may need without being able to say so
ALWAYS = ("fit", "shown")  # of which nothing goes that rows refer to, named or not
LENGTHS = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


@dataclass(frozen=True)
class Wanted:
    """What is to go: artefacts of `kind` (empty: those that no row refers to), `older` than so many seconds (0: of any age), or what
    `keep` leaves of samples; `stopped`: also what sweeps need that were stopped before they were done."""

    kind: str = ""
    older: float = 0.0
    keep: str = ""
    stopped: bool = False

    def chooses(self, artefact: Artefact, now: float) -> bool:
        """Whether an artefact is meant, whoever may need it."""
        if now - artefact.made < self.older:
            return False
        if artefact.suites and artefact.kind in ALWAYS:
            return False
        if self.keep:
            return artefact.kind in (SAMPLES, TRUTH) or (self.keep == "none" and artefact.kind == "features")
        if self.kind:
            return artefact.kind == self.kind
        return artefact.kind in CHEAP and (bool(self.older) or not artefact.suites)


def seconds_of(text: str) -> float:
    """The seconds of `30d`, `12h` or `2w`; 0 of nothing. **Raises**: UsageError for anything else."""
    if not text:
        return 0.0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text)
    if found is None:
        raise UsageError(f"older is a number of hours, days or weeks, got '{text}'; e.g. older=30d")
    return float(found[1]) * LENGTHS[found[2]]


def check_kind(kind: str) -> None:
    """**Raises**: UsageError for a kind that the store does not have."""
    if kind and kind not in KINDS:
        raise UsageError(f"unknown kind of artefact '{kind}'{near_misses(kind, KINDS)}; e.g. kind=samples")


def kept_back(artefact: Artefact, unfinished: Sequence[Claim], stopped: bool) -> Claim | None:
    """The unfinished sweep that needs an artefact; of fits, checkpoints and parts it needs all (of features of real images, too), as
    it cannot name them beforehand."""
    for claim in unfinished:
        if (claim.alive or not stopped) and (artefact.kind in (*UNNAMED, *UNFINISHED) or claim.wants(artefact.of)):
            return claim
    return None


def prune(store: Store, found: Sequence[Artefact], wanted: Wanted, dry: bool) -> tuple[list[Artefact], list[tuple[Artefact, str]]]:
    """What went (or would go, when `dry`), and what was left of what was meant, each with the reason.

    Samples that rows refer to leave a few 8-bit images for display.
    """
    went: list[Artefact] = []
    left: list[tuple[Artefact, str]] = []
    now, rows, stamp = time.time(), Needed({}, {}), None
    for artefact in found:
        if not wanted.chooses(artefact, now):
            continue
        with changing(store):  # one at a time, so that a sweep that begins now need not wait for all
            claim = kept_back(artefact, claims(store), wanted.stopped)
            if stamp != (stamp := rows_stamp(store.results)):  # after the claims: a sweep gives up its own when all of its rows are there
                rows = needed(store)
            artefact = replace(artefact, suites=rows.by(artefact.kind, artefact.of, artefact.spec))
            if not wanted.chooses(artefact, now):
                continue
            if claim is not None:
                left.append((artefact, f"{claim.label} needs them"))
            elif dry or _gone(store, artefact):
                went.append(artefact)
            else:
                left.append((artefact, "another process is at them"))
    return went, left


def _gone(store: Store, artefact: Artefact) -> bool:
    if artefact.kind == CACHE:
        forget(artefact.folder)
        return not artefact.folder.exists()
    if artefact.kind == CORRUPT:
        shutil.rmtree(artefact.folder, ignore_errors=True)
        return True
    if artefact.kind in UNFINISHED:
        kind, _, key = artefact.key.rpartition("-")
        lock = store.try_lock(kind or "fit", key)
        if lock is None:
            return False
        shutil.rmtree(artefact.folder, ignore_errors=True)
        lock.release()
        return True
    if artefact.kind == SAMPLES and artefact.suites:
        with suppress(
            OSError, SafetensorError, ValueError, FloatingPointError
        ):  # a full disk is what this is for; damaged ones show nothing
            keep_shown(store, artefact.key)
    return remove(store, artefact.kind, artefact.key)
