"""Several processes that torchrun starts do each large job together, and give what one process gives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from bench.store.rows import coordinates, read_rows

BLOCKS = (
    "suite.blocks=[{solver:euler,grid:polynomial,end:sigma_min,nfe:2,metrics:[fd_digits]},"
    "{solver:gits,grid:polynomial,end:sigma_min,nfe:2,metrics:[fd_digits]},{method:cd,nfe:1,metrics:[fd_digits]}]"
)
SUITE = ["suite=smoke", "threads=1", "batch=50", "suite.samples=2100", "suite.options.gits.warmup=8", BLOCKS]
CD = "++suite.options.cd={batches: 3, batch_size: 8, accumulate: 2}"


def ran(processes: int, *args: str) -> subprocess.CompletedProcess:
    """A command in one process, or in several under torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}", "-m"]
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*start, *args], capture_output=True, text=True, env=own, timeout=280, check=False)


def test_two_processes_give_the_samples_and_rows_of_one(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for processes, folder in enumerate(folders, 1):
        done = ran(processes, "bench.sweep", *SUITE, CD, f"results={folder}")
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = ({coordinates(row): row for row in read_rows(f / "smoke" / "runs.jsonl")[0]} for f in folders)
    assert one.keys() == two.keys()
    for key, row in one.items():
        assert row["key"] == two[key]["key"]
        if row["method"] != "cd":  # whose gradients are summed in another order
            np.testing.assert_allclose(two[key]["value"], row["value"], rtol=1e-6)  # the stated bar
    for path in sorted((folders[0] / ".store" / "samples").iterdir()):
        files = [sorted((f / ".store" / "samples" / path.name).glob("samples-*")) for f in folders]
        told = json.loads((path / "record.json").read_text())
        if told["spec"]["fit"] is None:
            assert len(files[0]) > 1, "a part for each process"
            for mine, theirs in zip(*files, strict=True):
                a, b = load_file(mine), load_file(theirs)
                assert all(torch.equal(a[name], b[name]) for name in a)
    (mine,), (theirs,) = (
        [p for p in (f / ".store" / "fit").iterdir() if "cd" in json.loads((p / "record.json").read_text())["spec"].get("method", "")]
        for f in folders
    )
    weights, others = load_file(mine / "weights.safetensors"), load_file(theirs / "weights.safetensors")
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=1e-4, atol=1e-5)  # three steps of Adam, whose sums are in another order
    records = [json.loads((p / "record.json").read_text()) for p in (mine, theirs)]
    assert records[0]["passes"] == records[1]["passes"]


def test_a_failure_in_one_process_is_the_cells(tmp_path: Path) -> None:
    """And the sweep goes on with the others."""
    plugin = tmp_path / "broken.py"
    plugin.write_text(
        "import os\nfrom fewstep import plugins\n\n"
        "@plugins.register('wrapper', 'broken', 'a test')\n"
        "def broken(d):\n    return d / 0 if os.environ.get('RANK') == '1' else d\n"
    )
    block = "suite.blocks=[{solver:euler,grid:logsnr,end:sigma_min,nfe:2,wrap:[broken,clip],metrics:[fd_digits]}]"
    own = ["suite=smoke", "threads=1", "suite.samples=2100", block, "plugins=broken", f"results={tmp_path / 'r'}"]
    os_path = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{os_path}"
    try:
        done = ran(2, "bench.sweep", *own)
    finally:
        os.environ["PYTHONPATH"] = os_path
    found = {(row["wrap"], row["metric"]): row["status"] for row in read_rows(tmp_path / "r" / "smoke" / "runs.jsonl")[0]}
    assert found[("broken", "cell")] == "failed", done.stderr[-2000:]
    assert found[("clip", "fd_digits")] == "ok"


def test_a_teacher_is_trained_by_two(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    quick = "model.check={solver: euler, grid: polynomial, end: zero, nfe: 1, metric: fd_digits, samples: 20}"
    for processes, folder in enumerate(folders, 1):
        done = ran(processes, "bench.train", "model=digits", "batches=3", "accumulate=2", "threads=1", quick, f"out={folder}")
        assert done.returncode == 0, done.stderr[-2000:]
    (one,), (two,) = (list(folder.glob("*.safetensors")) for folder in folders)
    a, b = load_file(one), load_file(two)
    for name, value in a.items():
        # Three steps of Adam on sums in another order; dropout of the second process has masks of its own.
        torch.testing.assert_close(b[name], value, rtol=0, atol=2e-2)
