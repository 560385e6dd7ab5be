"""The departures that solvers with declared defects are known to have, run by run: a defect must not hide another mistake.

    python -m bench.certificate.checks.pins       records them anew in defects.json, after a change of such a solver that is meant

The file holds, for every declared defect of a solver of this package, the departures of each run of its check, level by level and in units
of the state: of the transport from x_0 = c + sigma_max and from x_0 = c, or of mean and standard deviation. 0 is what rounding explains.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from bench.certificate.checks.transport import spread, transported
from bench.certificate.finding import Departure, Pins
from fewstep.plugins import entries
from methods.solver import Solver, draft

DEFECTS = Path(__file__).parents[1] / "defects.json"
MEASURES = {"transport": transported, "variance": spread}


@cache
def _recorded() -> Mapping[str, Pins]:
    return json.loads(DEFECTS.read_text(encoding="utf-8"))


def pinned(name: str) -> Pins:
    """What is recorded of the solver registered under a name; nothing of a plugin's."""
    return _recorded().get(name, {})


def _size(departure: Departure) -> float:
    return float(f"{departure.gone:.5g}") if departure.beyond() else 0


def measured(solver: Solver) -> dict[str, Any]:
    """What there is to record of a solver: check -> grid -> end -> steps -> departures."""
    found: dict[str, Any] = {}
    for defect in solver.claims.defects:
        ends = found.setdefault(defect.check, {}).setdefault(defect.grid, {})
        for run in MEASURES[defect.check](solver, defect.grid):
            ends.setdefault(run.end, {})[str(run.steps)] = [_size(d) for d in run.departures]
    return found


def everything() -> dict[str, Any]:
    """`measured` of every solver of this package that declares a defect."""
    own = {name: entry for name, entry in entries("solver").items() if entry.cls.__module__.startswith("methods.")}
    found = {name: measured(draft(entry.make())) for name, entry in own.items()}
    return {name: of for name, of in found.items() if of}


def as_text(recorded: Mapping[str, Any]) -> str:
    """JSON with one line for a solver, check, grid and end."""

    def nested(value: Mapping[str, Any], depth: int) -> str:
        if depth == 4:
            return json.dumps(value)
        rows = [f"{' ' * (depth + 1)}{json.dumps(key)}: {nested(of, depth + 1)}" for key, of in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + " " * depth + "}"

    return nested(recorded, 0) + "\n"


def main() -> None:
    """Record everything anew."""
    DEFECTS.write_text(as_text(everything()), encoding="utf-8")


if __name__ == "__main__":
    main()
