"""Several processes on one store: locks, artefacts and rows, and what a killed one leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.store.artefacts import Store
from bench.store.rows import read_rows
from support.artefacts import fill_with, silent
from support.repository import ROOT

PRELUDE = """
import sys
from pathlib import Path
from bench.store.artefacts import Store
from bench.store.rows import Rows
store = Store(Path(sys.argv[1]))
"""


def process(script: str, folder: Path, *args: str) -> subprocess.Popen[str]:
    """Another process with `store` on this folder."""
    command = [sys.executable, "-c", PRELUDE + script, str(folder), *args]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_lock_is_of_one_process_and_free_when_its_holder_dies(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with process("lock = store.try_lock('kind', 'key'); print(lock is not None, flush=True); sys.stdin.read()", tmp_path) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "True\n"
        assert store.try_lock("kind", "key") is None
        other = store.try_lock("kind", "other")
        assert other is not None
        holder.send_signal(signal.SIGKILL)
    lock = store.try_lock("kind", "key")
    assert lock is not None
    lock.release()
    other.release()


MAKE = """
import time
def fill(folder):
    print("made", flush=True)
    time.sleep(0.5)
    (folder / "data.txt").write_text("a")
    return {}
assert store.ensure("kind", "key", fill, print)["files"]
"""


def test_two_processes_make_an_artefact_once(tmp_path: Path) -> None:
    both = [process(MAKE, tmp_path) for _ in range(2)]
    said = "".join(p.communicate()[0] for p in both)
    assert [p.returncode for p in both] == [0, 0]
    assert said == "made\n"


ADD = """
rows = Rows(store, "suite", print)
keys = "model method solver grid end afs guidance loss seed metric".split()
for n in range(10):
    rows.add([dict.fromkeys(keys, "") | {"nfe": int(sys.argv[2]) + n}])
"""


def test_two_processes_lose_no_row_of_each_other(tmp_path: Path) -> None:
    both = [process(ADD, tmp_path, first) for first in ("0", "10")]
    assert [p.communicate()[0] for p in both] == ["", ""]
    rows, corrupt = read_rows(tmp_path / "suite" / "runs.jsonl")
    assert not corrupt
    assert sorted(r["nfe"] for r in rows) == list(range(20))


KILLED = """
def fill(folder):
    (folder / "half.txt").write_text("half")
    print(folder, flush=True)
    sys.stdin.read()
store.ensure("kind", "key", fill, print)
"""


ELSEWHERE = "import os; os.getpid = lambda: 2**22 + 1\n"  # a process id that nobody has here: that of a process in another container


@pytest.mark.parametrize("place", ["", ELSEWHERE], ids=["here", "in another container"])
def test_what_a_killed_process_left_is_cleaned_and_what_a_living_one_makes_is_not(place: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with process(place + KILLED, tmp_path) as maker:
        assert maker.stdout
        half = Path(maker.stdout.readline().strip())
        Store(tmp_path).clean_leavings()
        assert (half / "half.txt").exists()
        maker.send_signal(signal.SIGKILL)
    assert not store.has("kind", "key")
    assert half.exists()
    store.clean_leavings()
    assert not list(store.root.glob(".making-*"))
    assert store.ensure("kind", "key", fill_with("a"), silent)["made_of"] == "a"


HALF_WRITTEN = """
import os
from fewstep.files import write_atomic
def stop(handle):
    print("written", flush=True)
    sys.stdin.read()
os.fsync = stop
write_atomic(store.results / "suite" / "table.md", b"text")
"""


@pytest.mark.parametrize("place", ["", ELSEWHERE], ids=["here", "in another container"])
def test_a_half_written_file_is_cleaned_when_its_writer_is_dead(place: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with process(place + HALF_WRITTEN, tmp_path) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == "written\n"
        (half,) = (tmp_path / "suite").iterdir()
        store.clean_leavings()
        assert half.read_bytes() == b"text"
        writer.send_signal(signal.SIGKILL)
    store.clean_leavings()
    assert not half.exists()


def test_processes_with_one_id_open_a_store_at_once(tmp_path: Path) -> None:
    """As two containers may: what one writes to try the folder is not the other's."""
    many = "import threading\nout = []\ndef opens():\n    for _ in range(100):\n        Store(Path(sys.argv[1]))\n    out.append(1)\n"
    many += "all = [threading.Thread(target=opens) for _ in range(4)]\n[t.start() for t in all]\n[t.join() for t in all]\nprint(len(out))"
    with process(many, tmp_path) as opener:
        assert opener.communicate()[0] == "4\n"
    assert [p.name for p in (tmp_path / ".store").iterdir()] == ["locks"]
