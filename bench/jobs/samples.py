"""From a job to its plan, its denoiser and its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save
from torch import Tensor
from tqdm import tqdm

from bench.evaluate.timing import machine
from bench.jobs.fits.solvers import as_sampled
from bench.jobs.models import Model
from bench.jobs.resolve import Job, rounded
from bench.store.artefacts import Store
from bench.store.provenance import provenance
from fewstep.analytic import Analytic, Counting
from fewstep.denoiser import Denoiser, Preconditioned, leaf
from fewstep.files import write_atomic
from fewstep.progress import bar_settings
from fewstep.sampling.draw import sample
from fewstep.sampling.plan import Plan, with_afs

SAMPLES = "samples.safetensors"


def plan_of(job: Job, model: Model, store: Store, device: str = "cpu") -> Plan:
    """The plan of a job whose fits are done. **Raises**: UsageError when a learned solver was not fitted yet."""
    solver = job.solver if job.learned is None else job.learned.bound(model, store, device)
    plan = solver.plan(job.grid)
    return with_afs(plan) if job.cell.afs else plan


def denoiser_of(job: Job, model: Model, store: Store, device: str) -> Denoiser:
    """The teacher or the trained student, under the cell's guidance and wrapper; a closed form's own evaluations are counted."""
    base = model.teacher if job.student is None else job.student.load(model, store, job.steps, device)
    counted = Counting(base) if isinstance(base, Analytic) else base
    return as_sampled(counted, job.student, job.cell.guidance, job.cell.wrap)


@dataclass(frozen=True, eq=False)
class Bound:
    """A job whose fits are done, with what it takes to sample it, each made once: for its samples, its timings and its rows.

    **Raises**: UsageError where a fit is missing.
    """

    job: Job
    model: Model
    store: Store
    device: str

    @cached_property
    def plan(self) -> Plan:
        return plan_of(self.job, self.model, self.store, self.device)

    @cached_property
    def denoiser(self) -> Denoiser:
        return denoiser_of(self.job, self.model, self.store, self.device)

    @cached_property
    def recalling(self) -> Denoiser:
        """The same with a memory of the teacher's calls, for samples; never for latencies."""
        if self.job.student is not None:
            return self.denoiser
        return denoiser_of(self.job, replace(self.model, teacher=self.model.recalling), self.store, self.device)

    def levels(self) -> list[float | str]:
        """The noise levels of a row: the grid's; of a learned solver those that its plan evaluates (`predicted` for one each image has of
        its own) and the last."""
        if self.job.learned is None:
            return [*rounded(self.job.grid)]
        asked = (e.sigma for e in self.plan.evals)
        return ["predicted" if isinstance(sigma, str) else float(sigma) for sigma in asked] + [float(self.job.grid.sigmas[-1])]


def parameters(denoiser: Denoiser) -> int:
    """Parameters of the network under guidance and wrappers; 0 for a closed form."""
    leaf = leaf_of(denoiser)
    return sum(p.numel() for p in leaf.net.parameters()) if isinstance(leaf, Preconditioned) else 0


@contextmanager
def counted_passes(denoiser: Denoiser) -> Iterator[list[int]]:
    """Counts what the network (or the closed form) is really asked: samples of all calls, from memory or not, in a list of one."""
    seen, leaf = [0], leaf_of(denoiser)
    if isinstance(leaf, Counting):
        before = leaf.samples
        yield seen
        seen[0] = leaf.samples - before
        return

    def count(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[0] += len(inputs[0])

    handle = leaf.net.register_forward_pre_hook(count)
    try:
        yield seen
    finally:
        handle.remove()


def ensure_samples(bound: Bound, batch: int, say: Callable[[str], None]) -> dict[str, np.ndarray]:
    """The samples of a job, from the store or made now. **Raises**: FloatingPointError when some are not finite."""

    job, store, device = bound.job, bound.store, bound.device

    def fill(folder: Path) -> dict[str, Any]:
        count, first = job.spec["count"], job.spec["seed"]
        seeds = torch.arange(first, first + count, device=device)
        denoiser = bound.recalling
        with tqdm(total=count, desc=job.cell.label, unit="img", **bar_settings()) as bar, counted_passes(denoiser) as passes:
            images, labels = sample(bound.plan, denoiser, job.sigma_max, seeds, job.spec["noise"], batch, bar, bound.model.task)
        if passes[0] != job.cell.nfe * count:
            raise RuntimeError(f"the plan says NFE {job.cell.nfe}, the network was asked for {passes[0] / count:g} per image")
        broken = int((~torch.isfinite(images)).flatten(1).any(1).sum())
        if broken:
            raise FloatingPointError(f"{broken} of {count} samples are not finite")
        write_atomic(folder / SAMPLES, save({"images": images.numpy(), "labels": labels.numpy()}))
        made_on = {"device": machine(device)["device"], "torch": torch.__version__}
        own = {"made_on": made_on, "made_by": provenance()}
        return {"spec": job.spec, "first": job.cell.label, "network_passes": passes[0] / count, **own}

    store.ensure("samples", job.key, fill, say)
    return load_file(store.path("samples", job.key) / SAMPLES)


def leaf_of(denoiser: Denoiser) -> Preconditioned | Counting:
    """What is under guidance and wrappers. **Raises**: TypeError for a denoiser whose passes cannot be counted."""
    found = leaf(denoiser)
    if not isinstance(found, Preconditioned | Counting):
        raise TypeError(f"cannot count the passes of a {type(found).__name__}; student() must return a Preconditioned or a TwoTime")
    return found
