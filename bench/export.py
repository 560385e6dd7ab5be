"""python -m bench.export: write a student as two files that load anywhere, without the results folder and without its teacher.

    python -m bench.export method=cd steps=2               results/students/cd-2/student.safetensors and student.json
    python -m bench.export method=pd steps=4 out=DIR       another folder

A student that is not in the results folder is trained first. In Python: `load_student("DIR").sample(torch.arange(16))`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bench import cli
from bench.jobs.fits.students import as_student, with_teacher
from bench.jobs.models import Model, load_model
from bench.jobs.samples import SAMPLER_VERSION, Job, grid_of_student, leaf_of, resolve, sample, student_cell, student_of
from bench.jobs.suite import Cell, Suite, expand
from bench.store.artefacts import Store
from fewstep.calls import check_seeds
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import TimeGrid, make_grid
from fewstep.guidance import guide
from fewstep.nets.readers import card as checkpoint
from fewstep.plugins import entries, get
from fewstep.sampling.plan import Plan, with_afs
from fewstep.wrappers import WithScalars
from methods.distiller import Sampling
from methods.solver import Learned

FILE = "student.safetensors"
BUILT_FROM = ("arch", "config", "precond", "shape", "classes", "sigma_data", "sigma_range")  # of a teacher's card: its architecture


@dataclass(frozen=True, eq=False)
class Exported:
    """A student for one number of steps, with all that sampling it takes. `card` is what student.json says."""

    denoiser: Denoiser
    plan: Plan
    sampling: Sampling
    card: Mapping[str, Any]

    @property
    def sigma_max(self) -> float:
        return float(self.card["student"]["levels"][0])

    def guided(self, scale: float) -> Denoiser:
        """The student under guidance: as the scalar w = scale - 1 where it reads that, else from outside like its teacher; with a warning
        where it was not trained for that weight or its levels.

        **Raises**: UsageError without classes.
        """
        if scale != 1 and not self.denoiser.classes:
            raise UsageError(f"guidance {scale:g} needs classes, and this student has none; use guidance=1")
        if warning := self.sampling.warning(scale, self.plan, self.denoiser.sigma_range):
            warnings.warn(f"{self.card['student']['method']}: {warning}", stacklevel=2)
        if self.sampling.w is None:
            return guide(self.denoiser, scale)
        return WithScalars(self.denoiser, {"w": scale - 1})

    def sample(self, seeds: Tensor, guidance: float = 1.0, noise: str = "philox", batch: int = 250) -> tuple[Tensor, Tensor]:
        """Images [N, *shape] float32 and labels [N] of seeds [N] int64, to the bit what a sweep makes of them."""
        check_seeds(seeds)
        leaf = leaf_of(self.denoiser)
        assert isinstance(leaf, Preconditioned)
        device = next(leaf.net.parameters()).device
        return sample(self.plan, self.guided(guidance), self.sigma_max, seeds.to(device), noise, batch)


def job_of(cell: Cell, steps: int, suite: Suite, model: Model) -> Job:
    """The job of a student's cell with this number of steps in place of an NFE. **Raises**: as `resolve`; Unreachable for that number."""
    if steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}; e.g. steps=1")
    own = student_of(cell, suite).distiller().sampling()
    solver = get("solver", cell.solver or own.solver).make(**suite.options.get(cell.solver or own.solver, {}))
    if isinstance(solver, Learned):
        raise UsageError(f"{cell.solver} is fitted to a student in the results folder, and does not travel with it; leave solver out")
    plan = solver.plan(make_grid(grid_of_student(cell, own), steps, own.range_in(model.teacher.sigma_range), own.end))
    nfe = (with_afs(plan) if own.afs else plan).nfe(model.teacher)
    job = resolve(replace(cell, nfe=nfe), suite, model)
    if job.steps != steps:
        raise Unreachable(f"{cell.method} takes {job.steps} steps at NFE {nfe}, not {steps}; use steps={job.steps}")
    return job


def teacher_card(model: Model) -> dict[str, Any]:
    """What the student's network is built from: the architecture and preconditioning it shares with its teacher's (or warm start's)."""
    shipped = "closed_form" not in model.config and not model.in_store
    card = checkpoint.read_card(checkpoint.resolve(model.config["weights"])) if shipped else model.untrained_card()
    return {k: card[k] for k in BUILT_FROM if k in card} | {"classes": model.teacher.classes}


def _options(method: Any) -> dict[str, Any]:
    """All fields but the version, which is compared and not set."""
    return {k: v for k, v in vars(method).items() if k != "version"}


def export(job: Job, model: Model, store: Store, folder: Path, device: str = "cpu") -> str:
    """Write the student of a finished job to a folder; returns the digest of its weights."""
    assert job.student is not None
    method, record = job.student.distiller(), store.read("fit", job.student.key(model))
    student = {
        "method": job.student.method,
        "options": _options(method),
        "version": method.version,
        "phase": method.phase_for(job.steps),
        "steps": job.steps,
        "solver": job.cell.solver,
        "solver_options": _options(job.solver),
        "solver_version": job.solver.version,
        "sampler_version": SAMPLER_VERSION,
        "levels": [float(s) for s in job.grid.sigmas],
        "nfe": job.cell.nfe,
        "sampling": asdict(method.sampling()),
        "model": model.name,
        "model_digest": model.digest,
        "data_digest": model.data.digest(),
        "seed": job.student.seed,
        "training": {
            "train_seconds": job.student.seconds(record, job.steps),
            **job.student.training(record, job.steps),
            "params": record["params"],
        },
    }
    weights = job.student.weights(model, store, job.steps, device)
    return checkpoint.save_weights(folder / FILE, weights, {**teacher_card(model), "student": student})


def load_student(path: str | Path, device: str = "cpu") -> Exported:
    """An exported student, from its folder or its weights file.

    **Raises**: UsageError for files that are missing, truncated, changed or of something else, and where its method is not installed, or
    in another version.
    """
    file = Path(path) / FILE if Path(path).suffix != ".safetensors" else Path(path)
    if not file.exists():
        raise UsageError(f"no exported student at {file}; write one with python -m bench.export method=NAME out={file.parent}")
    tensors, card = checkpoint.read_weights(file)
    told = card.get("student")
    if not isinstance(told, Mapping):
        raise UsageError(
            f"{file} holds no exported student but a {card['arch']}; load a teacher with fewstep.nets.readers.card.load_denoiser"
        )
    for kind, name in (("distiller", told["method"]), ("solver", told["solver"])):
        if name not in entries(kind):
            raise UsageError(f"{file} needs the {kind} '{name}', which is not installed here; install the plugin that brings it")
    own = {name: value for name, value in told["options"].items() if name == "released"}  # some have a version of its own
    versions = [(told["method"], get("distiller", told["method"]).make(**own).version, told["version"])]
    versions += [(told["solver"], get("solver", told["solver"]).make().version, told["solver_version"])]
    for name, here, there in (*versions, ("the sampler", SAMPLER_VERSION, told["sampler_version"])):
        if here != there:
            raise UsageError(f"{file} was exported with version {there} of {name}, here is version {here}; export it again")
    method = get("distiller", told["method"]).make(**told["options"])
    solver = get("solver", told["solver"]).make(**told["solver_options"])
    skeleton = checkpoint.as_denoiser(checkpoint.build(card), card)
    denoiser = as_student(method, skeleton, tensors, told["steps"], f"weights {file}", device)
    plan = solver.plan(TimeGrid(told["levels"]))
    sampling = method.sampling()
    return Exported(denoiser, with_afs(plan) if sampling.afs else plan, sampling, card)


def run(config: dict[str, Any]) -> int:
    """The entry point."""
    cli.tune_process(config["threads"])
    if config["method"] is None:
        raise UsageError(f"no method given; type method=NAME with one of: {', '.join(entries('distiller'))}")
    model = load_model(config["model"], config["device"])
    suite = expand(cli.group_config("suite", config["options_of"]), 0, "philox")
    method = config["method"]
    job = job_of(student_cell({**config, "fit_seed": config["seed"]}, suite), config["steps"], suite, model)
    store = Store(Path(config["results"]))
    model = with_teacher(model, store, config["device"], cli.say)
    for fit in job.fits:
        fit.ensure(model, store, config["device"], cli.say)
    folder = Path(config["out"] or Path(config["results"]) / "students" / f"{method}-{config['steps']}")
    sha256 = export(job, model, store, folder, config["device"])
    cli.say(f"{job.student.label if job.student else method} for {job.steps} step(s) in {folder}, sha256 {sha256[:12]}...")
    return 0


def main(args: Sequence[str]) -> int:
    return cli.entry("export", __doc__ or "", run, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
