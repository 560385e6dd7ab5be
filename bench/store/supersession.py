"""Which rows later ones supersede."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.store.rows import SCHEMA, cell_of

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
    counts), or on a student trained in another way than the last recorded one of its budget, model, method, variant and loss."""

    def student(row: AnyRow) -> tuple[Any, ...]:
        budget = (row.get("conditions") or {}).get("budget", "")
        return budget, row["model"], row["method"], row.get("variant", ""), row["loss"]

    found = list(rows)
    latest = max((row.get("schema", 1) for row in found), default=SCHEMA)
    kept = _up_to_date([row for row in found if row.get("schema", 1) == latest])
    kept = _of_newest(kept, lambda row: row["model"], lambda row: row["protocol"].get("model_digest"))
    kept = _of_newest(kept, cell_of, lambda row: row["key"])
    return _of_newest(kept, student, lambda row: row["protocol"].get("recipe"))
