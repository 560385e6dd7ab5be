"""python -m bench.train: train a model from scratch, or a student of it, with a log, curves and a digest.

    python -m bench.train model=digits seed=1          the digit teacher, into results/train/digits-seed1/
    python -m bench.train model=digits_classifier      the classifier of fd_digits
    python -m bench.train method=cd suite=digits       a student as that suite trains it, into the store where sweeps find it
    python -m bench.train model=cifar10_small snapshots=8     with its quality against the images seen
    torchrun --nproc-per-node 8 -m bench.train model=cifar10 device=cuda   eight share each step
    python -m bench.train model=digits init=DIR log=tensorboard   from the weights of a former run, watched in results/logs/

Interrupted training goes on where it stopped when the same command runs again.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.execute.process import tune_process
from bench.jobs.fits.fit import trained_by
from bench.jobs.fits.teachers import with_teacher
from bench.jobs.models import STORED, augmented, card_of, check_config, data_of, is_folder, load_model, untrained
from bench.jobs.quality import curve, picture, quality
from bench.jobs.resolve import student_cell, student_of
from bench.jobs.suite import settings_lines, students_of
from bench.reports.plots.sheet import by_class, write_png
from bench.settings import cli
from bench.settings.files import example
from bench.settings.published import telling
from bench.store.artefacts import Store, seconds_taken
from bench.store.world import ALONE, World, alone_heard, device_of, joined
from bench.training import checkpoints
from bench.training.curves import quality_curve, training_curves
from bench.training.engine import Engine, Settings
from bench.training.snapshots import Snapshots
from bench.training.tracking import NONE, check_tracker, tracking
from fewstep.data.images import ImageData
from fewstep.errors import UsageError
from fewstep.files import write_atomic
from fewstep.nets.readers.card import read_card, save_weights, write_card
from fewstep.progress import say
from fewstep.tasks.generation import task_for
from methods.recipe import Recipe, split

# The fields of a training's recipe that can be typed, and what they are called there.
RECIPE = {"precision": "precision", "accumulate": "accumulate", "compile": "compile", "init": "init_from"}
SNAPSHOTS = "snapshots"  # the folder, in that of a training, of its weights on the way
SCALE = 3  # a pixel of the picture of samples
LOGS = "logs"  # the folder in the results of what trackers write


def typed(config: dict[str, Any]) -> dict[str, Any]:
    """The options of the training that the command's own fields give, where they are not what they would be anyway."""
    own = Recipe(**{name: config[field] for field, name in RECIPE.items()}).given()
    return own | ({} if config["batches"] is None else {"batches": config["batches"]})


def train_model(config: dict[str, Any], command: str, world: World = ALONE) -> Path:
    """Train the configured model from scratch; returns its folder with weights, card, log and curves, which the first of a world writes."""
    model, seed = config["model"], config["seed"]
    check_config(model, training="closed_form" not in model)
    if "closed_form" in model:
        raise UsageError(f"model={model['name']} is a closed form; train a student of it: method={example('method')} model={model['name']}")
    options = {**model["options"], **typed(config)}
    if split(options)[1].weights:
        raise UsageError(f"model {model['name']} is to be trained, and weights={options['weights']} are there already; leave weights out")
    method = trained_by("pretrain", model["pretrain"], options)
    data = data_of(model)
    folder = Path(config["out"] or Path(config["results"]) / "train" / f"{model['name']}-seed{seed}")
    path = folder / f"{Path(model['weights']).stem}.safetensors"
    recipe = {
        "method": model["pretrain"],
        "options": options,
        **({"augment": model["augment"]} if model.get("augment") else {}),
        "version": method.version,
        "seed": seed,
    }
    if _is_trained(path, recipe, card_of(model, data)):
        say(f"{path} is trained already; what is not measured of it is measured now")
        if world.first:
            _measure(path, model, Path(config["results"]), config["device"])
        return folder
    start = untrained(model, data, seed)
    settings = Settings(seed, config["device"], split(options)[1], task_for(start, model.get("task", "")))
    facts = {"model": model["name"], "method": model["pretrain"], "seed": seed, **options}
    with tracking(config["log"] if world.first else NONE, Path(config["results"]) / LOGS, folder.name, facts) as tracker:
        kept = Snapshots(config["snapshots"], lambda seen, own: _keep(folder, model, data, seen, own)) if config["snapshots"] else None
        told = replace(settings, tracker=tracker, snapshots=kept, world=world)
        engine = Engine(method, start, augmented(model, data), folder, told)
        result = engine.run()
    if not world.first:
        return folder
    weights = result.exports[method.phases()[-1].name]
    training = {"command": command, **recipe, "train_seconds": round(result.whole.seconds, 1), "samples": result.whole.samples}
    training["final"] = result.log[-1]
    where = {"data_path": str(Path(model["data"]).resolve())} if is_folder(model["data"]) else {}  # files are found again by their path
    card = {**card_of(model, data), **where, "training": training}
    digest = save_weights(path, _stored(model, weights), card)
    write_atomic(folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in result.log).encode())
    training_curves(result.log, folder / "curves.png")
    engine.file.unlink(missing_ok=True)  # whose end the weights are
    say(f"trained {model['name']} in {training['train_seconds']:.0f} s, sha256 {digest[:12]}..., in {folder}")
    _measure(path, model, Path(config["results"]), config["device"])
    return folder


def _is_trained(path: Path, recipe: Mapping[str, Any], card: Mapping[str, Any]) -> bool:
    """Whether a training of this recipe has left its weights there. **Raises**: UsageError where those of another are in the way."""
    if (path.parent / checkpoints.FILE).exists():
        return False  # a training that goes on, or that says itself that it is another
    if not path.exists():
        if any((path.parent / SNAPSHOTS).glob("*")):
            raise UsageError(f"{path.parent / SNAPSHOTS} holds weights of a former training; give another folder as out=, or remove it")
        return False
    told = read_card(path)
    known = json.loads(json.dumps({**card, **recipe}))
    if any({**told, **told.get("training", {})}.get(key) != value for key, value in known.items()):
        raise UsageError(f"{path} is of another training; give another folder as out=, or remove it")
    return True


def _stored(model: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as the model's files hold them: in its `stored` type, where it has one."""
    kind = STORED[model.get("stored", "float32")]
    return {name: value.to(kind) if value.is_floating_point() else value for name, value in tensors.items()}


def _measure(path: Path, model: dict[str, Any], results: Path, device: str) -> None:
    """What the model's `check` says of its weights and snapshots goes into the card, with pictures; what is there already is kept."""
    if "check" not in model:
        return
    card, store = read_card(path), Store(results)  # which keeps the features of real images
    training = card["training"]
    own, metric = {**model, "weights": str(path)}, model["check"]["metric"]
    if "check" not in training:
        training["check"] = quality(own, device, store)
        write_card(path, card)
    say(", ".join(f"{k} {v}" for k, v in training["check"].items()))
    if found := curve(path.parent / SNAPSHOTS, lambda weights: quality({**model, "weights": str(weights)}, device, store)):
        training["curve"] = found
        write_card(path, card)
        quality_curve(found, metric, path.parent / "quality.png")
    if (drawn := picture(own, device)) is not None:
        write_png(*by_class(*drawn), path.parent / "samples.png", SCALE)


def _keep(folder: Path, model: Mapping[str, Any], data: ImageData, images: int, weights: Mapping[str, Tensor]) -> None:
    """A snapshot as a weights file of its own, with the model's card."""
    (folder / SNAPSHOTS).mkdir(parents=True, exist_ok=True)
    path = folder / SNAPSHOTS / f"{images:010d}.safetensors"
    save_weights(path, _stored(model, weights), {**card_of(model, data), "training": {"samples": images}})


def command(args: Sequence[str]) -> str:
    """The command that repeats this training anywhere: without the arguments that only say where or how fast."""
    kept = [a for a in args if a.lstrip("+").partition("=")[0] not in ("results", "out", "threads", "device", "log")]
    return shlex.join(["python", "-m", "bench.train", *kept])


def run(config: dict[str, Any], args: Sequence[str] = ()) -> int:
    """The entry point; `args` are what was typed, for the card."""
    tune_process(config["threads"])
    check_tracker(config["log"])
    with joined(config["device"]) as world, alone_heard(world), world.as_one():
        return _run({**config, "device": device_of(config["device"])}, args, world)


def _run(config: dict[str, Any], args: Sequence[str], world: World) -> int:
    """Train a model or a student, as one of the processes of a world."""
    if config["method"] is None:
        given = [name for name in ("loss", "variant") if config[name]]
        if given:
            raise UsageError(
                f"only a student has a {' and a '.join(given)}; add method=NAME, e.g. method={example('method')}, or leave that out"
            )
        train_model(config, command(args), world)
        return 0
    model = load_model(config["model"], config["device"])
    suite = students_of(config.get("suite"), 0, "philox", model.data.name)
    if config["out"] is not None:
        raise UsageError("students go into the store, where sweeps find them; leave out=, or export one: python -m bench.export")
    fit = student_of(student_cell({**config, "fit_seed": config["seed"]}, suite), suite)
    fit = replace(fit, options={**fit.options, **typed(config)})
    store = Store(Path(config["results"]))
    with store.shared(world):
        model = with_teacher(model, store, config["device"], say)
    saying = telling(say, settings_lines(suite, fit.method, model.data.name))
    facts = {"model": model.name, "method": fit.method, "seed": fit.seed, **fit.options}
    with (
        store.shared(world),
        tracking(config["log"] if world.first else NONE, store.results / LOGS, f"{fit.method}-{fit.key(model)}", facts) as tracker,
    ):
        record = replace(fit, tracker=tracker).ensure(model, store, config["device"], saying)
    if record.get("diverged"):
        raise UsageError(f"{record['diverged']}; what its phases {', '.join(record['train_seconds'])} gave is in the store")
    say(f"{fit.label} is in the store: {seconds_taken(record) or 0.0:.0f} s of training, sha256 {record['sha256'][:12]}...")
    return 0


def main(args: Sequence[str]) -> int:
    return cli.entry("train", __doc__ or "", lambda config: run(config, args), args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
