"""Stored pairs of noise and a teacher's samples: a fit that students of all seeds share."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from typing import Any

import torch

from bench.evaluate.timing import seconds_per_pass
from bench.jobs.fits.costs import Cost
from bench.jobs.fits.fit import BATCH, Fit, Say, starts_lower, uses
from bench.jobs.models import Model
from bench.store.addresses import digest
from bench.store.artefacts import Store, seconds_taken
from bench.store.parts import Notes, Parted, Tensors, ensure_parts, stored
from fewstep.cond import NULL, Cond
from fewstep.data.arrays import PART
from fewstep.data.images import ImageData
from fewstep.data.pairs import FIRST, PairData, pair_seeds
from fewstep.errors import UsageError
from fewstep.grid import make_grid
from fewstep.halving import Halving, fewest
from fewstep.plugins import get
from fewstep.progress import counting_bar
from fewstep.sampling.draw import start
from fewstep.sampling.plan import Plan
from fewstep.sampling.runner import end_of
from methods.distiller import Pairs, bounded

PAIRS = "pairs"  # what their files begin with


@dataclass(frozen=True)
class TeacherPairs:
    """The samples that a teacher makes of `pair_seeds`, as float32."""

    pairs: Pairs

    @property
    def label(self) -> str:
        p = self.pairs
        return f"{p.count:,} pairs of noise and the teacher's samples in {p.steps} steps of {p.solver}"

    def _plan(self, model: Model) -> Plan:
        p = self.pairs
        return get("solver", p.solver).make().plan(make_grid(p.grid, p.steps, bounded(model.teacher.sigma_range), p.end))

    def spec(self, model: Model) -> dict[str, Any]:
        """Everything that can change the samples."""
        spec = {"pairs": vars(self.pairs), "uses": uses([self.pairs.solver]), "teacher": model.digest}
        return spec | starts_lower(bounded(model.teacher.sigma_range), model)

    def key(self, model: Model) -> str:
        return digest(self.spec(model))

    def requires(self, model: Model) -> dict[str, Fit]:
        return {}

    @torch.inference_mode()
    def _made(self, model: Model, first: int, last: int, device: str) -> torch.Tensor:
        seeds, plan = pair_seeds(first, last).to(device), self._plan(model)
        own = start("philox", seeds, model.teacher, bounded(model.teacher.sigma_range)[1], model.task)
        return end_of(plan, model.teacher, own.x, own.source, own.cond).cpu()

    def _check(self, images: torch.Tensor, first: int) -> None:
        """**Raises**: UsageError for samples that must not become targets."""
        broken = int((~torch.isfinite(images)).flatten(1).any(1).sum())
        if broken:
            where = "" if len(images) == self.pairs.count else f", numbers {first} to {first + len(images) - 1} of {self.pairs.count},"
            raise UsageError(f"{broken} of {len(images)} of the teacher's samples{where} are not finite; check the teacher")

    def ensure(self, model: Model, store: Store, device: str, say: Say, batch: int = BATCH) -> dict[str, Any]:
        """The record of the pairs, made part by part and `batch` at once if they are not in the store (see `bench.store.parts`).

        **Raises**: UsageError when some are not finite.
        """
        begin = cache(lambda: say(f"making {self.label}"))
        at_once = Halving(batch, device, self.label, say)

        def make(first: int, last: int) -> tuple[Tensors, Notes]:
            begin()
            shown = bar(first)

            def made(size: int) -> torch.Tensor:
                return torch.cat([self._made(model, at, min(at + size, last), device) for at in range(first, last, size)])

            images = at_once.of(last - first, made)
            self._check(images, first)
            shown.update(last - first)
            return {"images": images.numpy()}, at_once.notes

        def record(notes: Sequence[Notes]) -> dict[str, Any]:
            passes = self._plan(model).nfe(model.teacher) * self.pairs.count
            return {"spec": self.spec(model), "passes": {"pairs": {"teacher": passes}}, **fewest(notes)}

        key = self.key(model)
        with counting_bar(self.pairs.count, "pairs") as bar:
            found = ensure_parts(store, "fit", key, Parted(PAIRS, self.pairs.count, PART, make, record), say)
        shutil.rmtree(store.root / "training" / key, ignore_errors=True)  # where an older version began them
        return found

    def seconds(self, record: Mapping[str, Any], steps: int) -> float:
        return seconds_taken(record) or 0.0

    def estimates(self, model: Model, device: str) -> dict[str, Cost]:
        """By a pass of the teacher: its memory is that of sampling, and a pair is kept as one image."""
        passes = self._plan(model).nfe(model.teacher) * self.pairs.count
        seconds = seconds_per_pass(model.teacher, device) * passes
        return {self.key(model): Cost(f"{self.label}: about {seconds:.0f} s", seconds, disk=4 * self.pairs.count * prod(model.data.shape))}

    def load(self, model: Model, store: Store) -> PairData:
        """The pairs. **Raises**: UsageError when they were not made yet."""
        key = self.key(model)
        if not store.has("fit", key):
            raise UsageError(f"{self.label} are not in {store.root}; run the sweep, or python -m bench.train")
        return PairData(stored(store.path("fit", key), PAIRS, "images"), partial(model.task.conditions, model=model.teacher), key)


def probe_pairs(data: ImageData) -> PairData:
    """Stand-ins of the same shapes, for measuring what a training batch costs."""
    few = min(len(data.train_x), 256)
    labels = torch.from_numpy(data.train_y[:few])
    return PairData(data.train_x[:few], lambda seeds: Cond(labels[seeds - FIRST]) if data.classes else NULL, "")
