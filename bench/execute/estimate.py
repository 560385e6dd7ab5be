"""What a sweep will do, and about how long it will take on this machine."""

from __future__ import annotations

from bench.evaluate import timing
from bench.execute.prepare import Work
from bench.jobs.fits.fit import Fit
from bench.jobs.fits.teachers import teacher_fit
from fewstep.plugins import known
from metrics import declared, metric_named


def dry_run(work: Work) -> None:
    """Print every job with its NFE and whether it is cached, and an estimate from a measured network pass."""
    sweep, jobs, pending, skipped = work.sweep, work.jobs, work.pending, work.skipped
    per_pass = timing.seconds_per_pass(sweep.model.teacher, sweep.device, sweep.batch)
    for reason in dict.fromkeys(skipped):
        print(f"skipped {reason}")
    to_do = {cell for cell, _, _ in pending}
    seconds, sampled = 0.0, set[str]()  # cells that are the same at few steps share their samples
    for cell, job in jobs:
        key = sweep.key(cell, job)
        idle = (
            job is None or cell not in to_do or key in sampled or sweep.store.has("samples", key)
        )  # samples may be gone when all is measured
        own = 0.0 if idle else per_pass * cell.nfe * sweep.suite.samples
        seconds += own + ((1.0 if "timing" in cell.metrics else 0.1) if cell in to_do else 0.0)
        sampled.add(key)
        print(f"{'to do ' if cell in to_do else 'cached'}  {cell.label}  {f'about {own:.1f} s' if own else ''}".rstrip())
    if any(declared(metric_named(n)).needs_teacher for _, _, names in pending for n in names if known("metric", n)):
        for own in sweep.truths.values():
            seconds += 0 if own.done(sweep.store) else per_pass * own.evals * sweep.suite.samples
            print(f"{'cached' if own.done(sweep.store) else 'to do '}  fine-grid solution {own.label}")
    first = teacher_fit(sweep.model)
    fits: dict[str, Fit] = {} if first is None else {first.key(sweep.model): first}
    fits |= {f.key(sweep.model): f for _, j in jobs if j for f in j.fits}
    for key, fit in fits.items():
        if sweep.store.has("fit", key):
            print(f"cached  fit {fit.label}")
    costs = [f.estimates(sweep.model, sweep.device) for key, f in fits.items() if not sweep.store.has("fit", key)]
    for key, (text, own) in {k: v for found in costs for k, v in found.items()}.items():
        if not sweep.store.has("fit", key):
            seconds += own
            print(f"to do   fit {text}")
    print(f"{len(jobs)} cells, {len(pending)} to do, about {seconds / 60:.1f} minutes on this machine")
