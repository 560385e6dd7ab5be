"""What the store holds: how large each artefact is, what it costs to make again, and who needs it. Imports no torch."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.store.artefacts import RECORD, Store, seconds_taken
from bench.store.parts import SAMPLES, TRUTH
from bench.store.rows import read_rows
from fewstep.data import kept
from fewstep.files import MAKING

APART = ("locks", "sweeps")  # folders of the store that hold no artefacts
UNFINISHED = ("unfinished", "training")  # of parts of samples, and of checkpoints
CORRUPT = "corrupt"
CACHE = "cache"  # of decoded image folders, streams and facts of data sets, which lies elsewhere and serves all stores
FOLLOWING = ("features", "shown")  # which belong to samples


@dataclass(frozen=True)
class Artefact:
    """A folder of the store. `made` is in seconds since 1970, `suites` are those with rows that refer to it, `of` is the address of the
    samples that it belongs to, or its own; `cost` says what it takes to make it again, `spec` what it is."""

    kind: str
    key: str
    folder: Path
    size: int
    made: float
    of: str
    cost: str
    suites: tuple[str, ...]
    spec: Mapping[str, Any]


def size_of(folder: Path) -> int:
    """Bytes of all files below. Those that another process renames or removes meanwhile do not count."""
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(at, name), follow_symlinks=False).st_size
    return total


def sized(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def lasting(seconds: float) -> str:
    """A time for people."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def cost_of(kind: str, record: Mapping[str, Any]) -> str:
    """What an artefact costs to make again, as its record says: seconds, and the network passes of samples."""
    told, spec = [], record.get("spec", {})
    if "network_passes" in record and isinstance(spec.get("count"), int):
        told.append(f"{record['network_passes'] * spec['count']:,.0f} network passes")
    if (seconds := seconds_taken(record)) is not None:
        told.append(f"{lasting(seconds)} of training" if kind == "fit" else lasting(seconds))
    return ", ".join(told) or ("its samples" if kind in FOLLOWING else "not recorded")


def _row_files(results: Path) -> list[Path]:
    return sorted(results.glob("*/runs.jsonl")) + sorted(results.glob("*/runs.jsonl.xz"))


def references(results: Path) -> tuple[dict[str, set[str]], list[Mapping[str, Any]]]:
    """The suites whose rows refer to each address, and all rows of the results folder."""
    found, everything = defaultdict[str, set[str]](set), list[Mapping[str, Any]]()
    for path in _row_files(results):
        rows, _ = read_rows(path)
        everything += rows
        for row in rows:
            protocol = row.get("protocol", {})
            solution, solver = protocol.get("teacher_solution") or {}, protocol.get("solver_fit") or {}
            named = (protocol.get(name) for name in ("fit", "model_digest", "reference"))
            for key in (row.get("key"), solution.get("artifact"), solver.get("key"), *named):
                if key:
                    found[key].add(row["suite"])
    return found, everything


def _conditions(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row and the exact solution that it is compared with have in common."""
    conditions = row.get("conditions", {})
    count = conditions.get("samples", row.get("samples"))
    return (row["protocol"].get("model_digest"), float(row["guidance"]), row["protocol"].get("noise"), row["seed"], count)


def rows_stamp(results: Path) -> tuple[tuple[str, int, int], ...]:
    """What says whether there may be other rows than before: the files of them with their sizes and times."""
    found = []
    for path in _row_files(results):
        with suppress(FileNotFoundError):
            state = path.stat()
            found.append((str(path), state.st_size, state.st_mtime_ns))
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Needed:
    """Which suites have rows that refer to an artefact: by its address, and of exact solutions by what they solve."""

    keys: Mapping[str, set[str]]
    solved: Mapping[tuple[Any, ...], set[str]]

    def by(self, kind: str, of: str, spec: Mapping[str, Any]) -> tuple[str, ...]:
        own = set(self.keys.get(of, ()))
        if kind == TRUTH:
            own |= self.solved.get(tuple(spec.get(name) for name in ("model", "guidance", "noise", "seed", "count")), set())
        return tuple(sorted(own))


def needed(store: Store) -> Needed:
    """What the rows of a results folder refer to now; of fits also those that these were made of."""
    keys, rows = references(store.results)
    solved = defaultdict[tuple[Any, ...], set[str]](set)
    for row in rows:
        if row["protocol"].get("teacher_solution"):
            solved[_conditions(row)].add(row["suite"])
    new = [key for key in keys if store.has("fit", key)]
    while new:
        fit = new.pop()
        for key in (v for v in _record(store.path("fit", fit)).get("spec", {}).values() if isinstance(v, str)):
            if not keys[fit] <= keys[key]:
                keys[key] |= keys[fit]
                new.append(key)
    return Needed(keys, solved)


def artefacts(store: Store, kinds: Iterable[str] = ()) -> list[Artefact]:
    """Everything in the store, or what is of these kinds, the largest first."""
    chosen, found, rows = set(kinds), list[Artefact](), needed(store)
    for folder in sorted(path for path in store.root.iterdir() if path.is_dir() and not path.name.startswith(MAKING)):
        if folder.name in APART:
            continue
        kind = CORRUPT if folder.name.startswith(f"{CORRUPT}-") else folder.name
        if not chosen or kind in chosen:
            places = [folder] if kind == CORRUPT else sorted(path for path in folder.iterdir() if path.is_dir())
            found += [artefact for path in places if (artefact := _artefact(kind, path, rows)) is not None]
    return largest(found)


def largest(found: Iterable[Artefact]) -> list[Artefact]:
    """The largest first."""
    return sorted(found, key=lambda a: (-a.size, a.kind, a.key))


def cached() -> list[Artefact]:
    """What lies in the cache folder of this user."""
    found = []
    for folder in kept.cached():
        with suppress(FileNotFoundError):
            key, made = f"{folder.parent.name}/{folder.name}", folder.stat().st_mtime
            found.append(Artefact(CACHE, key, folder, size_of(folder), made, "", "its images read again", (), {}))
    return largest(found)


def _artefact(kind: str, path: Path, rows: Needed) -> Artefact | None:
    """A folder of the store; None where it has gone meanwhile."""
    record = {} if kind == CORRUPT else _record(path)
    spec = record.get("spec", {})
    of = str(spec.get("samples", path.name)) if kind in FOLLOWING else path.name.removeprefix(f"{SAMPLES}-")
    of = str(spec.get("reference", of))  # of features of real images: the digest that rows state
    try:
        made = (path / RECORD if record else path).stat().st_mtime
    except FileNotFoundError:
        return None
    return Artefact(kind, path.name, path, size_of(path), made, of, cost_of(kind, record), rows.by(kind, of, spec), spec)


def _record(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):  # unfinished, or damaged
        return {}
    return found if isinstance(found, dict) else {}
