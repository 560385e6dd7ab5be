"""A small sweep end to end: rows, tables, resume after kills, two sweeps at once, failures."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

from bench import export, sweep
from bench.execute.here import work_through
from bench.jobs.session import Session
from bench.jobs.suite import expand
from bench.reports.tables import TIMING_COLUMNS
from bench.settings import cli
from bench.settings.compose import configure
from bench.store.artefacts import Store
from bench.store.rows import Rows, read_rows
from bench.store.supersession import newest
from fewstep import plugins as registry
from fewstep.grid import make_grid
from fewstep.plugins import get
from fewstep.sampling.runner import run
from support.repository import ROOT
from support.tiny import mixture_data

SERVER = [sys.executable, str(ROOT / "tests" / "support" / "forked_sweeps.py")]


class Forks:
    """A process that runs sweeps in forked children."""

    def __init__(self) -> None:
        # No pipe: nobody reads it while sweeps run, and a full pipe would stop them. It lives as long as the server.
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(SERVER, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=self.errors, text=True)

    def ask(self, *args: str, kill_after: float | None = None) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"args": ["suite=smoke", "threads=1", *args], "kill_after": kill_after}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, float]:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def finish(self) -> tuple[str, str]:
        """The answers not yet read and all that was said on stderr, after the sweeps asked for have ended."""
        answers, _ = self.process.communicate()
        self.errors.seek(0)
        return answers, self.errors.read()

    def run(self, *args: str, kill_after: float | None = None) -> dict[str, float]:
        self.ask(*args, kill_after=kill_after)
        return self.answer()


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    server = Forks()
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture(scope="module")
def whole(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The results folder of an uninterrupted smoke sweep, and its seconds."""
    folder = tmp_path_factory.mktemp("whole")
    done = forks.run(f"results={folder}")
    assert done["code"] == 0
    return folder, done["seconds"]


def table(folder: Path) -> pd.DataFrame:
    frame = pd.read_csv(folder / "smoke" / "table.csv")
    return frame.drop(columns=[c for c in TIMING_COLUMNS if c in frame])


def artefacts(folder: Path) -> dict[str, int]:
    """record.json of every finished artefact, with the time it was written."""
    return {str(p): p.stat().st_mtime_ns for p in (folder / ".store").glob("*/*/record.json")}


def row_lines(folder: Path) -> set[str]:
    path = folder / "smoke" / "runs.jsonl"
    return set(path.read_text().splitlines()) if path.exists() else set()


def test_a_sweep_fills_every_cell(whole: tuple[Path, float]) -> None:
    folder, _ = whole
    rows, corrupt = read_rows(folder / "smoke" / "runs.jsonl")
    assert not corrupt
    assert {r["status"] for r in rows} == {"ok", "unavailable"}
    assert {r["metric"] for r in rows if r["status"] == "unavailable"} == {"fid"}
    assert all(r["nfe"] == r["value"] for r in rows if r["metric"] == "nfe_counted")
    assert {"cd", "teacher", "naive"} == {r["method"] for r in rows}
    written = {p.name for p in (folder / "smoke").iterdir()}
    assert {"table.csv", "table.md", "table.tex", "quality_vs_nfe.png", "quality_vs_latency.png", "samples_cd.png"} <= written


def test_two_workers_fill_the_same_table(forks: Forks, whole: tuple[Path, float], tmp_path: Path) -> None:
    """Without the cell that measures latencies, which is refused."""
    untimed = "suite.blocks.3.metrics=[fd_digits,fid]"
    assert forks.run(untimed, "workers=2", "threads=2", f"results={tmp_path}")["code"] == 0
    columns = [c for c in table(tmp_path) if c != "peak_memory_mb"]
    pd.testing.assert_frame_equal(table(tmp_path)[columns], table(whole[0])[columns])
    assert len(row_lines(tmp_path)) == len(read_rows(tmp_path / "smoke" / "runs.jsonl")[0])  # no cell was done twice
    assert forks.run("workers=2", f"results={tmp_path}")["code"] == 2


def test_a_second_run_adds_nothing(forks: Forks, whole: tuple[Path, float]) -> None:
    folder, _ = whole
    rows, made = row_lines(folder), artefacts(folder)
    assert forks.run(f"results={folder}")["code"] == 0
    assert row_lines(folder) == rows
    assert artefacts(folder) == made


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_sweeps_resume(count: int, forks: Forks, whole: tuple[Path, float], tmp_path: Path) -> None:
    """SIGKILL at so many instants, the last third late in the remaining work: finished work stays as it was after every kill, and the
    table is that of an uninterrupted run. The very last comes right after the last row, before its report is written."""
    folder, seconds = whole
    idle = forks.run(f"results={folder}")["seconds"]  # of a sweep with nothing to do
    complete, instants = len(row_lines(folder)), random.Random(0)
    kills, folders = 0, (tmp_path / str(n) for n in itertools.count())
    place = next(folders)
    rows, made = set[str](), dict[str, int]()
    while kills < count:
        left = (seconds - idle) * (1 - len(rows) / complete)
        late = idle + left * instants.uniform(0.4, 0.9)
        if kills < count - 1:
            done = forks.run(f"results={place}", kill_after=instants.uniform(0, seconds / 4) if kills < 2 * count // 3 else late)
        else:
            forks.ask(f"results={place}")
            while not (children := psutil.Process(forks.process.pid).children()):
                time.sleep(0.001)
            while len(row_lines(place)) < complete and children[0].is_running():
                time.sleep(0.005)
            children[0].kill()
            done = forks.answer()
        before, (rows, made) = (rows, made), (row_lines(place), artefacts(place))
        assert {line for line in before[0] if json.loads(line)["status"] != "failed"} <= rows  # only a failed row may be replaced
        assert before[1].items() <= made.items()
        if done["code"] == -9:
            kills += 1
        else:  # it finished before its instant: begin again, the kills so far count
            assert done["code"] == 0
            pd.testing.assert_frame_equal(table(place), table(folder))
            place, rows, made = next(folders), set(), {}
    assert forks.run(f"results={place}")["code"] == 0
    assert rows == row_lines(place)  # the last kill came after the last row
    assert made.items() <= artefacts(place).items()
    pd.testing.assert_frame_equal(table(place), table(folder))
    assert {p.name for p in (place / "smoke").iterdir()} == {p.name for p in (folder / "smoke").iterdir()}
    assert not list((place / ".store").glob(".making-*"))


def test_two_sweeps_share_a_folder(whole: tuple[Path, float], tmp_path: Path) -> None:
    """Nothing lost, nothing doubled, no student trained twice."""
    folder, _ = whole
    both = [Forks(), Forks()]
    for one in both:
        one.ask(f"results={tmp_path}")
    said = [one.finish() for one in both]
    assert [json.loads(answer)["code"] for answer, _ in said] == [0, 0]
    pd.testing.assert_frame_equal(table(tmp_path), table(folder))
    rows, corrupt = read_rows(tmp_path / "smoke" / "runs.jsonl")
    assert not corrupt
    assert len(rows) == len(read_rows(folder / "smoke" / "runs.jsonl")[0])
    assert sum(errors.count("training cd(") for _, errors in said) == 1
    trainings = [r["train_seconds"] for r in rows if r["method"] == "cd"]
    assert len(set(trainings)) == 1  # one training, whose seconds all rows share
    assert "Traceback" not in "".join(errors for _, errors in said)


def test_changing_an_input_redoes_what_depends_on_it(forks: Forks, whole: tuple[Path, float], tmp_path: Path) -> None:
    """Another sample count needs new samples, but no student is trained again."""
    copy = tmp_path / "copy"
    shutil.copytree(whole[0], copy)
    fits = {k: v for k, v in artefacts(copy).items() if "/fit/" in k}
    samples = {k for k in artefacts(copy) if "/samples/" in k}
    assert forks.run(f"results={copy}", "suite.samples=50")["code"] == 0
    assert {k: v for k, v in artefacts(copy).items() if "/fit/" in k} == fits
    assert len({k for k in artefacts(copy) if "/samples/" in k}) == 2 * len(samples)


def test_a_failing_cell_is_recorded_and_the_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from bench.evaluate import measuring
    from bench.jobs import work as cell

    def broken(names, *rest):
        if len(names) == 3:
            raise FloatingPointError("made to fail")
        return original(names, *rest)

    original = measuring.measure_all
    args = ["suite=smoke", f"results={tmp_path}", "threads=1", "suite.blocks.4.nfe=[]", "suite.samples=20"]
    monkeypatch.setattr(cell, "measure_all", broken)
    assert cli.entry("sweep", "", sweep.run, args) == 1
    assert "made to fail" in capfd.readouterr().err
    rows, _ = read_rows(tmp_path / "smoke" / "runs.jsonl")
    assert {"failed", "ok"} <= {r["status"] for r in rows}
    monkeypatch.setattr(cell, "measure_all", original)
    assert cli.entry("sweep", "", sweep.run, args) == 0
    rows, _ = read_rows(tmp_path / "smoke" / "runs.jsonl")
    assert "failed" not in {r["status"] for r in rows}


def test_a_cell_that_failed_in_one_process_is_not_tried_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.jobs import work as cell

    tried: list[int] = []

    def broken(*args):
        tried.append(1)
        raise FloatingPointError("made to fail")

    monkeypatch.setattr(cell, "measure_all", broken)
    args = ["suite=smoke", f"results={tmp_path}", "threads=1", "suite.blocks=[{method:naive,solver:[class_means,real_train]}]"]
    config = configure("sweep", args)
    suite, store = expand(config["suite"], 0, "philox"), Store(tmp_path)
    rows = Rows(store, suite.name, lambda line: None)
    for tries in (2, 4):  # the next sweep tries again
        stale = sweep.stale_rows(rows.read())
        for _ in range(2):  # the second process begins when the first has failed
            session = Session(store, "cpu", 250, lambda line: None, stale)
            (work,) = sweep.prepare_all(config, suite, session)
            work_through(session, work.branches(), lambda branch, rows: None)
        assert len(tried) == tries


def test_a_try_with_other_options_hides_nothing_for_good(tmp_path: Path) -> None:
    """Two seeds, then one of them with another lr (which diverges), then again as before: both count again, nothing is trained twice."""
    block = "suite.blocks=[{method:naive,solver:[class_means,real_train]},{method:cd,nfe:[1,2],fit_seed:[0,1]}]"
    args = ["suite=smoke", f"results={tmp_path}", "threads=1", "suite.samples=20", block]

    def students(*more: str) -> list[tuple[int, int, str]]:
        cli.entry("sweep", "", sweep.run, [*args, *more])
        rows = newest(read_rows(tmp_path / "smoke" / "runs.jsonl")[0])
        return sorted((r["fit_seed"], r["nfe"], r["status"]) for r in rows if r["method"] == "cd" and r["metric"] in ("fd_digits", "cell"))

    both = [(seed, nfe, "ok") for seed in (0, 1) for nfe in (1, 2)]
    assert students() == both
    fits = {p.name for p in (tmp_path / ".store" / "fit").iterdir()}
    diverging = [block.replace("fit_seed:[0,1]", "fit_seed:[0]"), "suite.options.cd.lr=1e30"]
    assert students(*diverging) == [(0, 1, "failed"), (0, 2, "failed")]
    assert students() == both
    assert {p.name for p in (tmp_path / ".store" / "fit").iterdir()} == fits


def test_a_corrupt_record_is_reported_and_measured_again(forks: Forks, whole: tuple[Path, float], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole[0], copy)
    path = copy / "smoke" / "runs.jsonl"
    lines = path.read_text().splitlines()
    tampered = lines[3].replace('"status": "ok"', '"status": "OK"')
    path.write_text("\n".join([*lines[:3], tampered, *lines[4:], '{"torn": tr']) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "bench.sweep", "suite=smoke", "threads=1", f"results={copy}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "line 4: its checksum does not match" in done.stderr
    assert f"line {len(lines) + 1}: it is not valid JSON" in done.stderr
    assert (copy / "smoke" / "runs.corrupt.jsonl").read_text().splitlines() == [tampered, '{"torn": tr']
    pd.testing.assert_frame_equal(table(copy), table(whole[0]))


def blocks(page: str) -> list[str]:
    """The Python code of a page of the documentation."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def test_the_documented_api_samples_a_teacher_and_a_student(whole: tuple[Path, float], tmp_path: Path) -> None:
    """From an exported student alone: neither its results folder nor training data are opened."""
    args = ["method=cd", "steps=2", "suite=smoke", f"results={whole[0]}", f"out={tmp_path / 'cd'}", "threads=1"]
    assert cli.entry("export", "", export.run, args) == 0
    first, second = blocks("commands.md")
    code = first.replace("results/students/cd-2", str(tmp_path / "cd")) + second
    opened = "import sys; sys.modules['bench'] = None; sys.modules['sklearn'] = None\n"  # which brings the digits
    told = "assert images.shape == (16, 1, 8, 8) and images.isfinite().all() and images.abs().max() < 3\n"  # up to a student's overshoot
    done = subprocess.run([sys.executable, "-c", opened + code + told], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("10 (Eval(")


def test_the_documented_solver_is_euler(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("readme_plugin")
    monkeypatch.setitem(sys.modules, "readme_plugin", module)
    registry.load()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))  # what it registers is gone after the test
    exec(blocks("adding-a-method.md")[-1], vars(module))
    grid = make_grid("polynomial", 4, (0.002, 80.0))
    theirs, ours = registry.get("solver", "my_euler").make().plan(grid), get("solver", "euler").make().plan(grid)
    assert [type(op) for op in theirs.ops] == [type(op) for op in ours.ops]
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    teacher, _ = mixture_data()
    torch.testing.assert_close(run(theirs, teacher, x)[theirs.states[-1]], run(ours, teacher, x)[ours.states[-1]])
