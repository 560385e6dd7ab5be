"""Stored pairs of noise and a teacher's samples: a fit that students of all seeds share."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from tqdm import tqdm

from bench.evaluate.timing import seconds_per_pass
from bench.jobs.fits.costs import Cost
from bench.jobs.fits.fit import Fit, Say, ensure_fit, starts_lower, uses
from bench.jobs.models import Model
from bench.store.addresses import digest
from bench.store.artefacts import Store
from fewstep.cond import NULL, Cond
from fewstep.data.images import ImageData
from fewstep.data.pairs import PairData, pair_seeds
from fewstep.errors import UsageError
from fewstep.files import write_atomic
from fewstep.grid import make_grid
from fewstep.plugins import get
from fewstep.progress import bar_settings
from fewstep.sampling.draw import start
from fewstep.sampling.plan import Plan
from fewstep.sampling.runner import end_of
from methods.distiller import Pairs, bounded

PAIRS, PART = "pairs.safetensors", 1000


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
        seeds, plan = pair_seeds(self.pairs.count)[first:last].to(device), self._plan(model)
        own = start("philox", seeds, model.teacher, bounded(model.teacher.sigma_range)[1], model.task)
        return end_of(plan, model.teacher, own.x, own.source, own.cond).cpu()

    def ensure(self, model: Model, store: Store, device: str, say: Say) -> dict[str, Any]:
        """The record of the pairs, made now if they are not in the store; what an interrupted run made is kept.

        **Raises**: UsageError when some are not finite.
        """

        def fill(folder: Path, work: Path) -> dict[str, Any]:
            say(f"making {self.label}")
            work.mkdir(parents=True, exist_ok=True)
            parts = []
            for first in tqdm(range(0, self.pairs.count, PART), desc="pairs", **bar_settings()):
                file = work / f"{first}.safetensors"
                if not file.exists():
                    started = time.monotonic()
                    images = self._made(model, first, first + PART, device)
                    write_atomic(file, save({"images": images, "seconds": torch.tensor(time.monotonic() - started, dtype=torch.float64)}))
                parts.append(load_file(file))
            images = torch.cat([part["images"] for part in parts])
            broken = int((~torch.isfinite(images)).flatten(1).any(1).sum())
            if broken:
                raise UsageError(f"{broken} of {self.pairs.count} of the teacher's samples are not finite; check the teacher")
            write_atomic(folder / PAIRS, save({"images": images}))
            seconds = sum(float(part["seconds"]) for part in parts)
            passes = self._plan(model).nfe(model.teacher) * self.pairs.count
            return {"spec": self.spec(model), "train_seconds": {"pairs": seconds}, "passes": {"pairs": {"teacher": passes}}}

        return ensure_fit(store, self.key(model), fill, say)

    def seconds(self, record: Mapping[str, Any], steps: int) -> float:
        return float(record["train_seconds"]["pairs"])

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
        images = load_file(store.path("fit", key) / PAIRS)["images"]
        seeds = pair_seeds(self.pairs.count)
        return PairData(seeds, images, model.task.conditions(seeds, model.teacher), key)


def probe_pairs(data: ImageData) -> PairData:
    """Stand-ins of the same shapes, for measuring what a training batch costs."""
    few = min(len(data.train_x), 256)
    cond = Cond(torch.from_numpy(data.train_y[:few])) if data.classes else NULL
    return PairData(pair_seeds(few), torch.from_numpy(data.train_x[:few]), cond, "")
