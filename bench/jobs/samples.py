"""From a job to its plan, its denoiser and its samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.evaluate.timing import machine
from bench.jobs.fits.solvers import as_sampled
from bench.jobs.models import Model
from bench.jobs.resolve import Job, rounded
from bench.store.artefacts import Store
from bench.store.parts import SAMPLES, Notes, Parted, Samples, ensure_parts, samples_in
from bench.store.provenance import provenance
from fewstep.analytic import Analytic, Counting
from fewstep.data.arrays import part_size
from fewstep.denoiser import Denoiser, Preconditioned, leaf, with_leaves
from fewstep.halving import Halving, fewest
from fewstep.nets.branches.counting import branch_of, branch_passes
from fewstep.nets.branches.shares import count_of, shares
from fewstep.nets.reduced import reduced
from fewstep.progress import counting_bar
from fewstep.replacement import Replaced
from fewstep.sampling.draw import sample
from fewstep.sampling.memory import MEMORY
from fewstep.sampling.plan import Plan, with_afs

ENOUGH = 8  # calls of all samples that a memory of calls has room for, or it is of no use


def plan_of(job: Job, model: Model, store: Store, device: str = "cpu") -> Plan:
    """The plan of a job whose fits are done. **Raises**: UsageError when a learned solver was not fitted yet."""
    solver = job.solver if job.learned is None else job.learned.bound(model, store, device)
    plan = solver.plan(job.grid)
    return with_afs(plan) if job.cell.afs else plan


def denoiser_of(job: Job, model: Model, store: Store, device: str) -> Denoiser:
    """The teacher or the trained student in the cell's type of numbers, under its guidance and wrapper; a closed form's own evaluations are
    counted."""
    base = reduced(model.teacher if job.student is None else job.student.load(model, store, job.steps, device), job.cell.dtype)
    counted = Counting(base) if isinstance(base, Analytic) else base
    found = as_sampled(counted, job.student, job.cell.guidance, job.cell.wrap)
    return Replaced(found) if job.cell.replaced else found


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
        """The same with a memory of the teacher's calls, for samples, where it has room for several calls of all of them: with less it
        would forget each before it is asked again. Never for latencies."""
        whole = self.job.spec["count"] * math.prod(self.model.teacher.shape) * 4  # bytes of one call for every sample
        if self.job.student is not None or ENOUGH * whole > MEMORY:
            return self.denoiser
        teacher = self.model.teacher
        return with_leaves(self.denoiser, lambda own: self.model.recalling if own is teacher else own)

    def levels(self) -> list[float | str]:
        """The noise levels of a row: the grid's; of a learned solver those that its plan evaluates (`predicted` for one each image has of
        its own) and the last."""
        if self.job.learned is None:
            return [*rounded(self.job.grid)]
        asked = (e.sigma for e in self.plan.evals)
        return ["predicted" if isinstance(sigma, str) else float(sigma) for sigma in asked] + [float(self.job.grid.sigmas[-1])]


def parameters(denoiser: Denoiser) -> int:
    """Parameters of the network under guidance and wrappers, of a frozen base too; 0 for a closed form."""
    leaf = leaf_of(denoiser)
    return count_of(leaf.net) if isinstance(leaf, Preconditioned) else 0


def parameter_shares(denoiser: Denoiser) -> dict[str, int] | None:
    """Whose they are (`fewstep.nets.branches.shares.Shares`); None for a network without a branch."""
    leaf = leaf_of(denoiser)
    found = shares(leaf.net) if isinstance(leaf, Preconditioned) else None
    return None if found is None else dict(vars(found))


def told_by_branch(denoiser: Denoiser) -> bool:
    """Whether its network has a branch that is told the picture."""
    leaf = leaf_of(denoiser)
    return isinstance(leaf, Preconditioned) and branch_of(leaf.net) is not None


@contextmanager
def counted_passes(denoiser: Denoiser) -> Iterator[list[int]]:
    """Counts what the network (or the closed form) is really asked: samples of all calls, from memory or not, in a list of one."""
    seen, leaf = [0], leaf_of(denoiser)
    if isinstance(leaf, Counting):
        before = leaf.samples
        yield seen
        seen[0] = leaf.samples - before
        leaf.conds.clear()  # which would grow with the number of samples
        return

    def count(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[0] += len(inputs[0])

    handle = leaf.net.register_forward_pre_hook(count)
    try:
        yield seen
    finally:
        handle.remove()


def ensure_samples(bound: Bound, batch: int, say: Callable[[str], None]) -> Samples:
    """The samples of a job, from the store or made now, part by part. **Raises**: FloatingPointError when some are not finite."""
    job, model, store, device = bound.job, bound.model, bound.store, bound.device
    count, first_seed = job.spec["count"], job.spec["seed"]
    at_once = Halving(batch, device, job.cell.label, say, "batch={}")

    def make(first: int, last: int) -> tuple[dict[str, np.ndarray], Notes]:
        denoiser = bound.recalling
        seeds = torch.arange(first_seed + first, first_seed + last, device=device)

        def sampled(size: int) -> tuple[list[int], list[int], Tensor, Tensor]:
            with counted_passes(denoiser) as passes, branch_passes(denoiser) as branch:
                found = sample(bound.plan, denoiser, job.sigma_max, seeds, job.spec["noise"], size, bar(first), model.task)
            return passes, branch, *found

        passes, branch, images, labels = at_once.of(len(seeds), sampled)
        if passes[0] != job.cell.nfe * len(seeds):
            raise RuntimeError(f"the plan says NFE {job.cell.nfe}, the network was asked for {passes[0] / len(seeds):g} per image")
        broken = int((~torch.isfinite(images)).flatten(1).any(1).sum())
        if broken:
            where = "" if len(seeds) == count else f", numbers {first} to {last - 1} of {count},"
            raise FloatingPointError(f"{broken} of {len(seeds)} samples{where} are not finite")
        found = {"images": images.numpy(), "labels": labels.numpy()}
        return found, {"passes": passes[0], **({"branch": branch[0]} if told_by_branch(denoiser) else {}), **at_once.notes}

    def record(notes: Sequence[Notes]) -> dict[str, Any]:
        made_on = {"device": machine(device)["device"], "torch": torch.__version__}
        passes = sum(note["passes"] for note in notes) / count
        own: dict[str, Any] = {"made_on": made_on, "made_by": provenance(), **fewest(notes)}
        if all("branch" in note for note in notes):
            own["branch_passes"] = sum(note["branch"] for note in notes) / count
        return {"spec": job.spec, "first": job.cell.label, "network_passes": passes, **own}

    with counting_bar(count, job.cell.label) as bar:
        ensure_parts(store, SAMPLES, job.key, Parted(SAMPLES, count, part_size(model.teacher.shape), make, record), say)
    return samples_in(store.path(SAMPLES, job.key))


def leaf_of(denoiser: Denoiser) -> Preconditioned | Counting:
    """What is under guidance and wrappers. **Raises**: TypeError for a denoiser whose passes cannot be counted."""
    found = leaf(denoiser)
    if not isinstance(found, Preconditioned | Counting):
        raise TypeError(f"cannot count the passes of a {type(found).__name__}; student() must return a Preconditioned or a TwoTime")
    return found
