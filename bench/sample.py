"""python -m bench.sample: draw images from the teacher or from a student, and write a picture.

    python -m bench.sample solver=heun nfe=35 n=100 out=teacher.png
    python -m bench.sample method=cd suite=digits nfe=1 n=64 out=grid.png
    python -m bench.sample solver=repaint nfe=39 condition=photos mask=masks out=filled.png
    python -m bench.sample nfe=10 condition=photos strength=0.5 out=edited.png

A student that is not in the results folder is trained first, after a line that says what it will cost. With a folder of pictures as
condition= the images are written one by one into a folder beside the sheet: docs/conditional-tasks.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save
from torch import Tensor

from bench.execute.process import tune_process
from bench.jobs.fits.teachers import with_teacher
from bench.jobs.models import Model, load_model
from bench.jobs.resolve import Job, resolve, student_cell
from bench.jobs.samples import denoiser_of, plan_of
from bench.jobs.suite import Suite, settings_lines, students_of
from bench.reports.plots.sheet import write_image, write_png
from bench.settings import cli
from bench.settings.files import example
from bench.settings.published import telling
from bench.store.artefacts import Store
from bench.store.cell import Cell
from bench.store.world import World, alone_heard, device_of, joined
from fewstep.checks import check_count
from fewstep.data.asking import Folder, asking_folder
from fewstep.data.degradations.masks import hidden
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.files import write_atomic
from fewstep.halving import Halving
from fewstep.nets.branches.transplant import told_pictures
from fewstep.progress import say
from fewstep.sampling.draw import sample
from fewstep.sampling.editing import check_guided, given, sample_given
from fewstep.sampling.plan import Plan
from fewstep.strength import check_strength, grid_from
from fewstep.tasks.given import Given
from fewstep.tasks.task import Paired
from methods.solver import Learned


def cell_of(config: dict[str, Any], suite: Suite) -> Cell:
    """The cell that the arguments describe. **Raises**: UsageError for those of a teacher given to a student."""
    asked = {"nfe": config["nfe"], "guidance": float(config["guidance"]), "dtype": config["dtype"]}
    if config["method"] == "teacher":
        axes = {"solver": example("sampler"), "grid": "polynomial", "end": "sigma_min", "afs": False}
        return Cell("teacher", **{k: default if config[k] is None else config[k] for k, default in axes.items()}, **asked)
    given = [k for k in ("end", "afs") if config[k] is not None]
    if given:
        raise UsageError(f"{config['method']} has its own end and AFS; leave {' and '.join(given)} out")
    return replace(student_cell(config, suite), **asked)


def run(config: dict[str, Any]) -> int:
    """The entry point."""
    tune_process(config["threads"])
    _check_asking(config)
    if config["n"] > 10**6:
        raise UsageError(f"n={config['n']} images do not fit in memory; use at most 1000000 and another seed for the rest")
    out = Path(config["out"])
    if out.suffix not in (".png", ".safetensors"):
        raise UsageError(f"out must end in .png or .safetensors, got '{out}'; e.g. out=grid.png")
    with joined(config["device"]) as world, alone_heard(world), world.as_one():
        return _run({**config, "device": device_of(config["device"])}, out, world)


def _run(config: dict[str, Any], out: Path, world: World) -> int:
    """Draw images as one of the processes of a world, of which the first writes them."""
    model = load_model(config["model"], config["device"])
    suite = students_of(config.get("suite"), config["seed"], config["noise"], model.data.name)
    store = Store(Path(config["results"]))
    with store.shared(world):
        model = with_teacher(model, store, config["device"], say)
    job = resolve(cell_of(config, suite), suite, model)
    if config["strength"] is not None and isinstance(job.solver, Learned):
        raise UsageError(f"{job.cell.solver} is fitted to its own levels, which start at noise alone; use another solver with strength=")
    if config["strength"] not in (None, 1) and job.cell.afs:
        raise UsageError(f"{job.cell.label}: its first step is the analytical one, of states of noise alone; leave strength or afs out")
    fitted = job.cell.solver if job.student is None else job.student.method
    saying = telling(say, settings_lines(suite, fitted, model.data.name))
    with store.shared(world):
        for fit in job.fits:
            fit.ensure(model, store, config["device"], saying, config["batch"])
    denoiser = denoiser_of(job, model, store, config["device"])
    plan = plan_of(job, model, store, config["device"])
    if job.student is not None and (warning := job.student.warning(job.cell.guidance, plan, model)):
        say(f"{job.cell.method}: {warning}")
    folder, asked, sigma_max, each = None, model.task, job.sigma_max, int(config["each"])
    if config["condition"] is not None:
        folder = asking_folder(str(config["condition"]), model.teacher.shape, _path(config["mask"]), _size(model, denoiser))
        denoiser, asked = _asked(config, folder, job, model, denoiser)
        plan, sigma_max = _started(config["strength"], job, model, plan)
    count = config["n"] if folder is None else each * len(folder.names)
    seeds = torch.arange(config["seed"], config["seed"] + count, device=config["device"])
    first, last = world.rows(len(seeds))
    own, at_once = seeds[first:last], Halving(config["batch"], config["device"], job.cell.label, say, "batch={}")

    def some(size: int) -> tuple[Tensor, Tensor]:
        if isinstance(asked, Given):
            return sample_given(plan, denoiser, sigma_max, own, asked[first:last], config["noise"], size)
        return sample(plan, denoiser, sigma_max, own, config["noise"], size, task=asked)

    def drawn() -> list[tuple[Tensor, Tensor]]:
        return [at_once.of(len(own), some)] if len(own) else []

    found = [part for parts in world.together(drawn) for part in parts]
    images, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    if not world.first:
        return 0
    if not torch.isfinite(images).all():
        raise UsageError(f"{job.cell.label} gives images that are not finite; check guidance={config['guidance']}")
    if out.suffix == ".safetensors":
        write_atomic(out, save({"images": images.numpy(), "labels": labels.numpy()}))
    elif folder is None:
        write_png(images.numpy(), model.teacher.classes or int(config["n"] ** 0.5), out)
    else:
        _write_beside(images, folder, each, out)
    say(f"{count} images of {job.cell.label} in {plan.nfe(denoiser)} pass(es), written to {out}")
    return 0


def _check_asking(config: dict[str, Any]) -> None:
    """**Raises**: UsageError for fields that belong to a folder of pictures and have none, for values of another kind, for a strength
    outside of 0 to 1, and where images would be written among others."""
    given = [key for key in ("mask", "strength", "label") if config[key] is not None]
    check_count("each, the images for each picture,", config["each"], 1, "e.g. each=1")
    given += ["each"] if config["each"] != 1 else []
    if given and config["condition"] is None:
        raise UsageError(f"{' and '.join(given)} without a folder of pictures; give one as condition=FOLDER")
    if config["strength"] is not None:
        check_strength(config["strength"])
    if config["label"] is not None:
        check_count("the label", config["label"], 0, "it is the number of a class, e.g. label=3")
    place = Path(config["out"]).with_suffix("")
    if config["condition"] is not None and place.is_dir() and any(place.iterdir()):
        raise UsageError(f"images would be written into {place}, which holds files already; give another out=NAME.png")


def _asked(config: dict[str, Any], folder: Folder, job: Job, model: Model, denoiser: Denoiser) -> tuple[Denoiser, Given]:
    """The denoiser and the task that a folder of pictures makes of a model's own: a student of a task of pictures is told them."""
    rows = torch.arange(len(folder.names)).repeat_interleave(int(config["each"]))
    masks = None if folder.masks is None else folder.masks[rows]
    check_guided(job.cell.guidance, config["label"], denoiser)
    return given(denoiser, model.task, folder.pictures[rows], masks, config["strength"], config["label"], told_pictures(denoiser))


def _path(value: Any) -> str | None:
    """A folder as it was typed: one that is called by a number is read as one."""
    return None if value is None else str(value)


def _size(model: Model, denoiser: Denoiser) -> int | None:
    """The size of the pictures that a student of super-resolution enlarges; None where any will do."""
    task, shape = model.task, model.teacher.shape
    if not (isinstance(task, Paired) and told_pictures(denoiser)):
        return None
    small = task.small(torch.zeros(1, *shape), torch.zeros(1, dtype=torch.int64)).shape[-1]
    return small if small < shape[-1] else None


def _started(strength: float | None, job: Job, model: Model, plan: Plan) -> tuple[Plan, float]:
    """The plan from a strength down and its first level, as cells of that strength have them."""
    if strength is None:
        return plan, job.sigma_max
    own = None if job.student is None else job.student.distiller().sampling()
    sigma_range = model.teacher.sigma_range if own is None else own.range_in(model.teacher.sigma_range)
    grid = grid_from(job.cell.grid, job.steps, sigma_range, strength, job.cell.end, own is not None and not own.any_level)
    return job.solver.plan(grid), float(grid.sigmas[0])


def _write_beside(images: Tensor, folder: Folder, each: int, out: Path) -> None:
    """A sheet of the pictures as they are told, each before its images, and the images one by one in a folder of the sheet's name."""
    shown = folder.pictures if folder.masks is None else hidden(folder.pictures, folder.masks).image
    rows = torch.cat([shown[:, None], images.view(len(shown), each, *images.shape[1:])], 1)
    columns = (1 + each) * max(1, min(len(shown), 12 // (1 + each)))
    write_png(rows.flatten(0, 1).numpy(), columns, out, scale=max(1, 96 // images.shape[-1]))
    place = out.with_suffix("")
    place.mkdir(parents=True, exist_ok=True)
    for row, image in enumerate(images):
        name = folder.names[row // each] + (f"-{row % each}" if each > 1 else "")
        write_image(image.numpy(), place / f"{name}.png")


def main(args: Sequence[str]) -> int:
    return cli.entry("sample", __doc__ or "", run, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
