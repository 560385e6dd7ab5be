"""A fetch that is killed at any moment leaves nothing that passes for the file, and the next one goes on to it."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.repository import ROOT
from support.serving import client, listed, publishing, wheel

DATA = np.random.RandomState(0).bytes(2_000_000)
SHA = hashlib.sha256(DATA).hexdigest()
CODE = """
import sys
from pathlib import Path
from bench import fetch
from fewstep import assets
assets.LIST = Path(sys.argv[1])
sys.exit(fetch.main(sys.argv[2:]))
"""


def started(place: Path, *args: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FEWSTEP_OFFLINE": "0", "FEWSTEP_CACHE": str(place / "cache"), "HOME": str(place)}
    env |= {"FEWSTEP_DATA": str(place / "data"), "PATH": f"{place / 'bin'}:{env['PATH']}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CODE, str(place / "assets.json"), *args]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def killed(place: Path, begun: Callable[[], int], after: float) -> bool:
    """Whether the fetch was killed before it was done, `after` seconds after it began to get something."""
    before = begun()
    process = started(place, "what=own")
    while process.poll() is None and begun() == before:
        time.sleep(0.01)
    time.sleep(after)
    live = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL) if live else None
    process.communicate()
    return live


def done(place: Path) -> str:
    process = started(place, "what=own")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return err


def check(place: Path) -> None:
    """What has the file's name is the file."""
    file = place / "cache" / "fetched" / "a.bin"
    assert not file.exists() or file.read_bytes() == DATA


def kills(place: Path, count: int, begun: Callable[[], int], longest: float) -> None:
    """Kills at moments from the first to one when it would be nearly done."""
    rng, early = random.Random(0), 0
    for _ in range(count):
        early += killed(place, begun, rng.uniform(0, longest))
        check(place)
    assert early
    done(place)
    assert (place / "cache" / "fetched" / "a.bin").read_bytes() == DATA
    left = [path.name for path in (place / "cache" / "fetched").iterdir() if not path.name.endswith(".lock")]
    assert left == ["a.bin"]


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_downloads_go_on(count: int, tmp_path: Path) -> None:
    with publishing(files={"/a.bin": DATA}, pause=0.04) as publisher:  # 1.2 s altogether
        listed(tmp_path, files=[{"file": "a.bin", "urls": [f"{publisher.url}/a.bin"], "size": len(DATA), "sha256": SHA}])
        kills(tmp_path, count, lambda: len(publisher.asked), 0.5)
        sent = [int((wanted or "bytes=0-").removeprefix("bytes=").rstrip("-")) for _, wanted in publisher.asked]
        assert sent == sorted(sent)  # nothing that was there was asked for again
        assert sent[-1] > 0


@pytest.mark.parametrize("count", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_packages_are_got_again(count: int, tmp_path: Path) -> None:
    files = client(tmp_path, "pip", 'head -c 1000000 "$FILES/w" > a.whl; sleep 0.3; cp "$FILES/w" a.whl')
    (files / "w").write_bytes(wheel({"own/a.bin": DATA}))
    listed(tmp_path, files=[{"file": "a.bin", "package": ["pip", "own==1.0", "own/a.bin"], "size": len(DATA), "sha256": SHA}])
    args = files / "pip.args"
    kills(tmp_path, count, lambda: args.stat().st_size if args.exists() else 0, 0.4)


def test_two_at_once_get_it_once(tmp_path: Path) -> None:
    with publishing(files={"/a.bin": DATA}, pause=0.01) as publisher:
        listed(tmp_path, files=[{"file": "a.bin", "urls": [f"{publisher.url}/a.bin"], "size": len(DATA), "sha256": SHA}])
        both = [started(tmp_path, "what=own") for _ in range(2)]
        told = [process.communicate(timeout=120)[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], told
        assert len(publisher.asked) == 1
    check(tmp_path)


def test_an_interrupt_is_one_line(tmp_path: Path) -> None:
    with publishing(files={"/a.bin": DATA}, pause=0.1) as publisher:
        listed(tmp_path, files=[{"file": "a.bin", "urls": [f"{publisher.url}/a.bin"], "size": len(DATA), "sha256": SHA}])
        process = started(tmp_path, "what=own")
        while process.poll() is None and not publisher.asked:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err.strip()) == (143, "terminated: finished work is kept; run the same command to go on")
        publisher.pause = 0
    assert (tmp_path / "cache" / "fetched" / ".a.bin.part").stat().st_size > 0
