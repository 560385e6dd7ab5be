"""What a sweep will do: about how long it will take on this machine, how much memory and disk, and what it lacks, block by block."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np

from bench.evaluate import timing
from bench.evaluate.measuring import FEATURES, features_key
from bench.evaluate.references import is_known
from bench.execute.prepare import Work
from bench.jobs.fits.fit import Fit
from bench.jobs.fits.teachers import teacher_fit
from bench.jobs.suite import Suite
from bench.store.cell import Cell
from fewstep.errors import Unavailable, UsageError
from fewstep.plugins import known
from metrics import declared, metric_named
from metrics.features.extractors import Extractor

GB, HOUR = 1e9, 3600.0
FLOAT = 4  # bytes of a pixel as it is kept
FEW = 16  # images that say how long features take


@dataclass
class Spent:
    """What one block of a suite (0: what several share) will take: seconds, bytes of memory at once, and bytes that stay on the disk."""

    cells: int = 0
    todo: int = 0
    seconds: float = 0.0
    memory: int = 0
    disk: int = 0
    what: dict[str, None] = field(default_factory=dict)

    def add(self, seconds: float, memory: int, disk: int) -> None:
        self.seconds, self.memory, self.disk = self.seconds + seconds, max(self.memory, memory), self.disk + disk


def dry_run(work: Work) -> None:
    """Print every job with its NFE and whether it is cached, what is lacking, and estimates from a measured network pass: of each block,
    and of all."""
    sweep, suite = work.sweep, work.sweep.suite
    for reason in dict.fromkeys(work.skipped):
        print(f"skipped {reason}")
    lacking(work)
    spent = {block: Spent() for block in (0, *sorted(set(work.blocks)))}
    per_pass = timing.seconds_per_pass(sweep.model.teacher, sweep.device, sweep.batch)
    _cells(work, spent, per_pass)
    _solutions(work, spent[0], per_pass)
    _features(work, spent)
    _fits(work, spent)
    _blocks(spent)
    seconds, disk = sum(own.seconds for own in spent.values()), sum(own.disk for own in spent.values())
    budget = f" under budget={suite.budget}" if suite.budget else ""
    time = f"about {seconds / 60:.1f} minutes ({seconds / HOUR:.1f} hours) on this machine"
    room = f"{max(own.memory for own in spent.values()) / GB:.1f} GB of memory, {disk / GB:.2f} GB of disk"
    print(f"{len(work.jobs)} cells{budget}, {len(work.pending)} to do, {time}, {room}; metrics come on top")


def lacking(work: Work) -> None:
    """Print what is not on this machine and will be fetched, or leaves rows without a number: one line for each file's reason."""
    asked = {name for _, _, names in work.pending for name in names}
    reasons = {reason: name for name in sorted(asked) if (reason := work.sweep.judge.absence(name))}
    for reason, name in reasons.items():
        print(f"lacking {name}: {reason}")


def without_model(suite: Suite, reason: str, built: bool = False) -> None:
    """Print what can be said of a suite whose model is not on this machine: what is lacking, and the passes of each block where no network
    of its kind can be built, of which the rest is then measured."""
    print(f"lacking {reason}")
    if built:
        print("estimated with a network of its kind and fresh weights, as if nothing of it were cached")
        return
    spent: dict[int, tuple[int, int]] = {}
    for cell, block in zip(suite.cells, suite.blocks, strict=True):
        cells, passes = spent.get(block, (0, 0))
        spent[block] = cells + 1, passes + cell.nfe
    for block, (cells, passes) in spent.items():
        own = {_who(cell): None for cell, b in zip(suite.cells, suite.blocks, strict=True) if b == block}
        print(f"block {block}: {', '.join(own)}: {cells} cells, {passes * suite.samples:,} passes to sample")
    under = f" under budget={suite.budget}" if suite.budget else ""
    print(f"{len(suite.cells)} cells{under}; hours, memory and disk are known when that is here: nothing to measure them with")


def _who(cell: Cell) -> str:
    return cell.solver if not cell.trained and cell.solver else cell.method


def _cells(work: Work, spent: Mapping[int, Spent], per_pass: float) -> None:
    """The samples of every cell; cells that are the same at few steps share theirs."""
    sweep, sampled = work.sweep, set[str]()
    shape, count = sweep.model.data.shape, sweep.suite.samples
    to_do = {cell for cell, _, _ in work.pending}
    memory = _sampling_memory(work) if to_do else 0
    for (cell, job), block in zip(work.jobs, work.blocks, strict=True):
        key, own = sweep.key(cell, job), spent[block]
        idle = job is None or cell not in to_do or key in sampled or sweep.store.has("samples", key)  # may be gone when all is measured
        seconds = 0.0 if idle else per_pass * cell.nfe * count
        own.cells, own.todo = own.cells + 1, own.todo + (cell in to_do)
        own.what[_who(cell)] = None
        beside = (1.0 if "timing" in cell.metrics else 0.1) if cell in to_do else 0.0
        own.add(seconds + beside, 0 if idle else memory, 0 if idle else FLOAT * count * prod(shape))
        sampled.add(key)
        print(f"{'to do ' if cell in to_do else 'cached'}  {cell.label}  {f'about {seconds:.1f} s' if seconds else ''}".rstrip())


def _sampling_memory(work: Work) -> int:
    """Bytes of tensors that a pass of a full batch has alive at once: measured of few images, in proportion."""
    import torch

    sweep, few = work.sweep, min(work.sweep.batch, timing.FEW)
    x = torch.zeros(few, *sweep.model.teacher.shape, device=sweep.device)
    with torch.inference_mode():
        peak = timing.peak_bytes(lambda: sweep.model.teacher(x, 1.0), sweep.device)
    return peak * sweep.batch // few


def _solutions(work: Work, shared: Spent, per_pass: float) -> None:
    """The fine-grid solutions that metrics compare with."""
    sweep = work.sweep
    if not any(declared(metric_named(n)).needs_teacher for _, _, names in work.pending for n in names if known("metric", n)):
        return
    size = FLOAT * sweep.suite.samples * prod(sweep.model.data.shape)
    for own in sweep.truths.values():
        done = own.done(sweep.store)
        shared.add(0 if done else per_pass * own.evals * sweep.suite.samples, 0, 0 if done else size)
        shared.what["the fine-grid solution"] = None
        print(f"{'cached' if done else 'to do '}  fine-grid solution {own.label}")


def _features(work: Work, spent: Mapping[int, Spent]) -> None:
    """What feature networks see, each cell's samples once and all real images once before: at a rate measured on a few of these."""
    sweep, asked = work.sweep, {cell: names for cell, _, names in work.pending}
    real, count = sweep.judge.reference, sweep.suite.samples
    metrics = {name for names in asked.values() for name in names}
    for name in sorted({wanted for n in metrics if (wanted := _extractor(n))} - set(sweep.judge.extractors)):
        print(f"unknown features of {name}: its network is not here")
    for extractor in sweep.judge.extractors_of(metrics):
        shown = real.train_x[:FEW] if len(real.train_x) else np.zeros((FEW, *sweep.model.teacher.shape), np.float32)
        rate, size = _rate(extractor, shown)
        compared = any(_extractor(name) == extractor.name and not sweep.judge.published_for(name) for name in metrics)
        images = len(real.train_x) + len(real.heldout_x) if compared and not is_known(real, extractor, sweep.store) else 0
        seen = set[str]()
        spent[0].add(rate * images, 0, size * images)
        spent[0].what |= {f"{extractor.name} of the real images": None} if images else {}
        for (cell, job), block in zip(work.jobs, work.blocks, strict=True):
            key = features_key(sweep.key(cell, job), extractor)
            if key not in seen and extractor in sweep.judge.extractors_of(asked.get(cell, ())) and not sweep.store.has(FEATURES, key):
                seen.add(key)
                spent[block].add(rate * count, 0, size * count)
        images += count * len(seen)
        if images:
            print(f"to do   features of {extractor.name}: {images:,} images at {1 / rate:.0f} a second, about {rate * images:.0f} s")


def _extractor(metric: str) -> str | None:
    """The extractor whose features a metric reads."""
    return declared(metric_named(metric)).extractor if known("metric", metric) else None


def _rate(extractor: Extractor, images: np.ndarray) -> tuple[float, int]:
    """Seconds and bytes of one image's features, the network loaded before."""
    extractor(images)
    started = time.perf_counter()
    found, _ = extractor(images)
    return max(time.perf_counter() - started, 1e-9) / len(images), found.nbytes // len(images)


def _fits(work: Work, spent: Mapping[int, Spent]) -> None:
    """Trainings, each once, of the first block that needs it; the teacher's own is shared."""
    sweep = work.sweep
    first = teacher_fit(sweep.model)
    fits: dict[str, tuple[Fit, int]] = {} if first is None else {first.key(sweep.model): (first, 0)}
    for (_, job), block in zip(work.jobs, work.blocks, strict=True):
        for fit in job.fits if job else ():
            fits.setdefault(fit.key(sweep.model), (fit, block))
    told = set[str]()
    for key, (fit, block) in fits.items():
        if sweep.store.has("fit", key):
            print(f"cached  fit {fit.label}")
            continue
        try:
            costs = fit.estimates(sweep.model, sweep.device)
        except (UsageError, Unavailable) as err:  # a method that cannot have this teacher, or needs what is not here: others go on
            print(f"refused fit {fit.label}: {err}")
            continue
        for own, cost in costs.items():
            if own not in told and not sweep.store.has("fit", own):
                spent[block].add(cost.seconds, cost.memory, cost.disk)
                print(f"to do   fit {cost.text}")
            told.add(own)


def _blocks(spent: Mapping[int, Spent]) -> None:
    """A line for each block that has something to do."""
    for block, own in spent.items():
        if own.todo or own.seconds:
            name = f"block {block}" if block else "shared"
            cells = f"{own.todo} of {own.cells} cells to do, " if own.cells else ""
            amount = f"{own.seconds / HOUR:.2f} hours, {own.memory / GB:.2f} GB of memory, {own.disk / GB:.3f} GB of disk"
            print(f"{name}: {', '.join(own.what) or 'the teacher'}: {cells}{amount}")
