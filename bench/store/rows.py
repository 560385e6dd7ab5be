"""Rows: one line of runs.jsonl for each metric of each cell, with checksums, and the file that processes share."""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.store.addresses import Row, digest, seal
from bench.store.artefacts import Store
from bench.store.cell import AXES, DEFAULTS
from fewstep.errors import UsageError
from fewstep.files import write_atomic


@dataclass(frozen=True)
class Corrupt:
    """A line of runs.jsonl that is no valid row: where it stood and what is wrong with it."""

    line: int
    reason: str
    text: str


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
COORDINATES = ("model", *AXES, "options", "seed", "cohort")
# Conditions that all rows of a cell share; others belong to one metric.
OF_CELLS = ("schema", "budget", "samples", "seed", "noise", "dtype")


def cell_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The coordinates of a row's cell: what was sampled and under which conditions."""
    return tuple(row.get(name, DEFAULTS.get(name, "")) for name in COORDINATES)


def coordinates(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row measures and under which conditions, those of its metric alone among them, whatever the versions: two rows with equal
    coordinates are an old and a new measurement."""
    own = {name: value for name, value in row.get("conditions", {}).items() if name not in OF_CELLS}
    return (*cell_of(row), row["metric"], digest(own) if own else "")


def failed_cell(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The coordinates of the row that says why the whole cell of a row has failed."""
    return (*cell_of(row), CELL_FAILED, "")


def current(rows: Iterable[Row]) -> list[Row]:
    """The last row of each coordinates, in order of first appearance."""
    latest: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        latest[coordinates(row)] = row
    return list(latest.values())


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
        measured = {failed_cell(row) for row in new if row["metric"] != CELL_FAILED}
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
