"""What the store holds: how large each artefact is, what it costs to make again, and who needs it. Imports no torch."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.store.artefacts import RECORD, Store
from bench.store.parts import SAMPLES
from bench.store.rows import read_rows
from fewstep.files import MAKING

APART = ("locks", "sweeps")  # folders of the store that hold no artefacts
UNFINISHED = ("unfinished", "training")  # of parts of samples, and of checkpoints
CORRUPT = "corrupt"
FOLLOWING = ("features", "shown")  # which belong to samples


@dataclass(frozen=True)
class Artefact:
    """A folder of the store. `made` is in seconds since 1970, `suites` are those with rows that refer to it, `of` is the address of the
    samples that it belongs to, or its own; `cost` says what it takes to make it again."""

    kind: str
    key: str
    folder: Path
    size: int
    made: float
    of: str
    cost: str
    suites: tuple[str, ...]


def size_of(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


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
    if isinstance(record.get("train_seconds"), dict):
        told.append(f"{lasting(max(record['train_seconds'].values(), default=0.0))} of training")
    elif isinstance(record.get("seconds"), int | float):
        told.append(lasting(record["seconds"]))
    return ", ".join(told) or ("its samples" if kind in FOLLOWING else "not recorded")


def references(results: Path) -> tuple[dict[str, set[str]], list[Mapping[str, Any]]]:
    """The suites whose rows refer to each address, and all rows of the results folder."""
    found, everything = defaultdict[str, set[str]](set), list[Mapping[str, Any]]()
    for path in sorted(results.glob("*/runs.jsonl")) + sorted(results.glob("*/runs.jsonl.xz")):
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


def artefacts(store: Store, kinds: Iterable[str] = ()) -> list[Artefact]:
    """Everything in the store, or what is of these kinds, the largest first."""
    suites, rows = references(store.results)
    solved = defaultdict[tuple[Any, ...], set[str]](set)
    for row in rows:
        if row["protocol"].get("teacher_solution"):
            solved[_conditions(row)].add(row["suite"])
    records: list[tuple[str, Path, dict[str, Any]]] = []
    for folder in sorted(path for path in store.root.iterdir() if path.is_dir() and not path.name.startswith(MAKING)):
        if folder.name.startswith(f"{CORRUPT}-"):
            records.append((CORRUPT, folder, {}))
        elif folder.name not in APART:
            records += [(folder.name, path, _record(path)) for path in sorted(folder.iterdir()) if path.is_dir()]
    for kind, path, record in records:  # fits that others were made of
        if kind == "fit" and path.name in suites:
            for key in (v for v in record.get("spec", {}).values() if isinstance(v, str)):
                suites[key] |= suites[path.name]
    chosen, found = set(kinds), []
    for kind, path, record in records:
        if chosen and kind not in chosen:
            continue
        spec = record.get("spec", {})
        of = str(spec.get("samples", path.name)) if kind in FOLLOWING else path.name.removeprefix(f"{SAMPLES}-")
        of = str(spec.get("reference", of))  # of features of real images: the digest that rows state
        who = set(suites.get(of, ()))
        if kind == "truth":
            who |= solved.get(tuple(spec.get(name) for name in ("model", "guidance", "noise", "seed", "count")), set())
        made = (path / RECORD if record else path).stat().st_mtime
        found.append(Artefact(kind, path.name, path, size_of(path), made, of, cost_of(kind, record), tuple(sorted(who))))
    return sorted(found, key=lambda a: (-a.size, a.kind, a.key))


def _record(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):  # unfinished, or damaged
        return {}
    return found if isinstance(found, dict) else {}
