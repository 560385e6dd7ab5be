"""All checks on one solver, cheap ones first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from bench.certificate.counts import counts
from bench.certificate.finding import Certificate, Finding
from bench.certificate.levels import GRIDS
from bench.certificate.order import order, steps
from bench.certificate.parity import Variant, golden, vectors
from bench.certificate.schedulers import diffusers
from bench.certificate.transport import transport, variance
from methods.solver import Learned, Solver, draft

MEASURED = (transport, variance)  # what defects can be declared of
OWN = {"transport": transport, "variance": variance, "steps": steps, "order": order, "counts": counts}
PARITY = {"vectors": vectors, "golden": golden, "diffusers": diffusers}
CHECKS = ("defects", "transport", "variance", "vectors", "golden", "steps", "order", "diffusers", "counts")


def variants(solver: Any) -> Variant:
    """How to make `solver` with other options, and a learned one with an artefact (its stub when none is given)."""

    def make(options: Mapping[str, Any], artefact: Mapping[str, Tensor]) -> Solver:
        made = replace(solver, **options) if options else solver
        return made.bound(artefact) if artefact and isinstance(made, Learned) else draft(made)

    return make


def defects(solver: Solver) -> Iterator[Finding]:
    """Every declared defect is one of a check that measures its size, on a grid of the certificate, once."""
    known = [check.__name__ for check in MEASURED]
    seen = set()
    for defect in solver.claims.defects:
        fault = "" if defect.check in known else f"a check that measures a size is one of {', '.join(known)}"
        fault = fault or ("" if defect.grid in GRIDS else f"a grid is one of {', '.join(GRIDS)}")
        fault = fault or ("declared twice" if (defect.check, defect.grid) in seen else "")
        seen.add((defect.check, defect.grid))
        yield Finding("defects", defect.grid, "a known check", defect.check, not fault, fault or defect.why)


def _looked_at(solver: Solver, findings: list[Finding]) -> Iterator[Finding]:
    """A declared defect that no check looked at is not there."""
    seen = {(f.check, f.grid) for f in findings}
    for defect in solver.claims.defects:
        if (defect.check, defect.grid) not in seen:
            yield Finding(
                "defects", defect.grid, float(defect.size), "not measured", False, f"{defect.check} does not apply to this solver"
            )


def findings(solver: Solver, name: str = "", variant: Variant | None = None, checks: tuple[str, ...] = CHECKS) -> Iterator[Finding]:
    """The findings of all checks, cheap checks first. A check that cannot be made is a finding that fails.

    `name` is that under which published outputs are looked up; `variant` makes the solver with their options (`variants` of `solver`).
    """
    make = variant or variants(solver)
    seen: list[Finding] = []
    for check in checks:
        try:
            bound = make({}, {})
            found = defects(bound) if check == "defects" else OWN[check](bound) if check in OWN else PARITY[check](name, make)
            for finding in found:
                seen.append(finding)
                yield finding
        except Exception as err:  # whatever a plugin's plan raises is what the certificate has to say of it
            yield Finding(check, "all", "a plan that runs", type(err).__name__, False, str(err).partition("\n")[0])
    if {"transport", "variance"} <= set(checks):
        yield from _looked_at(make({}, {}), seen)


def certify(solver: Solver, name: str = "", paper: str = "", variant: Variant | None = None) -> Certificate:
    """The certificate of any solver, registered or not; of a learned one, as it is bound to its stub."""
    return Certificate(name, paper, draft(solver).claims, tuple(findings(solver, name, variant)))
