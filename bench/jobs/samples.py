"""From a cell to its plan, its denoiser and its samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save
from torch import Tensor
from tqdm import tqdm

from bench.cli import bar_settings, group_config, say
from bench.jobs.fits.fit import SAMPLER_VERSION, Fit, changed
from bench.jobs.fits.solvers import SolverFit, as_sampled
from bench.jobs.fits.students import Student, with_teacher
from bench.jobs.models import Model, load_model, wrap_version
from bench.jobs.suite import Cell, Suite, expand
from bench.measure.timing import machine
from bench.store.artefacts import Store, digest
from bench.store.provenance import provenance
from fewstep.analytic import Analytic, Counting
from fewstep.calls import check_seeds
from fewstep.checks import check_count
from fewstep.cond import Cond
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import UsageError, near_misses
from fewstep.files import write_atomic
from fewstep.flowmap import TwoTime
from fewstep.grid import GIVEN, TimeGrid, make_grid
from fewstep.guidance import Guided, guide
from fewstep.noise import LATENT, Noise, make_noise
from fewstep.plugins import get
from fewstep.sampling.plan import Plan, content, with_afs
from fewstep.sampling.runner import end_of
from fewstep.wrappers import Mapped, WithScalars
from methods.distiller import Sampling
from methods.solver import Learned, Solver, draft, steps_for_nfe

SAMPLES = "samples.safetensors"


@dataclass(frozen=True, eq=False)
class Job:
    """A cell made concrete (a student's own solver and grid filled in): its steps, solver and grid, and what can change its samples.

    `solver` is not yet bound when it is a learned one (`plan_of` binds it); `fits` must be in the store before the job can run.
    """

    cell: Cell
    steps: int
    solver: Solver
    grid: TimeGrid
    spec: dict[str, Any]
    student: Student | None
    learned: SolverFit | None

    @property
    def key(self) -> str:
        return digest(self.spec)

    @property
    def sigma_max(self) -> float:
        return float(self.grid.sigmas[0])

    @property
    def fits(self) -> tuple[Fit, ...]:
        return tuple(fit for fit in (self.student, self.learned) if fit is not None)


def student_of(cell: Cell, suite: Suite) -> Student:
    """The student a cell samples: the suite's options for its distiller and variant, the cell's loss, and its seed.

    **Raises**: UsageError for a variant that the suite has no options for.
    """
    options = dict(suite.options.get(cell.method, {}))
    if cell.variant:
        name = f"{cell.method}/{cell.variant}"
        if name not in suite.options:
            raise UsageError(f"suite.options has no '{name}'{near_misses(name, [k for k in suite.options if '/' in k])}")
        options |= suite.options[name]
    return Student(cell.method, options | ({"loss": cell.loss} if cell.loss else {}), cell.fit_seed)


def grid_of_student(cell: Cell, own: Sampling) -> str:
    """The grid that a student's cell is sampled on: its distiller's, or levels by hand.

    **Raises**: UsageError for those where the student is for its own intervals, and for another family.
    """
    if cell.grid in ("", own.grid):
        return own.grid
    if not cell.grid.startswith(GIVEN):
        raise UsageError(f"{cell.method} has its own {own.grid} grid, not {cell.grid}; leave grid out")
    if not own.any_level:
        raise UsageError(f"{cell.method} has students for its own {own.grid} grid, not for levels by hand; leave grid '{cell.grid}' out")
    return cell.grid


def student_cell(config: Mapping[str, Any], suite: Suite) -> Cell:
    """The cell of the student that a command's fields describe: `method`, `loss` (the first that the suite trains it with where empty),
    `variant`, `fit_seed`, and `solver` and `grid` where it has them."""
    method, variant = config["method"], config["variant"]
    trained = (c.loss for c in suite.cells if (c.method, c.variant) == (method, variant))
    solver, grid = (config.get(axis) or "" for axis in ("solver", "grid"))
    return Cell(method, solver, grid, loss=config["loss"] or next(trained, ""), variant=variant, fit_seed=config["fit_seed"])


def resolve(cell: Cell, suite: Suite, model: Model) -> Job:
    """The job of a cell; a student's solver, grid and end are its distiller's.

    **Raises**: UsageError for unknown names; Unreachable for an NFE that the solver or the student cannot have.
    """
    student = None if cell.method == "teacher" else student_of(cell, suite)
    scale, sigma_range = cell.guidance, model.teacher.sigma_range
    if student is not None:
        own = student.distiller().sampling()
        if cell.solver not in ("", own.solver, *own.solvers):
            known = " or ".join((own.solver, *own.solvers))
            raise UsageError(f"{cell.method} is sampled with {known}, not with '{cell.solver}'; use one of those, or none")
        cell = replace(cell, solver=cell.solver or own.solver, grid=grid_of_student(cell, own), end=own.end, afs=own.afs)
        scale, sigma_range = 1.0 if own.w else scale, own.range_in(sigma_range)
    options = suite.options.get(cell.solver, {})
    solver: Solver = get("solver", cell.solver).make(**options)
    if cell.guidance != 1 and not model.teacher.classes:
        raise UsageError(f"guidance {cell.guidance:g} needs classes, and model {model.name} has none; use guidance=1")

    def grid_of(steps: int) -> TimeGrid:
        return make_grid(cell.grid, steps, sigma_range, cell.end)

    def counted_plan(steps: int) -> Plan:
        plan = draft(solver).plan(grid_of(steps))
        return with_afs(plan) if cell.afs else plan

    ending = cell.end.replace("zero_last", "0").replace("zero", "0")
    label = f"{cell.solver if student is None else cell.method} ending at {ending}{' with AFS' if cell.afs else ''}"
    guided = f" under guidance {scale:g}" if scale != 1 else ""
    steps = steps_for_nfe(counted_plan, guide(model.teacher, scale), cell.nfe, label + guided)
    student = student.at(steps) if student else None
    if isinstance(solver, Learned):
        solver.check(steps, grid_of, cell.afs)
    axes = {"grid": cell.grid, "end": cell.end, "steps": steps, "afs": cell.afs, "guidance": cell.guidance, "wrap": cell.wrap}
    learned = SolverFit(cell.solver, options, **axes, student=student) if isinstance(solver, Learned) else None
    grid = grid_of(steps)
    computed = content(counted_plan(steps)) if learned is None else None  # the plan of one that is fitted is not known yet
    spec = {
        "model": model.digest,
        "fit": student.key(model) if student else None,
        "phase": student.distiller().phase_for(steps) if student else None,
        "sampler_version": SAMPLER_VERSION,
        "guidance": cell.guidance,
        "noise": suite.noise,
        "seed": suite.seed,
        "count": suite.samples,
        "dtype": "float32",
    }
    other: dict[str, Any] = {"wrap": cell.wrap, **wrap_version(cell.wrap)}
    if computed is not None:  # whatever the solver is called: some are the same at few steps
        spec |= {"plan": digest(computed), "sigma_max": rounded(grid)[0]}
        other |= {"steps": steps if student else None}  # some students read their number
    else:
        spec |= {"solver": cell.solver, "solver_version": solver.version, "levels": rounded(grid), "afs": cell.afs}
        other |= {"solver_options": changed("solver", cell.solver, options), "solver_fit": learned.key(model) if learned else None}
    spec |= {k: v for k, v in other.items() if v}  # only what is not the default: older addresses stay valid
    return Job(cell, steps, solver, grid, spec, student, learned)


def rounded(grid: TimeGrid) -> list[float]:
    """The levels of a grid, to the digits that addresses and rows have."""
    return [float(f"{s:.10g}") for s in grid.sigmas]


def plan_of(job: Job, model: Model, store: Store, device: str = "cpu") -> Plan:
    """The plan of a job whose fits are done. **Raises**: UsageError when a learned solver was not fitted yet."""
    solver = job.solver if job.learned is None else job.learned.bound(model, store, device)
    plan = solver.plan(job.grid)
    return with_afs(plan) if job.cell.afs else plan


def levels_of(job: Job, model: Model, store: Store) -> list[float | str]:
    """The noise levels of a row: the grid's; of a learned solver those that its plan evaluates (`predicted` for one each image has of its
    own) and the last."""
    if job.learned is None:
        return [*rounded(job.grid)]
    asked = (e.sigma for e in plan_of(job, model, store).evals)
    return ["predicted" if isinstance(sigma, str) else float(sigma) for sigma in asked] + [float(job.grid.sigmas[-1])]


def denoiser_of(job: Job, model: Model, store: Store, device: str) -> Denoiser:
    """The teacher or the trained student, under the cell's guidance and wrapper; a closed form's own evaluations are counted."""
    base = model.teacher if job.student is None else job.student.load(model, store, job.steps, device)
    counted = Counting(base) if isinstance(base, Analytic) else base
    return as_sampled(counted, job.student, job.cell.guidance, job.cell.wrap)


def leaf_of(denoiser: Denoiser) -> Preconditioned | Counting:
    """What is under guidance and wrappers. **Raises**: TypeError for a denoiser whose passes cannot be counted."""
    while isinstance(denoiser, Guided | Mapped | WithScalars | TwoTime):
        denoiser = denoiser.base
    if not isinstance(denoiser, Preconditioned | Counting):
        raise TypeError(f"cannot count the passes of a {type(denoiser).__name__}; student() must return a Preconditioned or a TwoTime")
    return denoiser


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


def start(source: Noise, denoiser: Denoiser, sigma_max: float) -> tuple[Tensor, Cond]:
    """x = sigma_max n [B, *shape] and the samples' labels, drawn in this order; no labels for an unconditional model."""
    x = source.normal(LATENT, denoiser.shape) * sigma_max
    return x, Cond(label=source.labels(denoiser.classes)) if denoiser.classes else Cond()


@torch.inference_mode()
def sample(
    plan: Plan, denoiser: Denoiser, sigma_max: float, seeds: Tensor, noise: str = "philox", batch: int = 250, bar: Any = None
) -> tuple[Tensor, Tensor]:
    """Samples and class labels of the given seeds, from x = sigma_max n; they do not depend on `batch`.

    **Shapes**: seeds [N] int64 -> images [N, *shape] float32 (not clipped), labels [N] int64 (empty for an unconditional model).
    """
    check_seeds(seeds)
    check_count("batch", batch, 1, "it is how many samples are made at once, e.g. 250")
    images, labels = [], []
    for part in seeds.split(batch):
        source = make_noise(noise, part)
        x, cond = start(source, denoiser, sigma_max)
        images.append(end_of(plan, denoiser, x, source, cond).cpu())
        labels.append((torch.zeros_like(part) if cond.label is None else cond.label).cpu())
        if bar is not None:
            bar.update(len(part))
    return torch.cat(images), torch.cat(labels)


def ensure_samples(job: Job, model: Model, store: Store, device: str, batch: int, say: Callable[[str], None]) -> dict[str, np.ndarray]:
    """The samples of a job, from the store or made now. **Raises**: FloatingPointError when some are not finite."""

    def fill(folder: Path) -> dict[str, Any]:
        count, first = job.spec["count"], job.spec["seed"]
        seeds = torch.arange(first, first + count, device=device)
        asked = model if job.student is not None else replace(model, teacher=model.recalling)
        denoiser = denoiser_of(job, asked, store, device)
        with tqdm(total=count, desc=job.cell.label, unit="img", **bar_settings()) as bar, counted_passes(denoiser) as passes:
            images, labels = sample(plan_of(job, model, store, device), denoiser, job.sigma_max, seeds, job.spec["noise"], batch, bar)
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


def trained_student(cell: Cell, steps: int = 1, suite: str = "digits", results: str | Path = "results", model: str = "") -> Denoiser:
    """The student of a cell (its method, loss, variant and training seed) that a sweep of `suite` left in a results folder, for sampling in
    `steps` steps under the cell's guidance; `model` names one of a suite's several.

    **Raises**: UsageError for unknown names, and for a student that was not trained yet.
    """
    config, store = group_config("suite", suite), Store(Path(results))
    names = config["model"] if isinstance(config["model"], list) else [config["model"]]
    found = with_teacher(load_model(group_config("model", model or names[0]), "cpu"), store, "cpu", say)
    expanded = expand(config, 0, "philox")
    student = student_of(student_cell(vars(cell), expanded), expanded).at(steps)
    if warning := student.distiller().sampling().w_warning(cell.guidance):
        warnings.warn(f"{cell.method}: {warning}", stacklevel=2)
    return as_sampled(student.load(found, store, steps), student, cell.guidance, "")
