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

import numpy as np
import torch
from safetensors.numpy import save

from bench.execute.process import tune_process
from bench.jobs.fits.teachers import with_teacher
from bench.jobs.models import load_model
from bench.jobs.resolve import resolve, student_cell
from bench.jobs.samples import denoiser_of, plan_of
from bench.jobs.suite import Suite, settings_lines, students_of
from bench.settings import cli
from bench.settings.files import example
from bench.settings.published import telling
from bench.store.artefacts import Store
from bench.store.cell import Cell
from fewstep.errors import UsageError
from fewstep.files import write_atomic
from fewstep.progress import say
from fewstep.sampling.draw import sample


def sheet(images: np.ndarray, columns: int, scale: int = 6) -> np.ndarray:
    """Images [N, C, H, W] in [-1, 1] tiled in rows of `columns`, enlarged by whole pixels, as uint8 [H', W', C]."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * columns, c, h + 1, w + 1), -1.0, np.float32)
    canvas[:n, :, :h, :w] = images
    tiled = canvas.reshape(rows, columns, c, h + 1, w + 1).transpose(0, 3, 1, 4, 2).reshape(rows * (h + 1), columns * (w + 1), c)
    levels = np.clip(127.5 * tiled + 128, 0, 255).astype(np.uint8)
    return levels.repeat(scale, axis=0).repeat(scale, axis=1)


def write_png(images: np.ndarray, columns: int, path: Path) -> None:
    """The sheet of images as a PNG file."""
    import io

    from PIL import Image

    pixels = sheet(images, columns)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


def cell_of(config: dict[str, Any], suite: Suite) -> Cell:
    """The cell that the arguments describe. **Raises**: UsageError for those of a teacher given to a student."""
    asked = {"nfe": config["nfe"], "guidance": float(config["guidance"])}
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
    model = load_model(config["model"], config["device"])
    suite = students_of(config.get("suite"), config["seed"], config["noise"], model.data.name)
    store = Store(Path(config["results"]))
    model = with_teacher(model, store, config["device"], say)
    job = resolve(cell_of(config, suite), suite, model)
    fitted = job.cell.solver if job.student is None else job.student.method
    saying = telling(say, settings_lines(suite, fitted, model.data.name))
    for fit in job.fits:
        fit.ensure(model, store, config["device"], saying)
    seeds = torch.arange(config["seed"], config["seed"] + config["n"], device=config["device"])
    denoiser = denoiser_of(job, model, store, config["device"])
    plan = plan_of(job, model, store, config["device"])
    if job.student is not None and (warning := job.student.warning(job.cell.guidance, plan, model)):
        say(f"{job.cell.method}: {warning}")
    images, labels = sample(plan, denoiser, job.sigma_max, seeds, config["noise"], config["batch"], task=model.task)
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
