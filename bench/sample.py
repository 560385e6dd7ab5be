"""python -m bench.sample: draw images from the teacher or from a student, and write a picture.

    python -m bench.sample solver=heun nfe=35 n=100 out=teacher.png
    python -m bench.sample method=cd suite=digits nfe=1 n=64 out=grid.png

A student that is not in the results folder is trained first, after a line that says what it will cost.
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
from bench.jobs.models import load_model
from bench.jobs.resolve import resolve, student_cell
from bench.jobs.samples import denoiser_of, plan_of
from bench.jobs.suite import Suite, settings_lines, students_of
from bench.reports.plots.sheet import write_png
from bench.settings import cli
from bench.settings.files import example
from bench.settings.published import telling
from bench.store.artefacts import Store
from bench.store.cell import Cell
from bench.store.world import World, alone_heard, device_of, joined
from fewstep.errors import UsageError
from fewstep.files import write_atomic
from fewstep.halving import Halving
from fewstep.progress import say
from fewstep.sampling.draw import sample


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
    fitted = job.cell.solver if job.student is None else job.student.method
    saying = telling(say, settings_lines(suite, fitted, model.data.name))
    with store.shared(world):
        for fit in job.fits:
            fit.ensure(model, store, config["device"], saying, config["batch"])
    seeds = torch.arange(config["seed"], config["seed"] + config["n"], device=config["device"])
    denoiser = denoiser_of(job, model, store, config["device"])
    plan = plan_of(job, model, store, config["device"])
    if job.student is not None and (warning := job.student.warning(job.cell.guidance, plan, model)):
        say(f"{job.cell.method}: {warning}")
    first, last = world.rows(len(seeds))
    own, at_once = seeds[first:last], Halving(config["batch"], config["device"], job.cell.label, say, "batch={}")

    def some(size: int) -> tuple[Tensor, Tensor]:
        return sample(plan, denoiser, job.sigma_max, own, config["noise"], size, task=model.task)

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
    else:
        write_png(images.numpy(), model.teacher.classes or int(config["n"] ** 0.5), out)
    say(f"{config['n']} images of {job.cell.label} in {job.steps} step(s), written to {out}")
    return 0


def main(args: Sequence[str]) -> int:
    return cli.entry("sample", __doc__ or "", run, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
