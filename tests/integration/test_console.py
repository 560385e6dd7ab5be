"""The script `fewstep`: every entry point, started as an installer's script starts it, beside modules that would stand in front of ours."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bench import console, train
from support.repository import ROOT

SHADOWS = ("bench.py", "metrics.py", "fewstep.py", "kernels.py", "methods/__init__.py", "torch.py", "random.py", "hydra/__init__.py")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with modules that all raise, and beside it a script as pip writes it."""
    work = tmp_path / "work"
    for name in SHADOWS:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text("raise RuntimeError('found ' + __file__)\n")
    script = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]["fewstep"]
    module, function = script.split(":")
    (tmp_path / "bin").mkdir()
    text = f"import re\nimport sys\nfrom {module} import {function}\nif __name__ == '__main__':\n    sys.exit({function}())\n"
    (tmp_path / "bin" / "fewstep").write_text(text)
    return work


def fewstep(work: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}  # where an installed package would lie, after the script's own folder
    command = [sys.executable, str(work.parent / "bin" / "fewstep"), *args]
    return subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, timeout=300)


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def guards() -> set[str]:
    """The modules that `python -m bench.<name>` runs."""
    found = set()
    for path in (ROOT / "bench").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body):
            found.add(path.stem)
    return found | {path.parent.name for path in (ROOT / "bench").glob("*/__main__.py")}


def test_every_entry_point_is_a_command() -> None:
    assert guards() == {*console.COMMANDS, "console"}
    assert len(set(console.COMMANDS)) == len(console.COMMANDS)


def test_help_lists_every_command(place: Path) -> None:
    for args in ([], ["--help"], ["-h"], ["help"]):
        done = fewstep(place, *args)
        assert (done.returncode, done.stderr) == (0, "")
        for name in console.COMMANDS:
            (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"  {name} ")]
            assert len(line.split()) > 4, line


def test_each_command_has_its_help(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One as it is typed; all in a process of one script, which imports every module beside those that raise."""
    typed = fewstep(place, "sweep", "--help")
    module = subprocess.run([sys.executable, "-m", "bench.sweep", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (typed.returncode, typed.stderr) == (0, "")
    assert typed.stdout == module.stdout
    script = place.parent / "bin" / "fewstep"
    loop = "for name in COMMANDS:\n    assert main([name, '--help']) == 0\n    print('#' * 9)\n"
    script.write_text("from bench.console import COMMANDS, main\n" + loop)
    done = fewstep(place)
    assert (done.returncode, done.stderr) == (0, "")
    for name, text in zip(console.COMMANDS, done.stdout.split("#" * 9 + "\n")[:-1], strict=True):
        assert importlib.import_module(f"bench.{console.ELSEWHERE.get(name, name)}").main(["--help"]) == 0
        assert capsys.readouterr().out == text


def test_the_version_is_that_of_the_distribution(place: Path) -> None:
    done = fewstep(place, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"fewstep {importlib.metadata.version('fewstep')}\n"


def test_an_unknown_command_is_one_line(place: Path) -> None:
    for typed, wanted in (("sweeep", "did you mean sweep?"), ("+suite=digits", "known: certify, "), ("--verison", "fewstep --help")):
        done = fewstep(place, typed)
        assert (done.returncode, done.stdout) == (2, "")
        (said,) = lines(done.stderr)
        assert said.startswith(f"error: unknown command '{typed}'")
        assert wanted in said
    done = fewstep(place, "sweep", "+suite=digit")
    assert done.returncode == 2
    assert lines(done.stderr) == ["error: unknown suite 'digit'; did you mean digits?"]


@pytest.mark.slow
def test_a_sweep_with_workers_finds_only_what_is_installed(place: Path) -> None:
    """The helpers are processes of their own, which import everything anew."""
    blocks = "suite.blocks=[{solver: [euler, heun, dpmpp_2m], grid: polynomial, end: sigma_min, nfe: [1, 2, 3, 4]}]"
    done = fewstep(place, "sweep", "+suite=smoke", "suite.samples=20", "suite.base.metrics=[fd_digits]", blocks, "workers=2", "threads=2")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    rows = [json.loads(line) for line in (place / "results" / "smoke" / "runs.jsonl").read_text().splitlines()]
    assert {row["status"] for row in rows} == {"ok"}
    again = fewstep(place, "sweep", "+suite=smoke", "suite.samples=20", "suite.base.metrics=[fd_digits]", blocks)
    assert ", 0 to do" in again.stderr
    assert fewstep(place, "report", "suite=smoke").returncode == 0


def test_a_card_records_the_command_that_made_it(monkeypatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(train, "train_model", lambda config, command, world: made.append(command))
    for args in (["model=digits", "batches=3", "out=x"], ["+model=digits", "threads=1"]):
        assert console.main(["train", *args]) == train.main(args) == 0
    assert made == ["python -m bench.train model=digits batches=3"] * 2 + ["python -m bench.train +model=digits"] * 2


def test_helpers_work(place: Path) -> None:
    """That the helpers of the script start at all: the work of a sweep may be over before they do."""
    code = (place.parent / "bin" / "fewstep").read_text().replace("sys.exit(", "sys.exit(work() or ")
    body = "from bench.execute.helping import helping\nfrom fewstep.progress import say as done\n"
    body += "def work():\n    with helping(print_to, [{'path': 'helped'}]):\n        pass\n"
    body += "def print_to(config):\n    open(config['path'], 'w').close()\n"
    (place.parent / "bin" / "fewstep").write_text(body + code)
    assert fewstep(place, "--version").returncode == 0
    assert (place / "helped").exists()
