"""Rows and artefacts: what is written comes back or is reported, and several processes share a folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bench.store import rows as rows_module
from bench.store.addresses import canonical, digest, seal
from bench.store.artefacts import Store
from bench.store.rows import CELL_FAILED, COORDINATES, Rows, coordinates, current, parse_rows, read_rows
from bench.store.supersession import newest
from fewstep import files
from fewstep.errors import UsageError
from support.repository import ROOT


def row(**change: Any) -> dict[str, Any]:
    plain = {"model": "digits", "method": "teacher", "solver": "euler", "grid": "polynomial", "end": "zero", "afs": False, "guidance": 1.0}
    return plain | {"nfe": 4, "loss": "", "seed": 0, "metric": "fd_digits", "value": 1.5, "status": "ok"} | change


def lines_of(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(seal(r)) + "\n" for r in rows)


def silent(message: str) -> None:
    pass


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(), lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3)
)
FREE_ROWS = st.dictionaries(st.text().filter(lambda k: k != "checksum"), VALUES, max_size=5)


@given(st.lists(FREE_ROWS, max_size=4))
def test_rows_come_back_as_they_were(rows: list[dict[str, Any]]) -> None:
    found, corrupt = parse_rows(lines_of(rows))
    assert not corrupt
    assert [{k: v for k, v in r.items() if k != "checksum"} for r in found] == rows


@given(st.dictionaries(st.text(), VALUES, max_size=5), st.randoms())
def test_the_address_of_a_spec_does_not_depend_on_its_order(spec: dict[str, Any], random: Any) -> None:
    keys = list(spec)
    random.shuffle(keys)
    assert digest({k: spec[k] for k in keys}) == digest(spec)
    assert json.loads(canonical(spec)) == spec


@given(FREE_ROWS.filter(bool), st.data())
def test_a_changed_value_does_not_match_the_checksum(body: dict[str, Any], data: st.DataObject) -> None:
    name, value = data.draw(st.sampled_from(sorted(body))), data.draw(VALUES)
    assume(canonical(value) != canonical(body[name]))
    text = lines_of([row()]) + json.dumps(seal(body) | {name: value}) + "\n" + lines_of([row(nfe=5)])
    found, corrupt = parse_rows(text)
    assert [r["nfe"] for r in found] == [4, 5]
    assert [(c.line, c.reason) for c in corrupt] == [(2, "its checksum does not match")]


@given(st.data())
def test_a_torn_line_is_no_row(data: st.DataObject) -> None:
    line = lines_of([row()]).strip()
    torn = line[: data.draw(st.integers(1, len(line) - 1))]
    found, corrupt = parse_rows(torn + "\n\n" + line)
    assert len(found) == 1
    assert [(c.line, c.text) for c in corrupt] == [(1, torn)]


@pytest.mark.parametrize(
    "line", ["NaN", "[1]", "3", "null", "{}", '{"value": NaN, "checksum": "0"}', '{"checksum": null}', "no\x1ejson\x85here\u2028"]
)
def test_other_json_is_no_row(line: str) -> None:
    found, corrupt = parse_rows(line + "\n" + lines_of([row()]))
    assert (len(found), [c.text for c in corrupt]) == (1, [line])


OTHER = {"afs": True, "guidance": 2.0, "nfe": 9, "seed": 7}


def test_coordinates_are_what_a_row_measures() -> None:
    assert coordinates(row(value=2.0, status="failed", date="later")) == coordinates(row())
    for name in COORDINATES:
        assert coordinates(row(**{name: OTHER.get(name, "other")})) != coordinates(row())


def test_current_rows_are_the_last_of_each_coordinates_in_order_of_appearance() -> None:
    a1, b1, a2, c = row(value=1.0), row(nfe=5, value=2.0), row(value=3.0), row(nfe=1, value=4.0)
    assert current([a1, b1, a2, c]) == [a2, b1, c]


def made(date: int, **own: Any) -> dict[str, Any]:
    protocol = {name: own.pop(name, name) for name in ("model_digest", "recipe")}
    return row(**{"metric": "fid", "key": "samples", "date": str(date), "protocol": protocol, **own})


def test_rows_of_an_earlier_teacher_are_superseded() -> None:
    old, other, new = made(1, model_digest="a", nfe=5), made(1, model_digest="c", model="other"), made(2, model_digest="b")
    assert newest([old, other, new]) == [other, new]


def test_rows_of_earlier_samples_of_their_cell_are_superseded_also_by_a_failure() -> None:
    old = [made(1), made(1, metric="energy"), made(1, nfe=5)]
    assert newest([*old, made(2, key="anew")]) == [old[2], made(2, key="anew")]
    failed = made(2, key="anew", metric=CELL_FAILED, status="failed", value=None)
    assert newest([*old, failed]) == [old[2], failed]
    measured_again = made(2, metric="energy")  # a metric's new version, on the same samples
    assert newest([old[0], measured_again]) == [old[0], measured_again]


def test_students_trained_in_another_way_than_the_last_are_superseded_whatever_their_seed() -> None:
    old = [made(1, fit_seed=seed, recipe="long") for seed in (1, 2)]
    new = made(2, fit_seed=0, recipe="short")
    another = [made(1, fit_seed=0, recipe="long", **{axis: "other"}) for axis in ("method", "variant", "loss")]
    assert newest([*old, new, *another]) == [new, *another]
    assert newest([made(3, fit_seed=0, recipe="long"), *old]) == [made(3, fit_seed=0, recipe="long"), *old]
    elsewhere = [made(1, recipe="long", **{axis: value}) for axis, value in (("nfe", 8), ("guidance", 2.0), ("solver", "other"))]
    assert newest([*elsewhere, new]) == [new]  # the same student, at other points of its curve


def test_added_rows_replace_their_own_kind_and_forget_the_failure_of_their_cell(tmp_path: Path) -> None:
    rows = Rows(Store(tmp_path), "suite", silent)
    failures = [row(metric=CELL_FAILED, status="failed", value=None, nfe=n) for n in (4, 5)]
    rows.add([row(metric="fid", value=1.0), *failures])
    written = rows.add([row(metric="fid", value=2.0)])
    assert [(r["nfe"], r["metric"], r["value"]) for r in written] == [(4, "fid", 2.0), (5, CELL_FAILED, None)]
    assert rows.read() == written
    again = rows.add([failures[0] | {"error": "again"}])  # a failure forgets nothing that was measured
    assert [(r["nfe"], r["metric"]) for r in again] == [(4, "fid"), (5, CELL_FAILED), (4, CELL_FAILED)]
    assert rows.path.read_text().count("\n") == 3


def test_a_value_that_is_no_json_changes_nothing(tmp_path: Path) -> None:
    rows = Rows(Store(tmp_path), "suite", silent)
    rows.add([row()])
    before = rows.path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        rows.add([row(nfe=5, value=float("nan"))])
    assert rows.path.read_bytes() == before


def test_corrupt_lines_are_reported_and_kept_aside(tmp_path: Path) -> None:
    said: list[str] = []
    rows = Rows(Store(tmp_path), "suite", said.append)
    rows.add([row(), row(nfe=5)])
    for torn in ('{"torn": 1', '{"torn": 2'):
        sound = rows.path.read_text()
        rows.path.write_text(torn + "\n" + sound)
        rows.add([row(nfe=6)])
        assert [r["nfe"] for r in rows.read()] == [4, 5, 6]
        assert not read_rows(rows.path)[1]
    assert (tmp_path / "suite" / "runs.corrupt.jsonl").read_text() == '{"torn": 1\n{"torn": 2\n'
    assert [s.count("runs.jsonl line 1: it is not valid JSON") for s in said] == [1, 1]


def test_only_what_another_process_added_is_parsed(tmp_path: Path, monkeypatch) -> None:
    parsed, said, parse = list[tuple[int, int]](), list[str](), rows_module.parse_rows

    def counting(text: str, first: int = 1):
        parsed.append((text.count("\n"), first))
        return parse(text, first)

    monkeypatch.setattr(rows_module, "parse_rows", counting)
    mine, other = Rows(Store(tmp_path), "suite", said.append), Rows(Store(tmp_path), "suite", silent)
    mine.add([row(nfe=n) for n in (4, 5)])
    other.add([row(nfe=6)])
    parsed.clear()
    assert [r["nfe"] for r in mine.read()] == [4, 5, 6] == [r["nfe"] for r in mine.read()]
    assert parsed == [(1, 3), (0, 4)]
    with open(mine.path, "a") as f:
        f.write("torn")
    parsed.clear()
    assert len(mine.read()) == len(mine.read()) == 3
    assert parsed == [(0, 4), (3, 1)]  # a last line that may still grow is read again
    with open(mine.path, "a") as f:
        f.write(" for good\n")
    mine.repair()
    assert [s.count("line 4: it is not valid JSON") for s in said] == [1]
    mine.path.write_text(mine.path.read_text().splitlines(keepends=True)[2])  # another file, as its first line shows
    assert [r["nfe"] for r in mine.read()] == [6]


def fill_with(text: str):
    def fill(folder: Path) -> dict[str, Any]:
        (folder / "data.txt").write_text(text)
        return {"made_of": text}

    return fill


def test_an_artefact_comes_back_with_the_record_of_its_files(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not store.has("kind", "key")
    written = store.write("kind", "key", fill_with("a"))
    assert store.has("kind", "key")
    assert store.read("kind", "key") == written
    assert (written["made_of"], list(written["files"])) == ("a", ["data.txt"])
    assert (store.path("kind", "key") / "data.txt").read_text() == "a"


TAMPERS = {
    "file changed": lambda folder: (folder / "data.txt").write_text("b"),
    "file gone": lambda folder: (folder / "data.txt").unlink(),
    "record changed": lambda folder: (folder / "record.json").write_text((folder / "record.json").read_text().replace('"a"', '"b"')),
    "record torn": lambda folder: (folder / "record.json").write_text('{"made_of": '),
    "record no object": lambda folder: (folder / "record.json").write_text("[]"),
}


@pytest.mark.parametrize("tamper", TAMPERS)
def test_a_changed_artefact_is_refused(tamper: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("kind", "key", fill_with("a"))
    TAMPERS[tamper](store.path("kind", "key"))
    with pytest.raises(ValueError, match=r"does not match|Expecting value"):
        store.read("kind", "key")


@pytest.mark.parametrize("tamper", [*TAMPERS, "record gone"])
def test_a_changed_artefact_is_kept_aside_and_made_anew(tamper: str, tmp_path: Path) -> None:
    store, said = Store(tmp_path), list[str]()
    first = store.ensure("kind", "key", fill_with("a"), said.append)
    assert store.ensure("kind", "key", fill_with("not needed"), said.append) == first
    assert not said
    folder = store.path("kind", "key")
    {**TAMPERS, "record gone": lambda f: (f / "record.json").unlink()}[tamper](folder)
    left = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert store.ensure("kind", "key", fill_with("a"), said.append) == first == store.read("kind", "key")
    (aside,) = [p for p in store.root.rglob("*kind-key*") if p.is_dir()]
    assert "corrupt" in str(aside.relative_to(store.root))
    assert {p.name: p.read_bytes() for p in aside.iterdir()} == left
    assert len(said) == 1
    assert said[0].startswith("corrupt artefact: ")
    assert str(aside) in said[0]


def test_a_failed_artefact_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fill(folder: Path) -> dict[str, Any]:
        (folder / "data.txt").write_text("half")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        store.ensure("kind", "key", fill, silent)
    assert not store.path("kind", "key").exists()
    assert not list(store.root.glob(".making-*"))
    store.ensure("kind", "key", fill_with("a"), silent)  # the lock is free again


def test_a_results_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written .* give another with results=PATH"):
        Store(tmp_path / "results")


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


def test_what_has_no_lock_is_kept_for_a_day(tmp_path: Path) -> None:
    """Neither a folder of an earlier version, nor one whose maker is about to lock it."""
    store, day = Store(tmp_path), 24 * 3600
    own = store.root / f".making-{os.getpid()}-x"
    own.mkdir()
    (own / "half.txt").write_text("half")
    for age, kept in ((0, True), (0.9 * day, True), (1.1 * day, False)):
        os.utime(own, times=(time.time() - 2 * day,) * 2)
        os.utime(own / "half.txt", times=(time.time() - age,) * 2)
        store.clean_leavings()
        assert own.exists() == kept, age


def test_a_file_that_is_cleaned_before_it_is_locked_is_begun_again(tmp_path: Path, monkeypatch) -> None:
    locks = files._lock

    def late(handle: int) -> bool | None:
        monkeypatch.setattr(files, "_lock", locks)
        files.clean(tmp_path)
        return locks(handle)

    for make in (lambda: files.write_atomic(tmp_path / "table.md", b"text"), lambda: Store(tmp_path).write("kind", "key", fill_with("a"))):
        monkeypatch.setattr(files, "_lock", late)
        make()
    assert (tmp_path / "table.md").read_bytes() == b"text"
    assert Store(tmp_path).read("kind", "key")["made_of"] == "a"


def test_a_file_system_without_locks_is_refused_for_results_and_good_enough_for_a_file(tmp_path: Path, monkeypatch) -> None:
    def none(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    files.write_atomic(tmp_path / "grid.png", b"picture")
    assert (tmp_path / "grid.png").read_bytes() == b"picture"
    with pytest.raises(UsageError, match=r"is on a file system without file locks; give another with results=PATH"):
        Store(tmp_path)


def test_processes_with_one_id_open_a_store_at_once(tmp_path: Path) -> None:
    """As two containers may: what one writes to try the folder is not the other's."""
    many = "import threading\nout = []\ndef opens():\n    for _ in range(100):\n        Store(Path(sys.argv[1]))\n    out.append(1)\n"
    many += "all = [threading.Thread(target=opens) for _ in range(4)]\n[t.start() for t in all]\n[t.join() for t in all]\nprint(len(out))"
    with process(many, tmp_path) as opener:
        assert opener.communicate()[0] == "4\n"
    assert [p.name for p in (tmp_path / ".store").iterdir()] == ["locks"]


def test_folders_that_another_process_moves_meanwhile_are_passed_over(tmp_path, monkeypatch):
    """A sweep that starts while another finishes an artefact: the folder it is made in is listed, then gone."""
    store, scan = Store(tmp_path), os.scandir
    (store.root / f".making-{os.getpid()}-abc").mkdir(parents=True)

    def vanishing(path="."):
        if ".making-" in str(path):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    store.clean_leavings()
