"""Where a command runs: installed for reading only, without a home, beside modules of the same names, with output that nobody reads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from bench import certify, report, sample, sweep
from support.repository import ROOT

PACKAGES = ("bench", "fewstep", "kernels", "methods", "metrics")
NOBODY = 12345  # an id without a passwd entry
HOMES = [{"HOME": "/"}, {"HOME": "/nonexistent"}, {}]
SMALL = ["+suite=smoke", "suite.samples=20", "threads=1", "suite.blocks=[{solver: euler, grid: polynomial, end: sigma_min, nfe: 1}]"]


@dataclass(frozen=True)
class Place:
    """A copy of the packages that nobody can write to, and a folder to work in, as a user who owns neither."""

    tree: Path
    work: Path
    user: int | None
    python: str

    def run(self, *args: str, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(self.tree), sysconfig.get_path("purelib")])  # another interpreter finds what this one has
        plain = {"PATH": os.environ["PATH"], "PYTHONPATH": path, **env}
        groups = {} if self.user is None else {"user": self.user, "group": self.user, "extra_groups": []}
        return subprocess.run([self.python, *args], cwd=self.work, env=plain, capture_output=True, text=True, timeout=300, **groups)

    def works(self) -> bool:
        """Whether that user can start that interpreter."""
        try:
            return self.run("-c", "import numba").returncode == 0
        except OSError:
            return False


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """As root: another user, who has no passwd entry. Otherwise the same one, with a tree that is read-only."""
    with tempfile.TemporaryDirectory() as name:
        tree, work = Path(name, "tree"), Path(name, "work")
        for package in PACKAGES:
            shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "results", tree / "results", ignore=lambda folder, names: [n for n in names if not n.endswith(".csv")])
        os.chmod(name, 0o755)
        work.mkdir()
        os.chmod(work, 0o777)
        for path in (tree, *tree.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        own = shutil.which(f"python{sys.version_info.major}.{sys.version_info.minor}", path=os.defpath) or sys.executable
        user = NOBODY if os.getuid() == 0 else None
        made = next((found for python in (sys.executable, own) if (found := Place(tree, work, user, python)).works()), None)
        if made is None:
            pytest.skip("another user can start no interpreter here: that a read-only installation works was not checked")
        yield made
        for path in (tree, *tree.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.strip()]


@pytest.mark.parametrize(
    "home", [HOMES[2], *(pytest.param(home, marks=pytest.mark.slow) for home in HOMES[:2])], ids=["none", "root", "nonexistent"]
)
def test_a_read_only_installation_works_without_a_home(place: Place, home: Mapping[str, str]) -> None:
    shutil.rmtree(place.work / "results", ignore_errors=True)
    metrics = "suite.base.metrics=[fd_digits,fid,lpips_teacher]"
    for args in (["-m", "bench.sweep", "--help"], ["-m", "bench.ls", "kind=metric"], ["-m", "bench.sweep", *SMALL, metrics]):
        done = place.run(*args, env=home)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    said = [line for line in lines(done) if not line.startswith("sweep smoke:")]  # the bar, on a machine so slow that there is one
    assert [line.partition(":")[0] for line in said[:1]] == ["suite smoke"]
    assert said[-1].startswith("tables and pictures in results/smoke")
    assert len(said) == 2, said
    rows = [json.loads(line) for line in (place.work / "results" / "smoke" / "runs.jsonl").read_text().splitlines()]
    states = {row["metric"]: (row["status"], row["error"]) for row in rows}
    assert states["fd_digits"][0] == "ok"
    for name in ("fid", "lpips_teacher"):
        status, error = states[name]
        assert status == "unavailable"
        assert "get it from https://" in error
    assert sorted(p.name for p in place.work.iterdir()) == ["results"]


@pytest.mark.slow
def test_the_kernels_are_cached_where_they_can_be_and_work_where_not(place: Place, tmp_path: Path) -> None:
    """In a process for each: without a place, with one, with one whose files are damaged, and with one that is full."""
    code = """
import os, sys, torch
from kernels import cpu, philox_cpu
if sys.argv[1:] == ["full"]:
    def full(*args):
        raise OSError(28, "No space left on device")
    philox_cpu.fill._cache._cache_file.save = full
x = torch.ones(3)
cpu.update([x], [x], torch.tensor([[2.0]]))
print(x.tolist(), sum(philox_cpu.fill.stats.cache_hits.values()))
import numpy as np
out = np.empty(4, np.float32)
philox_cpu.fill(*(np.uint32(n) for n in range(4)), out)
print(sum(philox_cpu.fill.stats.cache_hits.values()), os.listdir("."))
"""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        for env, args, hits in (
            (HOMES[2], [], 0),
            ({"NUMBA_CACHE_DIR": name}, ["full"], 0),
            ({"NUMBA_CACHE_DIR": name}, [], 0),
            ({"NUMBA_CACHE_DIR": name}, [], 1),
        ):
            done = place.run("-c", code, *args, env=env)
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines()[0].startswith("[2.0, 2.0, 2.0]")
            assert done.stdout.splitlines()[1].startswith(f"{hits} ")
            assert "~" not in done.stdout
        damaged = list(Path(name).rglob("*.nb?"))
        assert damaged
        for path in damaged:
            path.write_bytes(b"\x80\x05damaged")
        done = place.run("-c", code, env={"NUMBA_CACHE_DIR": name})
        assert done.returncode == 0, done.stderr


SHADOWS = ["metrics.py", "methods/__init__.py", "kernels.py", "fewstep.py", "metrics/__init__.py"]


@pytest.mark.parametrize("name", SHADOWS)
def test_a_module_that_stands_in_front_of_ours_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("accuracy = 1\n")
    for entry in ("sweep", "ls", "report"):
        done = python("-m", f"bench.{entry}", "--help", cwd=tmp_path)
        package = Path(name).parts[0].removesuffix(".py")
        assert done.returncode == 2
        assert len(lines(done)) == 1, done.stderr
        assert f"{tmp_path / package}" in done.stderr
        assert (
            f" is imported in place of fewstep's own {package}; rename it, run from another folder, or type fewstep COMMAND" in done.stderr
        )
    done = python("-c", "import bench.store.artefacts", cwd=tmp_path)
    assert "ImportError" in done.stderr
    assert f"is imported in place of fewstep's own {package}; rename it" in done.stderr


@pytest.mark.parametrize(("name", "text"), [("tabulate.py", ""), ("yaml/__init__.py", "bar = 1"), ("omegaconf.py", "import nowhere")])
def test_a_module_that_stands_in_front_of_a_librarys_is_named(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    done = python("-m", "bench.ls", "kind=grid", cwd=tmp_path)
    assert done.returncode == 2
    assert len(lines(done)) == 1, done.stderr
    assert f"{tmp_path / name} is imported in place of an installed module; rename it" in done.stderr


def test_other_modules_beside_the_work_do_no_harm(tmp_path: Path) -> None:
    for name in ("mine.py", "solver.py", "tests.py", "utils.py"):
        (tmp_path / name).write_text("raise RuntimeError('imported')\n")
    done = python("-m", "bench.ls", "kind=grid", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def python(*args: str, cwd: Path = ROOT, env: Mapping[str, str] = {}, **streams) -> subprocess.CompletedProcess[str]:
    whole = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run([sys.executable, *args], cwd=cwd, env=whole, capture_output=not streams, text=True, timeout=300, **streams)


def shell(line: str, cwd: Path, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
    whole = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable, **env}
    return subprocess.run(["bash", "-c", line], cwd=cwd, env=whole, capture_output=True, text=True, timeout=300)


def test_a_reader_that_ends_early_ends_the_command(tmp_path: Path) -> None:
    for command in ("ls", "sweep --help", "certify solver=euler 2>&1"):
        done = shell(f'"$PYTHON" -u -m bench.{command} | head -n 1; exit ${{PIPESTATUS[0]}}', tmp_path)
        assert done.returncode in (0, 141), done.stderr
        assert done.stderr == ""
    done = shell('"$PYTHON" -m bench.ls | true; exit ${PIPESTATUS[0]}', tmp_path)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_output_is_one_line(tmp_path: Path) -> None:
    done = shell('"$PYTHON" -m bench.ls kind=grid >/dev/full', tmp_path)
    assert done.returncode == 2
    assert lines(done) == ["error: no space left on the device; finished work is kept; free some space and run the same command to go on"]


@pytest.mark.parametrize("closed", [">&- 2>&-", *(pytest.param(one, marks=pytest.mark.slow) for one in ("2>&-", ">&-", "<&-"))])
def test_closed_streams_do_no_harm(closed: str, tmp_path: Path) -> None:
    done = shell(f'"$PYTHON" -m bench.sample nfe=1 n=10 out=x.png threads=1 {closed}', tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.png").exists()


@pytest.mark.slow
def test_a_locale_without_the_letters_does_no_harm(tmp_path: Path) -> None:
    env = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = shell('"$PYTHON" -m bench.sample nfe=1 n=10 results=für out=grüße.png threads=1 && "$PYTHON" -m bench.ls', tmp_path, env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "grüße.png").exists()
    assert (tmp_path / "für").is_dir()
    done = shell('"$PYTHON" -m bench.sample nfe=1 n=10 solver=hün', tmp_path, env)
    assert done.returncode == 2
    assert len(lines(done)) == 1


FOLDERS = {
    "a file": lambda place: place.write_text(""),
    "a link to nowhere": lambda place: place.symlink_to(place.parent / "nowhere" / "deep"),
    "below a file": lambda place: None,
}


def refused(capsys: pytest.CaptureFixture[str], module: ModuleType, *args: str) -> str:
    """The one line of an entry point that must refuse."""
    assert module.main(args) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.strip().splitlines())) == ("", 1), err
    return err


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_results_folder_that_is_none_is_one_line(kind: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    FOLDERS[kind](tmp_path / "results")
    name = "file/results" if kind == "below a file" else "results"
    commands = [(sample, "nfe=1", "n=10"), (certify, "solver=euler"), (sweep, "+suite=smoke", "dry=true"), (report, "suite=smoke")]
    for module, *args in commands:
        assert f" {name}" in refused(capsys, module, *args, f"results={name}")


def test_paths_that_are_too_long_are_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for arg in (f"results={'x' * 300}", f"out={'x' * 300}.png", f"results={'x/' * 3000}"):
        assert "File name too long" in refused(capsys, sample, "nfe=1", "n=10", arg)
    assert "model digits lacks: a/xxx" in refused(capsys, sample, "nfe=1", "n=10", f"model.weights=a/{'x' * 300}")


@pytest.mark.slow
def test_a_read_only_results_folder_is_one_line(place: Place) -> None:
    for command in ("sample nfe=1 n=10", "certify solver=euler", "sweep +suite=smoke dry=true"):
        entry, *rest = command.split()
        done = place.run("-m", f"bench.{entry}", *rest, f"results={place.tree}/results")
        assert done.returncode == 2, done.stderr
        assert lines(done) == [
            f"error: results folder {place.tree}/results cannot be written (Permission denied); give another with results=PATH"
        ]
