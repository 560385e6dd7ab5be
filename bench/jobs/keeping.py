"""What a sweep leaves in the store: of its samples what `keep` says, once nothing of it needs them any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench.evaluate.measuring import features_key
from bench.jobs.graph import Sweep
from bench.jobs.resolve import Job
from bench.space.keeping import let_go
from bench.store.cell import Cell

Jobs = Sequence[tuple[Cell, Job | None]]


def needs_of(sweep: Sweep, jobs: Jobs) -> set[str]:
    """The addresses of the samples and solutions that a sweep makes or reads."""
    return {sweep.key(cell, job) for cell, job in jobs} | {truth.key for truth in sweep.truths.values()}


def shared_keys(sweep: Sweep, jobs: Jobs) -> set[str]:
    """The addresses of samples that several cells have, or that others are compared with."""
    times = Counter(sweep.key(cell, job) for cell, job in jobs if job is not None)
    return {key for key, count in times.items() if count > 1} | {truth.key for truth in sweep.truths.values()}


def tidy(sweep: Sweep, keys: set[str], keep: str, own: Path | None) -> None:
    """Leave of the samples of these addresses what `keep` says (see `bench.space.keeping.let_go`)."""
    for key in sorted(keys) if keep != "samples" else ():
        let_go(sweep.store, key, keep, [features_key(key, extractor) for extractor in sweep.judge.extractors.values()], own)


def made_keys(sweep: Sweep, jobs: Jobs) -> set[str]:
    """The addresses of all samples of a sweep, and of the solutions that they are compared with."""
    return {sweep.key(cell, job) for cell, job in jobs if job is not None} | {truth.key for truth in sweep.truths.values()}
