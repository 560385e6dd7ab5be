"""Sweeps that are not finished, running or stopped, and what they need of the store. Imports no torch.

results/.store/sweeps/<suite>-<hash>-<random>.json   what it needs, from its beginning to its end; a lock beside it is held while it runs
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from bench.store.artefacts import Store
from fewstep.files import write_atomic


@dataclass(frozen=True)
class Claim:
    """An unfinished sweep: its suite, when it began (seconds since 1970), whether its process lives, and the addresses that it needs.

    `needs` is None where it has not said yet: then it needs whatever is there.
    """

    suite: str
    since: float
    alive: bool
    needs: frozenset[str] | None

    def wants(self, key: str) -> bool:
        return self.needs is None or key in self.needs

    @property
    def label(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.since))
        return f"the sweep of suite {self.suite} that {'runs since' if self.alive else 'was stopped after it began at'} {when}"


def _folder(store: Store) -> Path:
    return store.root / "sweeps"


def changing(store: Store) -> FileLock:
    """Held by whoever begins a sweep or removes artefacts: nothing goes between the look at the claims and the removal."""
    return store.lock("sweeps", "change")


def _lives(told: Path) -> bool:
    lock = FileLock(told.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def _drop(told: Path) -> None:
    told.unlink(missing_ok=True)
    told.with_suffix(".lock").unlink(missing_ok=True)


def claims(store: Store, own: Path | None = None) -> list[Claim]:
    """The unfinished sweeps on a store, but for one's own."""
    found = []
    for path in sorted(_folder(store).glob("*.json")):
        if path == own:
            continue
        try:
            told = json.loads(path.read_text())
        except FileNotFoundError:  # it has just finished
            continue
        needs = None if told["needs"] is None else frozenset(told["needs"])
        found.append(Claim(told["suite"], told["since"], _lives(path), needs))
    return found


@dataclass(frozen=True, eq=False)
class Claiming:
    """The claim of a running sweep: where it is written down, and how to say what the sweep needs."""

    path: Path
    tell: Callable[[Iterable[str]], None]


@contextmanager
def claiming(store: Store, suite: str, identity: str) -> Iterator[Claiming]:
    """While the block runs a sweep lives here; `identity` is that of the same sweep begun again.

    A block that ends has finished its sweep, and those of the same identity that were killed. One that is stopped leaves its claim, if it
    has said what it needs, so that `prune` leaves what it would have to make again.
    """
    path = _folder(store) / f"{suite}-{identity}-{os.urandom(4).hex()}.json"
    since, told, finished = time.time(), False, False

    def write(needs: Iterable[str] | None) -> None:
        body = {"suite": suite, "since": since, "needs": None if needs is None else sorted(set(needs))}
        write_atomic(path, json.dumps(body).encode())

    lock = FileLock(path.with_suffix(".lock"))
    with changing(store):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        write(None)

    def tell(needs: Iterable[str]) -> None:
        nonlocal told
        write(needs)
        told = True

    try:
        yield Claiming(path, tell)
        finished = True
    finally:
        if finished or not told:
            _drop(path)
        lock.release()
        if finished:
            for other in path.parent.glob(f"{suite}-{identity}-*.json"):
                if not _lives(other):
                    _drop(other)
