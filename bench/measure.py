"""python -m bench.measure: score a folder of images against real ones with every metric that applies.

    python -m bench.measure images=DIR reference=DIR               a table of numbers
    python -m bench.measure images=DIR reference=digits out=scores.jsonl

Images are PNG, JPEG or WebP files, loose or in a subfolder for each class; they are made as large as the reference's. Metrics that compare
with a teacher's own solutions have none here, and say so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from bench.evaluate.judge import make_judge
from bench.evaluate.measuring import measured
from bench.execute.process import tune_process
from bench.jobs.models import load_data
from bench.settings.cli import entry
from fewstep.data.folders import image_folder, whole
from fewstep.data.images import ImageData
from fewstep.errors import UsageError
from fewstep.files import write_atomic
from fewstep.progress import say
from metrics import Measurement, declared, metric_named, metrics_by_name


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


def run(config: dict[str, Any]) -> int:
    """The entry point."""
    tune_process(config["threads"])
    for field in ("images", "reference"):
        if not config[field]:
            raise UsageError(f"no {field} given; type python -m bench.measure images=DIR reference=DIR")
    names = [name.strip() for name in config["metrics"].split(",") if name.strip()] or list(metrics_by_name())
    for name in names:
        metric_named(name)
    real = load_data(config["reference"])
    own = image_folder(config["images"], real.shape)
    images, labels = whole(own)[0][:], labels_as(real, own)
    unlabelled = [name for name in names if labels is None and real.classes and declared(metric_named(name)).needs_labels]
    labels = np.zeros(len(images), np.int64) if labels is None else labels
    names = [name for name in names if name not in unlabelled]
    judge = make_judge(real, None, set(names))
    found = measured(names, judge.evidence({"images": images, "labels": labels}), judge)
    found |= dict.fromkeys(unlabelled, "it compares labels, and the images are in no subfolders")
    numbers = {name: m for name, m in found.items() if isinstance(m, Measurement)}
    errors = {name: "" if m.std_error is None else f"{m.std_error:.2g}" for name, m in numbers.items()}
    lines = [[name, f"{m.value:.5g}", errors[name], metric_named(name).unit] for name, m in numbers.items()]
    print(f"{len(images)} images of {config['images']} against {real.name} ({len(real.train_x)} training images)")
    print(tabulate(lines, ["metric", "value", "standard error", "unit"], tablefmt="simple", disable_numparse=True))
    for name, reason in found.items():
        if not isinstance(reason, Measurement):
            say(f"{name}: not measured: {reason}")
    if config["out"] is not None:
        told = [{"metric": name, **vars(m), "value": float(m.value), "protocol": dict(m.protocol)} for name, m in numbers.items()]
        write_atomic(Path(config["out"]), "".join(json.dumps(line, sort_keys=True) + "\n" for line in told).encode())
    return 0


def main(args: Sequence[str]) -> int:
    return entry("measure", __doc__ or "", run, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
