"""python -m bench.measure: score images against real ones, or against published statistics of them.

    python -m bench.measure images=DIR reference=DIR               a table of numbers
    python -m bench.measure images=DIR reference=digits out=scores.jsonl
    python -m bench.measure images=cifar10 split=heldout reference=cifar10 metrics=fid,kid
    python -m bench.measure images=DIR against=cifar10-32x32.npz metrics=fid

    python -m bench.measure images=DIR targets=DIR                 each image against the true one of the same file name
    python -m bench.measure images=DIR targets=cifar10 task=superres_x4 metrics=psnr_y,fid reference=cifar10
    python -m bench.measure targets=cifar10 task=superres_x4 samples=100 export=DIR     what another program needs to do that task

Images are PNG, JPEG or WebP files, loose or in a subfolder for each class, which are made as large as the reference's; or a data set, by
its name. They are read and measured part by part, and their features stay in the results folder: a command that was stopped goes on where
it was. Metrics that compare with a teacher's own solutions have none here, and say so. Outputs of other programs against true images:
docs/paired-metrics.md.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from bench.evaluate.external import HELD, Compared, export
from bench.evaluate.judge import Judge, judge_by, judge_of_pairs, make_judge
from bench.evaluate.measuring import features_of, measured, with_pairs
from bench.evaluate.references import ensure_space
from bench.execute.process import tune_process
from bench.jobs.models import is_folder, load_data
from bench.settings.cli import entry
from bench.store.artefacts import Store
from bench.store.world import World, alone_heard, device_of, joined
from fewstep.checks import check_count
from fewstep.data.arrays import Images, Picked, parts
from fewstep.data.folders import image_folder, whole
from fewstep.data.images import ImageData
from fewstep.errors import UsageError, near_misses
from fewstep.files import write_atomic
from fewstep.plugins import get
from fewstep.plugins import made as made_tasks
from fewstep.progress import say
from fewstep.tasks.task import Paired
from metrics import Evidence, Measurement, declared, metric_named, metrics_by_name, to_uint8
from metrics.families.restoration.protocols import by_protocol, protocol_text
from metrics.features.statistics import read_statistics
from metrics.metric import Pairs
from metrics.pixels import quantised

SPLITS = ("all", "train", "heldout")


def labels_as(real: ImageData, own: ImageData) -> np.ndarray | None:
    """The labels of images in the reference's order of classes, by the names of their subfolders (of a data set without names, its
    numbers); None where the images or the reference have none. **Raises**: UsageError for a subfolder that is no class of it."""
    if not (own.class_names and real.classes):
        return None
    names = real.class_names or tuple(map(str, range(real.classes)))
    if strange := [name for name in own.class_names if name not in names]:
        raise UsageError(f"'{strange[0]}' is no class of {real.name}; name subfolders {', '.join(names[:10])}{', ...' * (len(names) > 10)}")
    place = np.array([names.index(name) for name in own.class_names])
    return place[whole(own)[1]]


@dataclass(frozen=True, eq=False)
class Scored:
    """Images to score and their labels; None where there are none that the reference knows. `pairs`: what each is compared with."""

    images: Images
    labels: np.ndarray | None
    pairs: Pairs | None = None

    def key(self) -> str:
        """SHA-256 of the images as a file holds them: the address of their features."""
        found = hashlib.sha256(repr(self.images.shape).encode())
        for part in parts(self.images):
            found.update(to_uint8(part).tobytes())
        return found.hexdigest()[:32]


def scored(config: dict[str, Any], real: ImageData | None) -> Scored:
    """The images that a command names: `samples` of them, of one split or of both. **Raises**: UsageError where they do not go together."""
    split, count = config["split"], config["samples"]
    if split not in SPLITS:
        raise UsageError(f"split must be {', '.join(SPLITS)}, got '{split}'{near_misses(split, SPLITS)}")
    folder = is_folder(config["images"])
    own = image_folder(config["images"], None if real is None else real.shape) if folder else load_data(config["images"])
    if real is not None and own.shape != real.shape:
        raise UsageError(f"{own.name} has images of {list(own.shape)} and {real.name} of {list(real.shape)}; both must agree")
    everything, labels = whole(own)
    cut = len(own.train_x)
    first, last = {"all": (0, len(everything)), "train": (0, cut), "heldout": (cut, len(everything))}[split]
    if not isinstance(count, int) or isinstance(count, bool) or not (count == 0 or 2 <= count <= last - first):
        raise UsageError(f"samples is 0 for all, or 2 to {last - first}, the images that are there; got {count}")
    index = np.arange(first, first + count if count else last)
    known = labels if real is not None and own.digest() == real.digest() else None
    if known is None and real is not None and folder:
        known = labels_as(real, own)
    return Scored(Picked(everything, index), None if known is None else known[index])


def task_of(config: dict[str, Any], targets: ImageData | None) -> Paired | None:
    """The task that made the conditions, bound to the data set of the true images; None where none is named.

    **Raises**: UsageError for one without ground truth.
    """
    if not config["task"]:
        return None
    task = get("task", config["task"]).make()
    if not isinstance(task, Paired):
        paired = [name for name, made in made_tasks("task").items() if isinstance(made, Paired)]
        raise UsageError(f"task '{config['task']}' has no true images to compare with; take one of {', '.join(paired)}")
    if targets is None:
        raise UsageError(
            f"task={config['task']} makes the conditions of a data set; give targets=NAME, or condition=DIR in place of a task"
        )
    return task.bound(targets)


def _stems(folder: str) -> list[str]:
    """The names of the files in a folder, without endings."""
    return [file.stem for file in Path(folder).iterdir()] if Path(folder).is_dir() else []


def paired(config: dict[str, Any], real: ImageData | None) -> Scored:
    """The images of a folder, each with the true image of its name. **Raises**: UsageError where they do not go together."""
    alone = is_folder(config["targets"]) and not config["task"]  # with a task a folder is a data set, whose images have numbers
    targets = None if alone else load_data(config["targets"])
    if config["split"] != "all" or config["samples"]:
        raise UsageError("with targets every image of the folder is measured; leave split and samples out")
    told = {name: config[name] for name in ("condition", "mask", "suffix")}
    if (task := task_of(config, targets)) is not None and (given := [name for name in ("condition", "mask") if told[name]]):
        raise UsageError(f"task={config['task']} makes the conditions itself; leave {given[0]} out")
    if task is not None and is_folder(config["targets"]) and set(_stems(config["targets"])) & set(_stems(config["images"])):
        raise UsageError(f"{config['targets']} holds images of the names in {config['images']}, which are compared by name; leave task out")
    images, pairs = Compared(config["images"], config["targets"] if targets is None else targets, task, **told).read()
    if real is not None and images.shape[1:] != real.shape:
        raise UsageError(
            f"{config['images']} has images of {list(images.shape[1:])} and {real.name} of {list(real.shape)}; both must agree"
        )
    return Scored(images, None, pairs)


def _exported(config: dict[str, Any]) -> int:
    """Write the conditions of a task. **Raises**: UsageError for a task or data set that has none."""
    if not config["targets"] or not config["task"]:
        raise UsageError("export= writes the conditions of a task on a data set; type targets=NAME task=NAME export=DIR")
    data = load_data(config["targets"])
    task, count = task_of(config, data), config["samples"] or len(data.heldout_x)
    if type(count) is not int or not 1 <= count <= len(data.heldout_x):
        raise UsageError(f"samples is 0 for all, or 1 to {len(data.heldout_x)}, the held-out images; got {count}")
    assert task is not None
    folders = export(task, count, Path(config["export"]))
    places = ", ".join(f"{config['export']}/{name}" for name in folders)
    print(f"{count} images in each of {places}")
    print(f"measure what is made of them: python -m bench.measure images=DIR targets={config['targets']} task={config['task']}")
    return 0


def _judge(config: dict[str, Any], names: Sequence[str], own: Scored, real: ImageData | None, store: Store) -> Judge:
    if real is not None:
        return make_judge(real, None, set(names), store, config["device"])
    if not config["against"]:
        return judge_of_pairs(config["targets"], own.images.shape[1:], set(names), store)
    return judge_by(read_statistics(config["against"]), own.images.shape[1:], set(names), store, config["device"], bool(config["metrics"]))


def run(config: dict[str, Any]) -> int:
    """The entry point."""
    tune_process(config["threads"])
    if config["export"]:
        return _exported(config)
    both, none = config["reference"] and config["against"], not (config["reference"] or config["against"] or config["targets"])
    if not config["images"] or both or none:
        lacks = "no images given" if not config["images"] else "give either reference or against"
        raise UsageError(f"{lacks}; type python -m bench.measure images=DIR reference=DIR (or against=FILE.npz, or targets=DIR)")
    if alone := [name for name in ("task", "condition", "mask", "suffix", "protocols") if config[name] and not config["targets"]]:
        raise UsageError(f"{alone[0]} is of images that are compared with true ones; give these with targets=DIR")
    asked = [name.strip() for name in config["metrics"].split(",") if name.strip()]
    names = asked or _applying(bool(config["targets"]), bool(config["reference"] or config["against"]))
    for name in names:
        metric_named(name)
    for name in ("border", "crop"):
        check_count(name, config[name], 0, f"it is a number of pixels, e.g. {name}=4")
    with joined(config["device"]) as world, alone_heard(world):
        return _run({**config, "device": device_of(config["device"])}, names, world)


def _applying(targets: bool, reference: bool) -> list[str]:
    """The metrics that are measured where none is named: against true images, and against a set of real ones."""
    found = {name: declared(metric) for name, metric in metrics_by_name().items()}
    return [name for name, told in found.items() if not told.on_request and (targets if told.needs_target else reference)]


def _run(config: dict[str, Any], names: Sequence[str], world: World) -> int:
    """Measure as one of the processes of a world, which compute features together; the first does the rest."""
    real = load_data(config["reference"]) if config["reference"] else None
    own = paired(config, real) if config["targets"] else scored(config, real)
    unlabelled = [
        name for name in names if own.labels is None and (real is None or real.classes) and declared(metric_named(name)).needs_labels
    ]
    names = [name for name in names if name not in unlabelled]
    store = Store(Path(config["results"]))
    judge = _judge(config, names, own, real, store)
    labels = np.zeros(len(own.images), np.int64) if own.labels is None else own.labels
    images, wanted = quantised(own.images), {e.name for e in judge.extractors_of(names)}
    Evidence(images, labels, {}, {}, None, judge.reference, own.images)  # which looks at the range of the images before any work
    with world.as_one(), store.shared(world):
        features, logits, _ = features_of(images, own.key(), wanted, judge, store, say) if wanted else ({}, {}, {})
        for name in sorted(wanted) if world.size > 1 and real is not None else ():
            ensure_space(judge.reference, judge.extractors[name], store)  # which the first alone would compute else
    if not world.first:
        return 0
    evidence = Evidence(images, labels, features, logits, None, judge.reference, own.images, range_known=True)
    evidence = with_pairs(evidence, own.pairs)
    found = measured(names, evidence, judge, {"border": config["border"], "crop": config["crop"]})
    found |= dict.fromkeys(unlabelled, "it compares labels, and the images are in no subfolders")
    _tell(config, found, own, judge)
    if config["protocols"]:
        print(f"\n{protocol_text(by_protocol(replace(evidence, raw=None)))}")
    return 0


def _with_pairs(name: str, own: Scored) -> dict[str, Any]:
    """What a protocol says of the true images of a metric that compares with them."""
    return {"pairs": dict(own.pairs.told)} if own.pairs is not None and declared(metric_named(name)).needs_target else {}


def _tell(config: dict[str, Any], found: dict[str, Measurement | str], own: Scored, judge: Judge) -> None:
    """The table, what was not measured and why, and the file of numbers."""
    numbers = {name: m for name, m in found.items() if isinstance(m, Measurement)}
    errors = {name: "" if m.std_error is None else f"{m.std_error:.2g}" for name, m in numbers.items()}
    notes = {name: "fewer images than features" if m.protocol.get("rank_deficient") else "" for name, m in numbers.items()}
    if config["border"] or config["crop"]:
        paired = [name for name in numbers if declared(metric_named(name)).needs_target]
        notes |= {name: "of whole images" for name in paired if "border" not in vars(metric_named(name))}
    cells = [[name, f"{m.value:.5g}", errors[name], metric_named(name).unit, notes[name]] for name, m in numbers.items()]
    real = judge.reference
    theirs = f"{len(real.train_x)} training images" if len(real.train_x) else "published statistics"
    against = [f"{real.name} ({theirs})"] if config["reference"] or config["against"] else []
    against += [f"the true image of each in {config['targets']}"] if config["targets"] else []
    if own.pairs is not None and (held := own.pairs.told.get(HELD)):
        against[-1] += f", {int(own.pairs.groups.max()) + 1} of {held} held-out images"
    print(f"{len(own.images)} images of {config['images']} against {' and '.join(against)}")
    print(tabulate(cells, ["metric", "value", "standard error", "unit", ""], tablefmt="simple", disable_numparse=True))
    for name, reason in found.items():
        if not isinstance(reason, Measurement):
            say(f"{name}: not measured: {reason}")
    if config["out"] is not None:
        protocols = {name: {**m.protocol, **_with_pairs(name, own)} for name, m in numbers.items()}
        lines = [{"metric": name, **vars(m), "value": float(m.value), "protocol": protocols[name]} for name, m in numbers.items()]
        write_atomic(Path(config["out"]), "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode())


def main(args: Sequence[str]) -> int:
    return entry("measure", __doc__ or "", run, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
