"""Cohorts: rows that were measured alike. Only rows of one cohort are ranked against each other. Imports no torch.

A row's `conditions` are everything that was chosen and can move its number, and that is no part of what was measured (its coordinates:
model, method, solver and its options, grid, ...): how many samples, from which seed, with which noise and dtype; for some metrics more,
such as the solution they compare with, or the machine of a timing. `cohort` is the digest of those that every metric of its cell has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.store.addresses import canonical
from bench.store.rows import OF_CELLS, SCHEMA

Row = Mapping[str, Any]
CALLED = {"dtype": "state"}  # of conditions in words; a cell has a `dtype`, too, which is what its networks compute in


def conditions_of(row: Row) -> dict[str, Any]:
    """A row's conditions. Of one from before they were recorded what else it says: its schema, the seed of its first sample, the noise,
    and, where its metric was measured on all of a cell's samples (a timing was not), how many."""
    if "conditions" in row:
        return dict(row["conditions"])
    protocol = row.get("protocol") or {}
    counted = {} if "machine" in protocol or not row.get("samples") else {"samples": row["samples"]}
    noise = {} if row.get("method") == "naive" or "noise" not in protocol else {"noise": protocol["noise"]}
    return {"schema": row.get("schema", SCHEMA - 1), **counted, "seed": row.get("seed", 0), **noise}


@dataclass(frozen=True)
class Cohort:
    """Rows measured alike, in the order in which they were recorded, and their conditions: of those of single metrics every value."""

    conditions: Mapping[str, tuple[str, ...]]
    rows: tuple[Row, ...]

    @property
    def text(self) -> str:
        """The conditions of its cells, in words."""
        own = {name: values[0] for name, values in self.conditions.items() if name in OF_CELLS}
        parts = [f"{int(own['samples']):,} samples"] if "samples" in own else ["samples not recorded"]
        return ", ".join([*parts, *(f"{CALLED.get(name, name)} {own[name]}" for name in OF_CELLS if name in own and name != "samples")])

    def apart(self, other: Cohort) -> str:
        """The conditions that differ from another cohort's, as `name: own values against the other's`."""
        names = [name for name in (*OF_CELLS, *self.conditions) if name in self.conditions and name in other.conditions]
        told = [(name, *(" or ".join(c.conditions[name]) for c in (self, other))) for name in dict.fromkeys(names)]
        differing = [f"{name}: {mine} against {theirs}" for name, mine, theirs in told if mine != theirs]
        return "; ".join(differing) or "which conditions one of them had is not recorded"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return str(value)


def _cohort(rows: Sequence[Row]) -> Cohort:
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        for name, value in conditions_of(row).items():
            found.setdefault(name, {})[_shown(value)] = None
    return Cohort({name: tuple(values) for name, values in found.items()}, tuple(rows))


def _kinds(found: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The conditions that no others include, those that most rows have first: what says less agrees with each that includes it."""
    counts, kinds = Counter(map(canonical, found)), dict[bytes, Mapping[str, Any]]()
    for one in sorted(found, key=len, reverse=True):
        if not any(one.items() <= kind.items() for kind in kinds.values()):
            kinds[canonical(one)] = one
    return sorted(kinds.values(), key=lambda kind: -counts[canonical(kind)])


def _of_cells(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows grouped by the conditions of their cells; one with fewer of them (real images have no noise) joins each group that it agrees
    with."""
    own = [{name: value for name, value in conditions_of(row).items() if name in OF_CELLS} for row in rows]
    return [[row for row, one in zip(rows, own) if one.items() <= kind.items()] for kind in _kinds(own)]


def _of_metrics(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of one group parted where one metric was measured in several ways: first the way that most of its rows have, then the next.
    A row with fewer conditions (real images are compared with no solution) joins each part that it agrees with."""
    whole = [{name: value for name, value in conditions_of(row).items() if name not in OF_CELLS} for row in rows]
    ways = {metric: _kinds([way for row, way in zip(rows, whole) if row["metric"] == metric]) for metric in {r["metric"] for r in rows}}

    def in_part(row: Row, way: Mapping[str, Any], i: int) -> bool:
        return i < len(ways[row["metric"]]) and way.items() <= ways[row["metric"]][i].items()

    return [[row for row, way in zip(rows, whole) if in_part(row, way, i)] for i in range(max(map(len, ways.values()), default=0))]


def cohorts(rows: Sequence[Row]) -> list[Cohort]:
    """The cohorts of rows, that with most rows first; a row without an own noise stands in each that it agrees with."""
    found = [_cohort(part) for group in _of_cells(rows) for part in _of_metrics(group)]
    return sorted(found, key=lambda cohort: -len(cohort.rows))


def apart(found: Sequence[Cohort]) -> list[str]:
    """One line for each cohort behind the first: how many rows it has, and what sets it apart from that one."""
    return [
        f"cohort {i}: {len(c.rows)} rows are not comparable with the {len(found[0].rows)} of cohort 1 ({c.apart(found[0])})"
        for i, c in enumerate(found[1:], start=2)
    ]


def stated(rows: Sequence[Row]) -> str:
    """A sentence with the conditions that the cells of one cohort share; empty without rows."""
    return f"Every cell: {cohorts(rows)[0].text}." if rows else ""


def in_markdown(heading: str, note: str) -> str:
    """The title of one cohort's part of a Markdown page."""
    return f"# {heading}\n\n" + (f"{note}\n\n" if note else "")


def by_cohort(found: Sequence[Cohort], text: Callable[[Sequence[Row]], str], title: Callable[[str, str], str] = in_markdown) -> str:
    """A text made of each cohort's rows alone: of one cohort as it is, of several each under a `title(heading, what sets it apart)`.
    Empty where no cohort has a text."""
    if len(found) < 2:
        return text(found[0].rows if found else ())
    notes = ["", *(f"Not to be compared with cohort 1: {c.apart(found[0])}." for c in found[1:])]
    made = [(f"Cohort {i}: {c.text}", note, text(c.rows)) for i, (c, note) in enumerate(zip(found, notes), start=1)]
    return "\n".join(title(heading, note) + body for heading, note, body in made if body)
