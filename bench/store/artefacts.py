"""Artefacts by address: files that appear whole or not at all, with checksums, atomic writes and one lock per job. Imports no torch.

results/.store/<kind>/<hash>/   an artefact: its files and record.json, moved into place whole
results/.store/locks/           one file lock per job
results/<suite>/runs.jsonl      rows, one per (cell, metric); tables are derived from them
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bench.store.addresses import seal
from bench.store.world import ALONE, World
from fewstep.errors import UsageError
from fewstep.files import UMASK, beginning, clean, file_digest, making, write_atomic

RECORD = "record.json"


def seconds_taken(record: Mapping[str, Any]) -> float | None:
    """The seconds that making an artefact took, as its record says. Older ones of fits have them under another name, or by phase from the
    start; other old ones do not tell."""
    told = record.get("seconds", record.get("train_seconds"))
    if isinstance(told, Mapping):
        told = max(told.values(), default=None)
    return float(told) if isinstance(told, int | float) else None


class Store:
    """A results folder. Several processes may use one at the same time. `world` are those that do the job at hand together."""

    def __init__(self, results: Path) -> None:
        self.results, self.world = results, ALONE
        self.root = results / ".store"
        try:
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            with beginning(self.root, "probe") as probe:
                locked = probe.locked
        except OSError as err:
            raise UsageError(f"results folder {results} cannot be written ({err.strerror}); give another with results=PATH") from None
        if not locked:
            raise UsageError(f"results folder {results} is on a file system without file locks; give another with results=PATH")

    def path(self, kind: str, key: str) -> Path:
        return self.root / kind / key

    def lock(self, kind: str, key: str) -> FileLock:
        """The lock of one job. It is released when its holder dies."""
        return FileLock(self.root / "locks" / f"{kind}-{key}.lock")

    def held(self, kind: str, key: str) -> AbstractContextManager[Any]:
        """The lock of a job while it is done: held by the first of the processes that do it together."""
        return self.lock(kind, key) if self.world.first else nullcontext()

    @contextmanager
    def shared(self, world: World) -> Iterator[None]:
        """While the block runs, these processes do what it does together."""
        before, self.world = self.world, world
        try:
            yield
        finally:
            self.world = before

    def has(self, kind: str, key: str) -> bool:
        """Whether a finished artefact is there (its folder appears whole or not at all)."""
        return (self.path(kind, key) / RECORD).exists()

    def record(self, kind: str, key: str) -> dict[str, Any]:
        """The record of an artefact alone: its files are not looked at. **Raises**: ValueError when it was changed after it was written."""
        folder = self.path(kind, key)
        record = json.loads((folder / RECORD).read_text())
        if not isinstance(record, dict) or record.get("checksum") != seal(record)["checksum"]:
            raise ValueError(f"{folder}/record.json does not match its checksum")
        return record

    def read(self, kind: str, key: str) -> dict[str, Any]:
        """The record of an artefact. **Raises**: ValueError when the record or one of its files was changed after it was written."""
        folder, record = self.path(kind, key), self.record(kind, key)
        for name, wanted in record["files"].items():
            if not (folder / name).exists() or file_digest(folder / name) != wanted:
                raise ValueError(f"{folder}/{name} does not match its record")
        return record

    def write(self, kind: str, key: str, fill: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Make an artefact: `fill(folder)` writes files and returns the record; the folder is then moved into place.

        The `seconds` of the record are those of `fill`, unless it knows better: of what went on where an earlier process had left it.
        """
        with making(self.root) as temp:
            started = time.monotonic()
            body = fill(temp)
            return self.adopt(kind, key, temp, {"seconds": round(time.monotonic() - started, 3), **body})

    def adopt(self, kind: str, key: str, folder: Path, body: dict[str, Any]) -> dict[str, Any]:
        """Make an artefact of a folder that lies in the store, whose files are all there: write its record and move it into place."""
        files = {p.name: file_digest(p) for p in sorted(folder.iterdir()) if p.name != RECORD}
        record = seal({**body, "files": files})
        for name in files:
            with open(folder / name, "rb") as f:
                os.fsync(f.fileno())
        write_atomic(folder / RECORD, json.dumps(record, indent=1, sort_keys=True).encode())
        os.chmod(folder, 0o777 & ~UMASK)
        (self.root / kind).mkdir(parents=True, exist_ok=True)
        os.replace(folder, self.path(kind, key))
        return record

    def set_aside(self, kind: str, key: str) -> Path:
        """Move a corrupt artefact out of the way, keeping it."""
        target = Path(tempfile.mkdtemp(dir=self.root, prefix=f"corrupt-{kind}-{key}-"))
        os.replace(self.path(kind, key), target)
        return target

    def ensure(self, kind: str, key: str, fill: Callable[[Path], dict[str, Any]], say: Callable[[str], None]) -> dict[str, Any]:
        """The record of an artefact, made by one process while others wait. A changed artefact is reported, set aside and made again.

        Of processes that do it together each calls `fill`, and what the first leaves is kept.
        """
        with self.held(kind, key):
            record = self.world.told(lambda: self._sound(kind, key, say))
            if record is not None:
                return record
            if self.world.first:
                made = self.write(kind, key, fill)
            else:
                with making(self.root) as temp:
                    made = fill(temp)
            return self.world.told(lambda: made)

    def _sound(self, kind: str, key: str, say: Callable[[str], None]) -> dict[str, Any] | None:
        """The record of an artefact that is there and as it was written; None of one that is not, which is set aside."""
        if self.path(kind, key).exists():
            try:
                return self.read(kind, key)
            except (ValueError, KeyError, TypeError, FileNotFoundError) as err:
                say(f"corrupt artefact: {err}; set aside in {self.set_aside(kind, key)} and made again")
        return None

    def try_lock(self, kind: str, key: str) -> FileLock | None:
        """The job's lock, acquired, or None when another process holds it."""
        lock = self.lock(kind, key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        return lock

    def clean_leavings(self) -> None:
        """Remove half-made artefacts and half-written files whose maker is dead (see `fewstep.files.clean`)."""
        clean(self.results)
