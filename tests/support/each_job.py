"""Every job of a suite from its text in a process of its own, against what the sweep gives: both with budgets that train next to nothing.

python each_job.py SUITE FOLDER [key=value ...]
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from bench import job, sweep
from bench.jobs.session import Session
from bench.jobs.spec import read_spec
from bench.jobs.work import do
from bench.settings import cli
from bench.settings.compose import configure
from bench.store.artefacts import Store
from bench.store.measures import TIMINGS
from bench.store.rows import coordinates, read_rows
from fewstep.plugins import entries

BUDGET = {"batches": 2, "batch_size": 4, "start": 2, "count": 16, "nodes": 6, "teacher_steps": 2, "warmup": 8}


def smallest(suite: dict) -> list[str]:
    """Options that leave next to nothing of every training of a suite."""
    blocks = [{**suite.get("base", {}), **block} for block in suite["blocks"]]
    methods = {name for block in blocks for name in _listed(block.get("method", []))} - {"naive", "teacher"}
    solvers = {name for block in blocks for name in _listed(block.get("solver", []))} & set(entries("solver"))
    found = []
    for kind, names in (("distiller", methods), ("solver", solvers)):
        for name in sorted(names):
            fields = entries(kind)[name].fields
            found += [f"++suite.options.{name}.{field}={value}" for field, value in BUDGET.items() if field in fields]
    return found


def _listed(value: object) -> list:
    return value if isinstance(value, list) else [value]


def in_a_process(folder: Path, text: str) -> int:
    """The exit code of a child that does one job and knows nothing but its text and the folder."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        with open(os.devnull, "w") as quiet:
            os.dup2(quiet.fileno(), 2)
            do(Session(Store(folder), "cpu", 250, lambda line: None), read_spec(text))
        code = 0
    finally:
        os._exit(code)


def comparable(row: dict) -> dict:
    """What two runs of one row have in common."""
    kept = {name: value for name, value in row.items() if name not in ("date", "checksum", "train_seconds")}
    if row["metric"] in TIMINGS:
        kept |= {"value": None, "samples": None}
    dropped = ("training", "load_of_others")
    return {**kept, "protocol": {name: value for name, value in row["protocol"].items() if name not in dropped}}


def main(suite: str, folder: Path, *given: str) -> int:
    args = [f"suite={suite}", "threads=1", *smallest(configure("sweep", [f"suite={suite}"])["suite"]), *given]
    whole, parts, file = folder / "whole", folder / "parts", folder / "jobs.jsonl"
    assert cli.entry("job", "", job.run, [*args, f"results={parts}", f"out={file}"]) == 0
    lines, started = file.read_text().splitlines(), time.monotonic()
    failed = [read_spec(line).name for line in tqdm(lines, unit="job") if in_a_process(parts, line)]
    apart = time.monotonic() - started
    cli.entry("sweep", "", sweep.run, [*args, f"results={whole}"])
    ours, theirs = ({coordinates(r): comparable(r) for r in read_rows(f / suite / "runs.jsonl")[0]} for f in (parts, whole))
    others = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
    told = {"jobs": len(lines), "failed": failed, "rows": len(theirs), "other": len(others), "seconds_apart": round(apart)}
    print(json.dumps(told))
    for key in others[:5]:
        print(key)
    return 1 if failed or others else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
