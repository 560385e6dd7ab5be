"""A set of 50,000 x 3 x 32 x 32 levels that is made on the spot, a suite on it, and what a start with it costs beside a bare process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from support.repository import ROOT

TRAIN, HELDOUT, SHAPE = 50_000, 1_000, (3, 32, 32)
SIZE = TRAIN * 3 * 32 * 32  # bytes of the training split
SAMPLES = 20
# How a process says what it has needed so far: its peak of resident memory, its age, and its modules.
TELL = """
import json, os, sys, time

def tell(file):
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    ticks = float(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19])
    age = float(open("/proc/uptime").read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    modules = sorted(name for name, module in sys.modules.items() if getattr(module, "__file__", None))
    open(file, "w").write(json.dumps([int(status["VmHWM"].split()[0]) * 1024, age, modules]))
"""
MAKE = f"""
import numpy as np
rng = np.random.default_rng(0)
levels = np.lib.format.open_memmap("levels.npy", "w+", np.uint8, ({TRAIN + HELDOUT}, 3, 32, 32))
for part in range(0, len(levels), 1000):
    levels[part : part + 1000] = rng.integers(0, 256, (1000, 3, 32, 32), np.uint8)
np.save("labels.npy", rng.integers(0, 10, len(levels)))
"""
PLUGIN = f'''
"""A large data set, a teacher for it, and features that count how often they are asked for."""

import os
from pathlib import Path

import numpy as np
import torch

import fewstep
from metrics.families.frechet import Frechet
from metrics.metric import Shown
{TELL}
HERE = Path(__file__).parent


@fewstep.register("data", "many")
def many():
    levels, labels = np.load(HERE / "levels.npy", mmap_mode="r"), np.load(HERE / "labels.npy")
    train, heldout = fewstep.Scaled(levels[:{TRAIN}]), fewstep.Scaled(levels[{TRAIN}:])
    found = fewstep.ImageData("many", 10, train, labels[:{TRAIN}], heldout, labels[{TRAIN}:])
    return found.beside([HERE / "levels.npy", HERE / "labels.npy"])


class Corner:
    name, version, digest = "corner", 1, "c" * 64

    def __call__(self, images):
        with open(HERE / "asked", "a") as file:
            file.write(f"{{len(images)}}\\n")
        return images[:, :, :2, :2].reshape(len(images), -1).astype(np.float64), None


fewstep.register("extractor", "corner")(Corner)
fewstep.register("metric", "fd_corner", extractor="corner", shown=Shown())(Frechet)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 1)
        torch.nn.init.constant_(self.layer.weight, 0.1)
        torch.nn.init.zeros_(self.layer.bias)

    def forward(self, z, t):
        if len(z) == {SAMPLES} and "TELL" in os.environ:  # the first cell has begun
            tell(os.environ.pop("TELL"))
        return self.layer(z)


@fewstep.register("teacher", "tiny")
def tiny():
    return fewstep.as_teacher(Net(), "x0", "edm", {SHAPE}, sigma_range=(0.002, 80.0))
'''
BARE = f"""
import importlib, json, os, sys
from contextlib import suppress
{TELL}
import bench.sweep
from bench.execute.process import tune_process
tune_process(1)
for name in json.load(open(sys.argv[1]))[2]:
    if not name.startswith(("plugin_many", "__")):
        with suppress(Exception):
            importlib.import_module(name)
tell(sys.argv[2])
"""


@dataclass(frozen=True)
class Needed:
    """What a process had needed when it told: its peak of resident memory in bytes, and seconds since it was started."""

    memory: int
    seconds: float


def environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join([str(folder), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "FEWSTEP_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


def ran(folder: Path, *args: str, **more: str) -> None:
    done = subprocess.run([sys.executable, *args], cwd=folder, env=environment(folder) | more, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def prepare(folder: Path) -> None:
    """The levels (made in a process of their own, so that nothing of them stays in this one), the plugin, a model and a suite."""
    ran(folder, "-c", MAKE)
    (folder / "plugin_many.py").write_text(PLUGIN)
    for group, text in (
        ("model", "name: many\ndata: many\nteacher: tiny\n"),
        (
            "suite",
            f"name: many\nmodel: many\nsamples: {SAMPLES}\nreference: euler\nreference_steps: 2\n"
            "blocks:\n  - {solver: euler, grid: polynomial, end: sigma_min, nfe: 1, metrics: [fd_corner]}\n",
        ),
    ):
        (folder / "conf" / group).mkdir(parents=True)
        (folder / "conf" / group / "many.yaml").write_text(text)


def started(folder: Path, name: str, *args: str) -> Needed:
    """Run the suite, and say what the process had needed when its first cell began."""
    told = folder / name
    ran(folder, "-m", "bench.sweep", "suite=many", "plugins=plugin_many", "threads=1", *args, TELL=str(told))
    memory, seconds, _ = json.loads(told.read_text())
    return Needed(memory, seconds)


def bare(folder: Path, name: str) -> Needed:
    """What a process needs that imports the modules which `started` had imported, and does nothing."""
    ran(folder, "-c", BARE, str(folder / name), str(folder / f"bare-{name}"))
    memory, seconds, _ = json.loads((folder / f"bare-{name}").read_text())
    return Needed(memory, seconds)


def asked(folder: Path) -> list[int]:
    """How many images the extractor has been asked for, call by call."""
    return [int(line) for line in (folder / "asked").read_text().split()]
