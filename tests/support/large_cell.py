"""A cell of many samples of 3 x 32 x 32 from a closed form: the memory that it takes, and what kills in the middle of it cost.

python large_cell.py memory FOLDER COUNT         peak memory above the start, in MB
python large_cell.py kills FOLDER COUNT KILLS    in forked children that are killed at random instants
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from bench.evaluate.judge import Judge
from bench.evaluate.measuring import measure_all
from bench.execute.process import tune_process
from bench.jobs.models import Model
from bench.jobs.resolve import Job, resolve
from bench.jobs.samples import Bound, ensure_samples
from bench.jobs.solutions import truth_of
from bench.jobs.suite import EXACT, Suite
from bench.store import parts
from bench.store.artefacts import Store
from bench.store.cell import Cell
from bench.store.parts import Samples
from fewstep.analytic import Gaussian
from fewstep.data.arrays import parts as read
from fewstep.files import making
from metrics.reference import build_reference
from support.tiny import mixture_data

SHAPE = (3, 32, 32)
STEPS = 3


def model() -> Model:
    """A Gaussian whose elements have standard deviations from 0.1 to 1."""
    std = torch.linspace(0.1, 1.0, 3 * 32 * 32, dtype=torch.float64).view(SHAPE)
    teacher = Gaussian(torch.zeros(SHAPE, dtype=torch.float64), std, SHAPE)
    return Model("large", teacher, teacher.identity(), mixture_data()[1], {})


def suite_of(count: int) -> Suite:
    return Suite("large", count, 0, "philox", EXACT, 4, {}, ())


def job_of(count: int) -> Job:
    return resolve(Cell("teacher", "euler", "polynomial", "sigma_min", nfe=STEPS), suite_of(count), model())


def sampled(folder: Path, count: int, said: list[str] | None = None) -> Samples:
    """The samples of the cell, from the store in `folder` or made now."""
    return ensure_samples(Bound(job_of(count), model(), Store(folder), "cpu"), 250, (said if said is not None else []).append)


def digest(samples: Samples) -> str:
    """SHA-256 of all images and labels."""
    found = hashlib.sha256(samples.labels.tobytes())
    for part in read(samples.images):
        found.update(part.tobytes())
    return found.hexdigest()


def status(field: str) -> float:
    """A field of this process's memory, in MB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) / 1024


def memory(folder: Path, count: int) -> dict[str, float]:
    """Peak memory in MB above the start: of sampling, and of measuring against the exact flow too."""
    tune_process(1)
    sampled(folder / "warm", 4)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    started, before = time.monotonic(), status("VmRSS")
    samples = sampled(folder, count)
    made, seconds = status("VmHWM") - before, time.monotonic() - started
    one, store = model(), Store(folder)
    truth, error = truth_of(suite_of(count), 1.0, one).ensure(store, "cpu", 250, print)
    judge = Judge(build_reference(one.data, []), {})
    found = measure_all(["endpoint_error", "psnr_teacher"], samples, truth, job_of(count).key, judge, store, print, error)
    values = {name: getattr(m, "value", str(m)) for name, m in found.items()}
    return {"sampling": made, "all": status("VmHWM") - before, "seconds": seconds, **values}


def child(folder: Path, count: int, log: Path) -> int:
    """The process id of a fork that makes the samples and notes each part that it begins."""
    pid = os.fork()
    if pid:
        return pid
    original = parts.write_part

    def write_part(path: Path, *rest) -> None:
        with open(log, "a") as f:
            f.write(f"{path.name}\n")
        original(path, *rest)

    parts.write_part = write_part
    try:
        sampled(folder, count)
        os._exit(0)
    except BaseException as err:
        print(err, file=sys.stderr)
        os._exit(1)


def kills(folder: Path, count: int, wanted: int) -> dict[str, object]:
    """Digests of an interrupted and of an uninterrupted run, and the parts that were begun in all against those needed."""
    started = time.monotonic()
    os.waitpid(child(folder / "whole", count, folder / "whole.log"), 0)
    seconds, needed = time.monotonic() - started, len((folder / "whole.log").read_text().splitlines())
    instants, done, begun, rounds = random.Random(0), 0, 0, 0
    while done < wanted:
        place, log, rounds = folder / str(rounds), folder / f"{rounds}.log", rounds + 1
        while True:
            pid = child(place, count, log)
            time.sleep(instants.uniform(0, 2 * seconds / wanted) if done < wanted else 0)
            if done < wanted:
                os.kill(pid, signal.SIGKILL)
            _, state = os.waitpid(pid, 0)
            if os.WIFEXITED(state):
                assert os.WEXITSTATUS(state) == 0
                break
            done += 1
        begun += len(log.read_text().splitlines())
    whole, last = sampled(folder / "whole", count), sampled(place, count)
    records = [Store(folder / name).read("samples", job_of(count).key) for name in ("whole", place.name)]
    same = {"whole": digest(whole), "killed": digest(last)}
    passes = [record["network_passes"] for record in records]
    return {**same, "begun": begun, "needed": needed * rounds, "kills": done, "passes": passes, "files": [len(r["files"]) for r in records]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, folder, count, *rest = sys.argv[1:]
    with making(Path(folder)) as place:
        print(json.dumps(memory(place, int(count)) if what == "memory" else kills(place, int(count), int(rest[0]))))
