"""All checks on one solver, cheap ones first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import isfinite
from typing import Any

from torch import Tensor

from bench.certificate.checks.counts import counts
from bench.certificate.checks.order import order, steps
from bench.certificate.checks.parity import Variant, golden, vectors
from bench.certificate.checks.pins import pinned
from bench.certificate.checks.schedulers import diffusers
from bench.certificate.checks.transport import transport, variance
from bench.certificate.finding import Certificate, Finding
from bench.certificate.levels import GRIDS
from fewstep.errors import UsageError
from methods.claims import Claims, Defect
from methods.solver import Learned, Solver, draft

MEASURED = {"transport": transport, "variance": variance}  # what defects can be declared of
OWN = {"steps": steps, "order": order, "counts": counts}
PARITY = {"vectors": vectors, "golden": golden, "diffusers": diffusers}
CHECKS = ("defects", "transport", "variance", "vectors", "golden", "steps", "order", "diffusers", "counts")
KINDS = ("denoiser", "consistency", "flow_map")


def variants(solver: Any) -> Variant:
    """How to make `solver` with other options, and a learned one with an artefact (its stub when none is given)."""

    def make(options: Mapping[str, Any], artefact: Mapping[str, Tensor]) -> Solver:
        made = replace(solver, **options) if options else solver
        return made.bound(artefact) if artefact and isinstance(made, Learned) else draft(made)

    return make


def defects(solver: Solver) -> Iterator[Finding]:
    """Every declared defect is one of a check that measures its size, on a grid of the certificate, once."""
    seen = set()
    for defect in solver.claims.defects:
        fault = "" if defect.check in MEASURED else f"a check that measures a size is one of {', '.join(MEASURED)}"
        fault = fault or ("" if defect.grid in GRIDS else f"a grid is one of {', '.join(GRIDS)}")
        fault = fault or ("declared twice" if (defect.check, defect.grid) in seen else "")
        seen.add((defect.check, defect.grid))
        yield Finding("defects", defect.grid, "a known check", defect.check, not fault, fault or defect.why)


def _looked_at(solver: Solver, findings: list[Finding]) -> Iterator[Finding]:
    """A declared defect that no check looked at is not there."""
    seen = {(f.check, f.grid) for f in findings}
    for defect in draft(solver).claims.defects:
        if (defect.check, defect.grid) not in seen:
            yield Finding(
                "defects", defect.grid, float(defect.size), "not measured", False, f"{defect.check} does not apply to this solver"
            )


def _raised(check: str, expected: str, err: Exception) -> Finding:
    """What a plugin raises is what its certificate has to say of it, in one line."""
    return Finding(check, "all", expected, type(err).__name__, False, str(err).partition("\n")[0])


def _made(check: str, solver: Solver, name: str, make: Variant) -> Iterator[Finding]:
    if check == "defects":
        return defects(solver)
    if check in MEASURED:
        return MEASURED[check](solver, pinned(name))
    return OWN[check](solver) if check in OWN else PARITY[check](name, make)


def findings(solver: Solver, name: str = "", variant: Variant | None = None, checks: tuple[str, ...] = CHECKS) -> Iterator[Finding]:
    """The findings of all checks, cheap checks first. A check that cannot be made is a finding that fails.

    `name` is that under which printed outputs and recorded departures are looked up, and `solver` is what is registered there; `variant`
    makes the solver with the options of those outputs (`variants` of `solver`).
    """
    make = variant or variants(solver)
    seen: list[Finding] = []
    for check in checks:
        try:
            for finding in _made(check, make({}, {}), name, make):
                seen.append(finding)
                yield finding
        except Exception as err:
            yield _raised(check, "a plan that runs", err)
    if set(MEASURED) <= set(checks):
        yield from _looked_at(solver, seen)


def claims_of(solver: Solver) -> Claims:
    """What a solver claims. **Raises**: UsageError where it is nothing that can be checked; anything that the solver raises."""
    claims = draft(solver).claims
    if not isinstance(claims, Claims):
        raise UsageError(f"claims must be a property, or a value, of type Claims; got {type(claims).__name__}")
    orders = (claims.order, *claims.order_on.values())
    if not all(order is None or type(order) is int for order in orders):
        raise UsageError(f"orders must be integers, or None for an exact student; got {', '.join(map(str, orders))}")
    if claims.evaluates not in KINDS:
        raise UsageError(f"evaluates must be one of {', '.join(KINDS)}; got '{claims.evaluates}'")
    if not isinstance(claims.defects, tuple) or not all(isinstance(d, Defect) and isfinite(d.size) for d in claims.defects):
        raise UsageError("defects must be a tuple of Defect of finite sizes")
    if not isinstance(claims.deviations, tuple) or not all(isinstance(d, str) for d in claims.deviations):
        raise UsageError('deviations must be a tuple of sentences; of one, ("...",)')
    return claims


def refused(err: Exception, name: str = "", paper: str = "") -> Certificate:
    """The certificate of a solver that cannot be made, or cannot say what it claims: one failure."""
    return Certificate(name, paper, None, (_raised("claims", "a solver with claims", err),))


def certify(solver: Solver, name: str = "", paper: str = "", variant: Variant | None = None) -> Certificate:
    """The certificate of any solver, registered or not; of a learned one, as it is bound to its stub."""
    try:
        claims = claims_of(solver)
    except Exception as err:
        return refused(err, name, paper)
    return Certificate(name, paper, claims, tuple(findings(solver, name, variant)))
