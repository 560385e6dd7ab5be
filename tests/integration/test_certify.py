"""python -m bench.certify: the table, the records and the exit codes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench import certify
from bench.settings import cli
from fewstep.plugins import Entry, get
from support.midpoint import installed_plugin, python

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of diffusers


def certified(*args: str) -> int:
    return cli.entry("certify", certify.__doc__ or "", certify.run, [*args, "threads=1"])


def test_one_solver(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert certified("solver=dpmpp_2m", f"results={tmp_path}") == 0
    out, err = capsys.readouterr()
    assert "dpmpp_2m" in out
    assert "1 of 1 certificates hold" in err
    (record,) = json.loads((tmp_path / "certificates.json").read_text())
    assert (record["solver"], record["holds"], record["claims"]["order"]) == ("dpmpp_2m", True, 2)
    assert {"transport", "steps", "order", "vectors", "golden", "diffusers", "counts"} == {f["check"] for f in record["findings"]}
    assert "| dpmpp_2m" in (tmp_path / "certificates.md").read_text()


def test_unknown_solvers_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert certified("solver=dpmpp_2n", f"results={tmp_path}") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert "unknown solver 'dpmpp_2n'; did you mean" in err
    assert certified("solvr=heun") == 2
    assert "did you mean solver?" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certify, "certified", lambda entry: pytest.fail("work was done"))
    (tmp_path / "file").write_text("")
    assert certified("solver=euler", f"results={tmp_path}/file/results") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert "cannot be written (Not a directory); give another with results=PATH" in err


def test_a_solver_that_cannot_be_made_has_a_failing_certificate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong:
        def __init__(self) -> None:
            raise RuntimeError("no network here\nat all")

    entries = [Entry("solver", "wrong", "paper", dataclass(frozen=True, init=False)(Wrong), {}), get("solver", "euler")]
    monkeypatch.setattr(certify, "chosen", lambda name: entries)
    assert certified(f"results={tmp_path}") == 1
    out, err = capsys.readouterr()
    assert "failed: wrong: claims on all: expected a solver with claims, found RuntimeError (no network here)\n" in err
    assert "1 of 2 certificates hold" in err
    assert "Traceback" not in out + err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert certified("--help") == 0
    assert "solver=heun" in capsys.readouterr().out


def test_a_failing_certificate_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Heun registered under Euler's name has neither Euler's outputs nor, for those, its evaluations."""
    wrong = type(get("solver", "heun"))("solver", "euler", "paper", get("solver", "heun").cls, {})
    monkeypatch.setattr(certify, "chosen", lambda name: [wrong])
    assert certified(f"results={tmp_path}") == 1
    err = capsys.readouterr().err
    assert "failed: euler: vectors on 7 nodes, polynomial" in err
    assert "0 of 1 certificates hold" in err
    assert "NO" in (tmp_path / "certificates.md").read_text()


def test_a_plugin_from_anywhere_gets_its_certificate(tmp_path: Path) -> None:
    plugin, work = installed_plugin(tmp_path / "site"), tmp_path / "work"
    work.mkdir()
    done = python(work, plugin, "bench.certify", "solver=midpoint")
    assert done.returncode == 0, done.stderr
    assert "midpoint" in done.stdout
    (record,) = json.loads((work / "results" / "certificates.json").read_text())
    assert record["holds"]
    assert {f["check"] for f in record["findings"]} == {"transport", "steps", "order", "counts"}
