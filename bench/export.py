"""python -m bench.export: write a student as two files that load anywhere, without the results folder and without its teacher.

    python -m bench.export method=cd steps=2               results/students/cd-2/student.safetensors and student.json
    python -m bench.export method=pd steps=4 out=DIR       another folder

A student that is not in the results folder is trained first. In Python: `load_student("DIR").sample(torch.arange(16))`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from bench.execute.process import tune_process
from bench.jobs.fits.students import Student
from bench.jobs.fits.teachers import with_teacher
from bench.jobs.models import Model, load_model
from bench.jobs.resolve import Job, grid_of_student, resolve, student_cell, student_of
from bench.jobs.suite import Suite, settings_lines, students_of
from bench.settings import cli
from bench.settings.published import telling
from bench.store.artefacts import Store
from bench.store.cell import Cell
from fewstep.denoiser import Preconditioned, leaf
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import make_grid
from fewstep.nets.branches.files import save_adapter
from fewstep.nets.loading import read
from fewstep.nets.partial import Partial
from fewstep.nets.readers.card import resolve as weights_file
from fewstep.nets.readers.card import save_weights
from fewstep.plugins import entries, get
from fewstep.progress import say
from fewstep.sampling.draw import SAMPLER_VERSION
from fewstep.sampling.plan import with_afs
from fewstep.students import FILE, OWN
from fewstep.wrappers import picture_channels
from methods.solver import Learned

ADAPTER = "adapter.safetensors"  # beside the student, where its backbone is frozen: its branch alone
BUILT_FROM = ("arch", "config", "precond", "shape", "classes", "sigma_data", "sigma_range", "null")  # of a teacher's card: its architecture


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
    if "teacher" in model.config:
        own = {
            "arch": OWN,
            "config": {"teacher": model.config["teacher"], "identity": model.prior or model.digest},
            "sigma_data": model.data.sigma_data,
        }
        teacher = model.teacher
        return own | {"shape": list(teacher.shape), "classes": teacher.classes, "sigma_range": list(teacher.sigma_range)}
    shipped = "closed_form" not in model.config and not model.in_store
    card = read(weights_file(model.config["weights"]))[1] if shipped else model.untrained_card()
    return {k: card[k] for k in BUILT_FROM if k in card} | {"classes": model.teacher.classes}


def _options(method: Any) -> dict[str, Any]:
    """All fields but the version, which is compared and not set."""
    return {k: v for k, v in vars(method).items() if k != "version"}


def export(job: Job, model: Model, store: Store, folder: Path, device: str = "cpu") -> str:
    """Write the student of a finished job to a folder; returns the digest of its weights."""
    assert job.student is not None
    if job.student.adapter is not None:
        raise UsageError("a branch of another student is put on it when it is sampled; export the two apart, the branch by its method")
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
        **({"task": model.config["task"]} if model.config.get("task") else {}),
        **({"pictures": channels} if (channels := picture_channels(model.teacher)) else {}),
        **({"taught": taught} if (taught := _taught_by(job.student)) else {}),
        "task_version": model.task.version,
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
    weights, net = job.student.weights(model, store, job.steps, device), _network(job, model, store, device)
    if isinstance(net, Partial):  # the part that was trained has a file of its own beside the whole
        save_adapter(folder / ADAPTER, net, {"method": job.student.method, "model": model.name})
        weights = net.whole.state_dict()
    return save_weights(folder / FILE, weights, {**teacher_card(model), "student": student})


def _network(job: Job, model: Model, store: Store, device: str) -> nn.Module:
    """The network of a job's student."""
    assert job.student is not None
    found = leaf(job.student.load(model, store, job.steps, device))
    assert isinstance(found, Preconditioned)
    return found.net


def _taught_by(student: Student) -> list[dict[str, Any]]:
    """The students that it was taught by, the first first."""
    if student.taught_by is None:
        return []
    own = student.taught_by
    return [*_taught_by(own), {"method": own.method, "options": _options(own.distiller()), "version": own.distiller().version}]


def run(config: dict[str, Any]) -> int:
    """The entry point."""
    tune_process(config["threads"])
    if config["method"] is None:
        raise UsageError(f"no method given; type method=NAME with one of: {', '.join(entries('distiller'))}")
    model = load_model(config["model"], config["device"])
    suite = students_of(config.get("suite"), 0, "philox", model.data.name)
    method = config["method"]
    job = job_of(student_cell({**config, "fit_seed": config["seed"]}, suite), config["steps"], suite, model)
    if job.student is not None and job.student.weights_file:
        raise UsageError(f"{job.student.weights_file} is a file that loads anywhere already: fewstep.load_student reads it")
    store = Store(Path(config["results"]))
    model = with_teacher(model, store, config["device"], say)
    saying = telling(say, settings_lines(suite, method, model.data.name))
    for fit in job.fits:
        fit.ensure(model, store, config["device"], saying)
    folder = Path(config["out"] or Path(config["results"]) / "students" / f"{method}-{config['steps']}")
    sha256 = export(job, model, store, folder, config["device"])
    say(f"{job.student.label if job.student else method} for {job.steps} step(s) in {folder}, sha256 {sha256[:12]}...")
    return 0


def main(args: Sequence[str]) -> int:
    return cli.entry("export", __doc__ or "", run, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
