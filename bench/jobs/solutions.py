"""What samples are compared with: the probability flow's own end points from the same noise and labels, solved finely, once per sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from bench.evaluate import exact_flow as exact
from bench.jobs.models import Model
from bench.jobs.resolve import Job, drawn, options_of, resolve
from bench.jobs.samples import Bound, ensure_samples
from bench.jobs.suite import EXACT, Suite, solver_group
from bench.store.addresses import digest
from bench.store.artefacts import Store
from bench.store.cell import TEACHER, Cell
from bench.store.parts import SAMPLES, TRUTH, Notes, Parted, ensure_parts, stored
from fewstep.data.arrays import PART, PART_BYTES, Images, part_size
from fewstep.errors import UsageError, near_misses
from fewstep.guidance import guide
from fewstep.halving import Halving, fewest
from fewstep.progress import counting_bar
from fewstep.sampling.draw import SAMPLER_VERSION, start

SOLUTIONS = "solutions"  # what the files of those begin with that are no samples


class Truth(Protocol):
    """Fine-grid solutions of one model under one guidance."""

    @property
    def key(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def evals(self) -> int: ...
    def done(self, store: Store) -> bool: ...
    def ensure(self, store: Store, device: str, batch: int, say: Callable[[str], None]) -> tuple[Images, float | None]:
        """Images [N, *shape] and their own RMS error, where it is known."""
        ...

    def protocol(self) -> dict[str, Any]: ...
    def made(self, store: Store) -> dict[str, Any]:
        """`protocol`, with the `batch` that it was made in where that had to be smaller than was asked for."""
        ...

    def components(self) -> dict[str, Any]:
        """The versions of what made them, by name."""
        ...


@dataclass(frozen=True, eq=False)
class Sampled:
    """A cell of the same sweep, on a grid so fine that 8-bit images do not tell it from the flow: dpmpp_2m, polynomial, to sigma_min.

    On digits 100 steps agree with 400 steps of heun to 57 dB after the 8-bit write-out; heun itself needs 240 passes for that.
    """

    model: Model
    job: Job
    options: str = ""  # of its solver, those that are not the default

    @property
    def key(self) -> str:
        return self.job.key

    @property
    def label(self) -> str:
        return self.job.cell.label

    @property
    def evals(self) -> int:
        return self.job.cell.nfe

    def done(self, store: Store) -> bool:
        return store.has(SAMPLES, self.key)

    def ensure(self, store: Store, device: str, batch: int, say: Callable[[str], None]) -> tuple[Images, float | None]:
        return ensure_samples(Bound(self.job, self.model, store, device), batch, say).images, None

    def protocol(self) -> dict[str, Any]:
        told = {"options": self.options} if self.options else {}
        return {"solver": self.job.cell.solver, **told, "grid": self.job.cell.grid, "steps": self.job.steps, "artifact": self.key}

    def made(self, store: Store) -> dict[str, Any]:
        return self.protocol() | _batch(store.record(SAMPLES, self.key))

    def components(self) -> dict[str, Any]:
        return {f"solver {self.job.cell.solver}": self.job.solver.version}


@dataclass(frozen=True, eq=False)
class Solved:
    """The flow by a method that is no contestant, with an estimate of its own error (`bench.evaluate.exact_flow`)."""

    model: Model
    suite: Suite
    guidance: float

    def _spec(self) -> dict[str, Any]:
        own = {"model": self.model.digest, "range": list(self.model.teacher.sigma_range), "guidance": self.guidance}
        return {**own, "sampler_version": SAMPLER_VERSION, **drawn(self.suite), **self.protocol()}

    @property
    def key(self) -> str:
        return digest(self._spec())

    def _closed(self) -> bool:
        return exact.in_closed_form(guide(self.model.teacher, self.guidance))

    @property
    def label(self) -> str:
        how = "in closed form" if self._closed() else f"Runge-Kutta in {2 * self.suite.reference_steps} steps"
        return f"the exact flow, guidance {self.guidance:g}, {how}"

    @property
    def evals(self) -> int:
        return 0 if self._closed() else 4 * 3 * self.suite.reference_steps * (1 if self.guidance == 1 else 2)

    def done(self, store: Store) -> bool:
        return store.has(TRUTH, self.key)

    def ensure(self, store: Store, device: str, batch: int, say: Callable[[str], None]) -> tuple[Images, float | None]:
        denoiser, count = guide(self.model.teacher, self.guidance), self.suite.samples
        at_once = Halving(batch, device, self.label, say, "batch={}")

        def solved(seeds: torch.Tensor, first: int, size: int) -> tuple[np.ndarray, float]:
            images, squares, shown = [], 0.0, bar(first)
            for part in seeds.split(size):
                own = start(self.suite.noise, part, denoiser, denoiser.sigma_range[1], self.model.task)
                solution = exact.solve(denoiser, own.x, own.cond, self.suite.reference_steps)
                images.append(self.model.task.pixels(solution.images).cpu().numpy())
                squares += len(part) * solution.error**2
                shown.update(len(part))
            return np.concatenate(images), squares

        def make(first: int, last: int) -> tuple[dict[str, np.ndarray], Notes]:
            seeds = torch.arange(self.suite.seed + first, self.suite.seed + last, device=device)
            images, squares = at_once.of(len(seeds), partial(solved, seeds, first))
            return {"images": images}, {"squares": squares, **at_once.notes}

        def record(notes: Sequence[Notes]) -> dict[str, Any]:
            error = float(np.sqrt(sum(note["squares"] for note in notes) / count))
            return {"spec": self._spec(), "error": error, **fewest(notes)}

        with counting_bar(count, self.label) as bar:
            made = ensure_parts(
                store, TRUTH, self.key, Parted(SOLUTIONS, count, part_size(denoiser.shape, PART // 2, PART_BYTES // 2), make, record), say
            )
        return stored(store.path(TRUTH, self.key), SOLUTIONS, "images"), made["error"]

    def protocol(self) -> dict[str, Any]:
        if self._closed():
            return {"solver": "closed_form", "version": exact.VERSION}
        return {"solver": "runge_kutta", "grid": "logsnr", "steps": 2 * self.suite.reference_steps, "version": exact.VERSION}

    def made(self, store: Store) -> dict[str, Any]:
        return self.protocol() | _batch(store.record(TRUTH, self.key))

    def components(self) -> dict[str, Any]:
        return {"exact flow": exact.VERSION}


def _batch(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("batch",) if name in record}


def truth_of(suite: Suite, guidance: float, model: Model) -> Truth:
    """What the suite's cells under this guidance are compared with, as its `reference` says.

    **Raises**: UsageError for a reference that is no solver of the flow.
    """
    if suite.reference != EXACT and suite.reference not in (known := solver_group("flow")):
        raise UsageError(
            f"suite.reference is {EXACT} or a solver of the flow, got '{suite.reference}'{near_misses(suite.reference, known)}"
        )
    if suite.reference == EXACT:
        return Solved(model, suite, guidance)
    passes = suite.reference_steps * (1 if guidance == 1 else 2)
    cell = Cell(TEACHER, suite.reference, "polynomial", "sigma_min", nfe=passes, guidance=guidance)
    return Sampled(model, resolve(cell, suite, model), options_of(cell, suite))
