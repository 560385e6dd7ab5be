"""Processes that help with a sweep: all of them work, they are waited for, and an error or the end of the sweep stops them."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from bench import sweep
from bench.execute import workers as workers_module
from bench.execute.helping import helping
from bench.execute.prepare import devices_of, workers_of
from bench.jobs.suite import expand
from bench.settings import cli
from bench.settings.compose import configure
from fewstep.errors import UsageError
from support.suites import BLOCK


def leave_pid(config) -> None:
    (Path(config["folder"]) / str(os.getpid())).touch()
    time.sleep(config["seconds"])
    (Path(config["folder"]) / f"{os.getpid()}.done").touch()


def pids(folder: Path) -> set[int]:
    return {int(p.name) for p in folder.iterdir() if p.suffix != ".done"}


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def until(true: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("count", [0, 2])
def test_helpers_are_waited_for(count: int, tmp_path: Path) -> None:
    with helping(leave_pid, count * [{"folder": str(tmp_path), "seconds": 0.2}]):
        pass
    found = pids(tmp_path)
    assert len(found) == count
    assert os.getpid() not in found
    assert {p.name for p in tmp_path.glob("*.done")} == {f"{pid}.done" for pid in found}


def test_an_error_stops_the_helpers(tmp_path: Path) -> None:
    def interrupted() -> None:
        with helping(leave_pid, [{"folder": str(tmp_path), "seconds": 600}]):
            while not pids(tmp_path):
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (pid,) = pids(tmp_path)
    until(lambda: gone(pid), 10)


def test_helpers_end_with_a_killed_sweep(tmp_path: Path) -> None:
    code = f"""import os, sys, time
from pathlib import Path
from bench.execute.helping import helping

{inspect.getsource(leave_pid)}
if __name__ == "__main__":
    with helping(leave_pid, [{{"folder": sys.argv[1], "seconds": 600}}]):
        pass
"""
    script, folder = tmp_path / "main.py", tmp_path / "pids"
    script.write_text(code)
    folder.mkdir()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    main = subprocess.Popen([sys.executable, str(script), str(folder)], env=env)
    try:
        until(lambda: pids(folder), 60)
    finally:
        main.kill()
        main.wait()
    (pid,) = pids(folder)
    until(lambda: gone(pid), 10)


def workers(suite: str, *overrides: str) -> int:
    config = configure("sweep", [f"suite={suite}", *overrides])
    return workers_of(config, expand(config["suite"], 0, "philox"))


def test_a_suite_says_how_many_unless_it_measures_latencies() -> None:
    assert (workers("digits_full"), workers("digits_full", "workers=1"), workers("digits_full", "workers=3")) == (2, 1, 3)
    assert (workers("digits"), workers("arena")) == (1, 1)
    with pytest.raises(UsageError, match="suite digits measures latencies, which other processes would disturb; use workers=1"):
        workers("digits", "workers=2")
    with pytest.raises(UsageError, match=r"suite.workers must be at least 1, got -1; e.g. workers=2"):
        workers("digits_full", "suite.workers=-1")


def on_gpus(suite: str, *overrides: str) -> int:
    """As `workers`, on a machine with GPUs, which configuring would ask for."""
    config = {**configure("sweep", [f"suite={suite}", *overrides]), "device": "cuda"}
    return workers_of(config, expand(config["suite"], 0, "philox"))


def test_several_gpus_have_a_worker_each_unless_latencies_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert devices_of("cuda") == ["cuda:0", "cuda:1", "cuda:2"]
    assert devices_of("cuda:1") == ["cuda:1"]
    assert devices_of("cpu") == ["cpu"]
    assert (on_gpus("digits_full"), on_gpus("digits_full", "workers=1"), on_gpus("arena"), on_gpus("digits")) == (3, 1, 3, 1)
    assert workers("arena") == 1
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert devices_of("cuda") == ["cuda"]
    assert (on_gpus("arena"), on_gpus("digits_full")) == (1, 2)


def test_helpers_take_the_devices_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The sweep's own process has the first; each cell is worked on where its helper is."""
    told: list[str] = []

    @contextmanager
    def helped(target, configs):
        told.extend(config["device"] for config in configs)
        yield

    monkeypatch.setattr(workers_module, "helping", helped)
    monkeypatch.setattr(sweep, "devices_of", lambda device: [device, "cuda:1"])
    args = ["suite=smoke", BLOCK.replace("nfe:1", "nfe:[1,2,3,4]"), "suite.samples=20", f"results={tmp_path}", "threads=1", "workers=4"]
    assert cli.entry("sweep", "", sweep.run, args) == 0
    assert told == ["cuda:1", "cpu", "cuda:1"]
