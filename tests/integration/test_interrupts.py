"""What ends a command early loses nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import sweep
from bench.settings import cli
from support.repository import ROOT
from support.suites import BLOCK


def test_a_full_disk_loses_nothing(capsys, tmp_path, monkeypatch) -> None:
    """ENOSPC while a cell's samples are written: one line, exit code 2, no half artefact, and the next run completes."""
    real, calls = os.fsync, []

    def full(handle: int) -> None:
        name = os.readlink(f"/proc/self/fd/{handle}")
        if "samples-00000000.safetensors" in name and not calls:
            calls.append(name)
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    args = ["suite=smoke", BLOCK, "suite.samples=20", f"results={tmp_path}", "threads=1"]
    assert cli.entry("sweep", "", sweep.run, args) == 2
    assert calls
    assert "no space left on the device; finished work is kept" in capsys.readouterr().err
    assert not list((tmp_path / ".store").glob(".making-*"))
    assert cli.entry("sweep", "", sweep.run, args) == 0


@pytest.mark.parametrize(("number", "code", "line"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_a_signal_ends_a_sweep_in_one_line(number: int, code: int, line: str, tmp_path) -> None:
    command = [sys.executable, "-m", "bench.sweep", "suite=smoke", f"results={tmp_path}", "threads=1", "suite.options.cd.batches=100000"]
    # A test run in the background may have Ctrl-C ignored, which children inherit.
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".store/samples/*/record.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"{line}: finished work is kept; run the same command to go on" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_training_with_its_checkpoint(number: int, code: int, tmp_path) -> None:
    """Long before one is due by time; the same command goes on from it, and refuses nothing."""
    args = [sys.executable, "-m", "bench.train", "model=digits", "batches=100000", f"results={tmp_path}", "threads=1"]
    process = subprocess.Popen(args, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stderr is not None
    said = ""
    while "train:" not in said:  # its bar, when some batches are done
        said += process.stderr.read(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.splitlines()[-1].endswith("finished work is kept; run the same command to go on")
    assert "Traceback" not in err
    assert (tmp_path / "train" / "digits-seed0" / "checkpoint.safetensors").exists()


LOST = """import os, signal, sys, time, weakref
from bench.settings.cli import guarded

class Thing:
    pass

signal.signal(signal.SIGINT, signal.default_int_handler)  # a process that was started in the background ignores it

def run():
    thing = Thing()
    told = weakref.ref(thing, lambda _: os.kill(os.getpid(), getattr(signal, sys.argv[1])))
    del thing
    time.sleep(60)
    return 0

sys.exit(guarded(run))
"""


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_in_the_middle_of_a_callback_is_answered(number: str, code: int, tmp_path: Path) -> None:
    """Python prints what a callback of a weak reference raises, and goes on."""
    script = tmp_path / "lost.py"
    script.write_text(LOST)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script), number], capture_output=True, text=True, timeout=50, env=env, check=False)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
