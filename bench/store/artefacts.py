"""The results folder: content-addressed artefacts, rows with checksums, atomic writes and one lock per job. Imports no torch.

results/.store/<kind>/<hash>/   an artefact: its files and record.json, moved into place whole
results/.store/locks/           one file lock per job
results/<suite>/runs.jsonl      rows, one per (cell, metric); tables are derived from them
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fewstep.errors import UsageError
from fewstep.files import UMASK, beginning, clean, file_digest, making, write_atomic

Row = dict[str, Any]


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(value: Any) -> str:
    """The first 16 hex digits of the SHA-256 of the canonical JSON: the address of a spec, and the checksum of a record."""
    return hashlib.sha256(canonical(value)).hexdigest()[:16]


@dataclass(frozen=True)
class Corrupt:
    """A line of runs.jsonl that is no valid row: where it stood and what is wrong with it."""

    line: int
    reason: str
    text: str


def seal(row: Row) -> Row:
    """The row with its checksum."""
    body = {k: v for k, v in row.items() if k != "checksum"}
    return {**body, "checksum": digest(body)}


def parse_rows(text: str, first: int = 1) -> tuple[list[Row], list[Corrupt]]:
    """Valid rows in order, and the lines that are not JSON or whose checksum is wrong; the text begins at line `first` of its file."""
    rows: list[Row] = []
    corrupt: list[Corrupt] = []
    for number, line in enumerate(text.split("\n"), start=first):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            sound = isinstance(row, dict) and row.get("checksum") == seal(row)["checksum"]
        except ValueError as err:
            corrupt.append(Corrupt(number, f"it is not valid JSON ({err})", line))
            continue
        if sound:
            rows.append(row)
        else:
            corrupt.append(Corrupt(number, "its checksum does not match", line))
    return rows, corrupt


def read_rows(path: Path) -> tuple[list[Row], list[Corrupt]]:
    """Rows of a runs.jsonl, or of a packed runs.jsonl.xz; none when the file is not there.

    **Raises**: UsageError for a packed file that is damaged: unlike a torn line, nothing after the damage can be read.
    """
    try:
        data = path.read_bytes()
        return parse_rows((lzma.decompress(data) if path.suffix == ".xz" else data).decode(errors="replace"))
    except FileNotFoundError:
        return [], []
    except lzma.LZMAError as err:
        raise UsageError(f"{path} is damaged ({err}); restore it, or measure again with python -m bench.sweep") from None


SCHEMA = 2  # of rows: raised when a field changes its meaning; rows without the field are of schema 1
CELL_FAILED = "cell"  # the metric name of a row that records why a whole cell has none
COORDINATES = ("model", "method", "solver", "options", "grid", "end", "afs", "guidance", "nfe", "loss", "wrap")
COORDINATES += ("variant", "fit_seed", "seed", "cohort", "metric")
NONE = {"fit_seed": 0}  # what a row that lacks a field means; others mean an empty text


def coordinates(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row measures and under which conditions, whatever the versions: two rows with equal coordinates are an old and a new
    measurement."""
    return tuple(row.get(name, NONE.get(name, "")) for name in COORDINATES)


def current(rows: Iterable[Row]) -> list[Row]:
    """The last row of each coordinates, in order of first appearance."""
    latest: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        latest[coordinates(row)] = row
    return list(latest.values())


AnyRow = Mapping[str, Any]


def _of_newest(rows: Sequence[AnyRow], group: Callable[[AnyRow], Any], made: Callable[[AnyRow], Any]) -> list[AnyRow]:
    """Of each group, the rows that were made as its last recorded row was."""
    last: dict[Any, AnyRow] = {}
    for row in rows:
        if group(row) not in last or row["date"] >= last[group(row)]["date"]:
            last[group(row)] = row
    return [row for row in rows if made(row) == made(last[group(row)])]


def _up_to_date(rows: Sequence[AnyRow]) -> list[AnyRow]:
    """The rows without those that name a component in another version than the last recorded row with that component."""
    last: dict[str, AnyRow] = {}
    for row in rows:
        for name in row.get("components", {}):
            if name not in last or row["date"] >= last[name]["date"]:
                last[name] = row
    now = {name: row["components"][name] for name, row in last.items()}
    return [row for row in rows if all(now[name] == version for name, version in row.get("components", {}).items())]


def newest(rows: Iterable[AnyRow]) -> list[AnyRow]:
    """The rows without those that later ones supersede: of an earlier schema where there are current ones, with an earlier version of one
    of their components (a model's weights, a solver, a network, a metric ...), on earlier samples of a cell (a failure to make new ones
    counts), or on a student trained in another way than the last recorded one of its model, method, variant and loss."""

    def student(row: AnyRow) -> tuple[Any, ...]:
        return row["model"], row["method"], row.get("variant", ""), row["loss"]

    found = list(rows)
    latest = max((row.get("schema", 1) for row in found), default=SCHEMA)
    kept = _up_to_date([row for row in found if row.get("schema", 1) == latest])
    kept = _of_newest(kept, lambda row: row["model"], lambda row: row["protocol"].get("model_digest"))
    kept = _of_newest(kept, lambda row: coordinates({**row, "metric": ""}), lambda row: row["key"])
    return _of_newest(kept, student, lambda row: row["protocol"].get("recipe"))


class Store:
    """A results folder. Several processes may use one at the same time."""

    def __init__(self, results: Path) -> None:
        self.results = results
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

    def has(self, kind: str, key: str) -> bool:
        """Whether a finished artefact is there (its folder appears whole or not at all)."""
        return (self.path(kind, key) / "record.json").exists()

    def read(self, kind: str, key: str) -> dict[str, Any]:
        """The record of an artefact. **Raises**: ValueError when the record or one of its files was changed after it was written."""
        folder = self.path(kind, key)
        record = json.loads((folder / "record.json").read_text())
        if not isinstance(record, dict) or record.get("checksum") != seal(record)["checksum"]:
            raise ValueError(f"{folder}/record.json does not match its checksum")
        for name, wanted in record["files"].items():
            if not (folder / name).exists() or file_digest(folder / name) != wanted:
                raise ValueError(f"{folder}/{name} does not match its record")
        return record

    def write(self, kind: str, key: str, fill: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Make an artefact: `fill(folder)` writes files and returns the record; the folder is then moved into place."""
        parent = self.root / kind
        parent.mkdir(parents=True, exist_ok=True)
        with making(self.root) as temp:
            body = fill(temp)
            files = {p.name: file_digest(p) for p in sorted(temp.iterdir())}
            record = seal({**body, "files": files})
            for name in files:
                with open(temp / name, "rb") as f:
                    os.fsync(f.fileno())
            write_atomic(temp / "record.json", json.dumps(record, indent=1, sort_keys=True).encode())
            os.chmod(temp, 0o777 & ~UMASK)
            os.replace(temp, parent / key)
        return record

    def set_aside(self, kind: str, key: str) -> Path:
        """Move a corrupt artefact out of the way, keeping it."""
        target = Path(tempfile.mkdtemp(dir=self.root, prefix=f"corrupt-{kind}-{key}-"))
        os.replace(self.path(kind, key), target)
        return target

    def ensure(self, kind: str, key: str, fill: Callable[[Path], dict[str, Any]], say: Callable[[str], None]) -> dict[str, Any]:
        """The record of an artefact, made by one process while others wait. A changed artefact is reported, set aside and made again."""
        with self.lock(kind, key):
            if self.path(kind, key).exists():
                try:
                    return self.read(kind, key)
                except (ValueError, KeyError, TypeError, FileNotFoundError) as err:
                    say(f"corrupt artefact: {err}; set aside in {self.set_aside(kind, key)} and made again")
            return self.write(kind, key, fill)

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


class Rows:
    """The runs.jsonl of one suite, shared by processes under a lock: new rows are appended, a row that replaces one rewrites the file."""

    def __init__(self, store: Store, suite: str, say: Callable[[str], None]) -> None:
        self.say = say
        self.folder = store.results / suite
        self.path = self.folder / "runs.jsonl"
        self._lock = store.lock("rows", suite)
        self._seen: tuple[bytes, list[Row], list[Corrupt]] = b"", [], []  # what the file held, and its rows

    def _load(self) -> tuple[list[Row], list[Corrupt]]:
        """Rows and corrupt lines; only what was added to the file since the last time is parsed."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return [], []
        seen, rows, corrupt = self._seen
        if not (seen.endswith(b"\n") and data.startswith(seen)):
            seen, rows, corrupt = b"", [], []
        more, bad = parse_rows(data[len(seen) :].decode(errors="replace"), seen.count(b"\n") + 1)
        self._seen = data, [*rows, *more], [*corrupt, *bad]
        return list(self._seen[1]), self._seen[2]

    def read(self) -> list[Row]:
        """The valid rows."""
        with self._lock:
            return self._load()[0]

    def repair(self) -> list[Row]:
        """The valid rows. Lines that are none are reported with their number and moved to runs.corrupt.jsonl."""
        with self._lock:
            rows, corrupt = self._load()
            for bad in corrupt:
                self.say(f"corrupt record: {self.path} line {bad.line}: {bad.reason}; set aside in runs.corrupt.jsonl, measured again")
            if corrupt:
                aside = self.folder / "runs.corrupt.jsonl"
                kept = aside.read_text() if aside.exists() else ""
                write_atomic(aside, (kept + "".join(c.text + "\n" for c in corrupt)).encode(errors="replace"))
                self._write(rows)
        return rows

    def add(self, new: list[Row]) -> list[Row]:
        """Add rows; one with the coordinates of an old row takes its place, and a cell's recorded failure goes when it is measured.

        Returns all rows.
        """
        measured = {coordinates({**row, "metric": CELL_FAILED}) for row in new if row["metric"] != CELL_FAILED}
        with self._lock:
            before, sealed = self.repair(), [seal(row) for row in new]
            replaced = measured | {coordinates(row) for row in sealed}
            if self.path.exists() and not any(coordinates(row) in replaced for row in before):
                self._append(before, sealed)
                return [*before, *sealed]
            rows = current([*(row for row in before if coordinates(row) not in measured), *sealed])
            self._write(rows)
        return rows

    def _append(self, before: list[Row], new: list[Row]) -> None:
        """One write at the end of the file; after a write that a dying disk cut short, the whole file is written anew."""
        text = _lines(new)
        with open(self.path, "rb+") as f:
            end = f.seek(0, os.SEEK_END)
            whole = end == 0 or (f.seek(end - 1) >= 0 and f.read(1) == b"\n")
            if whole:
                f.write(text)
                f.flush()
                os.fsync(f.fileno())
        if whole:
            self._seen = self._seen[0] + text, [*before, *new], []
        else:
            self._write([*before, *new])

    def _write(self, rows: list[Row]) -> None:
        text = _lines(rows)
        write_atomic(self.path, text)
        self._seen = text, list(rows), []


def _lines(rows: Iterable[Row]) -> bytes:
    return b"".join(json.dumps(row, sort_keys=True).encode() + b"\n" for row in rows)
