"""What stays of samples, what the store says that it holds, and what prune frees and leaves."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from bench import storage as space
from bench import sweep
from bench.settings import cli
from bench.space.claims import claiming, claims
from bench.space.keeping import KEEP, displayed
from bench.space.usage import artefacts
from bench.store.artefacts import Store
from bench.store.rows import read_rows
from support.artefacts import fill_with, silent
from support.repository import ROOT
from support.suites import BLOCK

MORE = BLOCK.replace("[fd_digits]", "[fd_digits,nn_train_share]")


def swept(folder: Path, *args: str) -> list[str]:
    """Sweep one cell; the lines of its rows that are no failure."""
    assert cli.entry("sweep", "", sweep.run, ["suite=smoke", "suite.samples=20", f"results={folder}", "threads=1", *args]) == 0
    rows, _ = read_rows(folder / "smoke" / "runs.jsonl")
    return [json.dumps([row["metric"], row["value"], row["std_error"], row["key"]]) for row in rows]


def kinds(folder: Path) -> dict[str, int]:
    """How many artefacts of each kind there are, those of real images apart."""
    return dict(Counter(artefact.kind for artefact in artefacts(Store(folder)) if artefact.kind != "reference"))


@pytest.mark.parametrize("keep", KEEP)
def test_what_is_kept_changes_no_row_and_is_made_again(keep: str, tmp_path: Path) -> None:
    rows = swept(tmp_path, BLOCK, f"keep={keep}")
    expected = {"samples": {"samples": 1, "features": 1}, "features": {"features": 1, "shown": 1}, "none": {"shown": 1}}
    assert kinds(tmp_path) == expected[keep]
    key = json.loads(rows[0])[3]
    images = displayed(Store(tmp_path).root, key)
    assert images is not None
    assert len(images.images[:]) == len(images.labels) == 20
    assert (tmp_path / "smoke" / "samples_teacher.png").is_file()
    assert swept(tmp_path, BLOCK, f"keep={keep}") == rows
    assert kinds(tmp_path) == expected[keep]
    more = swept(tmp_path, MORE, f"keep={keep}")  # a later metric
    assert set(rows) < set(more)
    assert kinds(tmp_path) == expected[keep]
    assert not claims(Store(tmp_path))


@pytest.mark.parametrize("keep", KEEP)
def test_exact_solutions_are_kept_with_samples_alone(keep: str, tmp_path: Path) -> None:
    exact = ["suite.reference=exact", "suite.reference_steps=2", f"keep={keep}"]
    rows = swept(tmp_path, BLOCK.replace("[fd_digits]", "[psnr_teacher]"), *exact)
    assert kinds(tmp_path).get("truth", 0) == (keep == "samples")
    more = swept(tmp_path, BLOCK.replace("[fd_digits]", "[psnr_teacher,fd_digits]"), *exact)
    assert set(rows) < set(more)
    assert kinds(tmp_path).get("truth", 0) == (keep == "samples")


def test_an_unknown_choice_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.entry("sweep", "", sweep.run, ["suite=smoke", f"results={tmp_path}", "keep=feature"]) == 2
    assert capsys.readouterr().err == (
        "error: keep must be one of samples, features, none, got 'feature'; did you mean features?; e.g. keep=features\n"
    )


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A results folder with one cell, and artefacts that no row refers to; the address of the cell's samples."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    key = json.loads(swept(tmp_path, BLOCK)[0])[3]
    for kind in ("samples", "fit"):
        Store(tmp_path).ensure(kind, "ab" * 8, fill_with("a"), silent)
    return tmp_path, key


def said(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert space.main([*args]) == code
    return capsys.readouterr()


def test_du_says_what_is_there_and_who_needs_it(results: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, key = results
    out, _ = said(capsys, "du", f"results={folder}")
    (line,) = [line for line in out.splitlines() if key in line]
    assert "20 network passes" in line
    assert line.endswith("smoke")
    assert sum(line.endswith("nobody") for line in out.splitlines()) == 2
    out, _ = said(capsys, "du", f"results={folder}", "kind=fit")
    assert key not in out
    out, err = said(capsys, "du", f"results={folder}", "most=1")
    assert "5 smaller ones are not listed; type most=6" in err


def test_prune_frees_what_no_row_refers_to(results: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = results
    before = kinds(folder)
    assert before == {"samples": 2, "features": 1, "fit": 1}
    _, err = said(capsys, "prune", f"results={folder}", "dry=true")
    assert "would be freed by 1 artefacts" in err
    assert kinds(folder) == before
    said(capsys, "prune", f"results={folder}")
    assert kinds(folder) == {"samples": 1, "features": 1, "fit": 1}
    said(capsys, "prune", f"results={folder}", "older=30d")
    assert kinds(folder) == {"samples": 1, "features": 1, "fit": 1}
    said(capsys, "prune", f"results={folder}", "kind=fit")
    assert kinds(folder) == {"samples": 1, "features": 1}
    said(capsys, "prune", f"results={folder}", "keep=none")
    assert kinds(folder) == {"shown": 1}


@pytest.mark.parametrize("trouble", ["damaged", "full disk"])
def test_space_is_freed_without_pictures_where_there_can_be_none(
    trouble: str, results: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, key = results
    (part,) = Store(folder).path("samples", key).glob("*.safetensors")
    if trouble == "damaged":
        part.write_bytes(b"nothing")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if trouble == "full disk":
        monkeypatch.setattr(os, "fsync", full)
    _, err = said(capsys, "prune", f"results={folder}", "kind=samples")
    assert "freed by removing 2 artefacts" in err
    assert kinds(folder) == {"features": 1, "fit": 1}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["prun"], "error: say what to do with the store: du, prune or check, got 'prun'; did you mean prune?"),
        (["prune", "older=soon"], "error: older is a number of hours, days or weeks, got 'soon'; e.g. older=30d"),
        (["prune", "kind=sample"], "error: unknown kind of artefact 'sample'; did you mean samples?; e.g. kind=samples"),
        (["prune", "keep=samples"], "error: keep=samples frees nothing; type keep=features, or keep=none"),
        (["du", "results=nowhere"], "error: nowhere holds no store, which a sweep makes there; give the folder of one with results=PATH"),
    ],
)
def test_bad_input_is_one_line(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Store(Path("results"))
    out, err = said(capsys, *args, code=2)
    assert (out, err) == ("", message + "\n")


def test_what_an_unfinished_sweep_needs_stays(results: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, key = results
    store, before = Store(folder), kinds(folder)
    with claiming(store, "other", "id"):  # which has not said yet what it needs
        _, err = said(capsys, "prune", f"results={folder}", "kind=samples")
        assert err.splitlines()[0].startswith("left 2 artefacts (")
        assert "the sweep of suite other that runs since" in err
        assert kinds(folder) == before
    with suppress(KeyboardInterrupt), claiming(store, "other", "id") as claim:
        claim.tell([key])
        raise KeyboardInterrupt
    (left,) = claims(store)
    assert (left.alive, left.needs) == (False, frozenset([key]))
    _, err = said(capsys, "prune", f"results={folder}", "keep=none")
    assert "the sweep of suite other that was stopped after it began at" in err
    assert kinds(folder) == {**before, "samples": 1}  # the one that nobody needs went
    with claiming(store, "other", "id") as claim:  # begun again, and finished
        claim.tell([key])
    assert not claims(store)
    said(capsys, "prune", f"results={folder}", "keep=none")
    assert kinds(folder) == {"fit": 1, "shown": 1}


def test_prune_while_a_sweep_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It loses nothing, of one that is killed neither; `stopped=true` gives that up."""
    command = [sys.executable, "-m", "bench.sweep", "suite=smoke", f"results={tmp_path}", "threads=1", "suite.options.cd.batches=100000"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".store/samples/*/record.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    for state in ("runs since", "was stopped"):
        made = {path.name for path in tmp_path.glob(".store/samples/*")}
        _, err = said(capsys, "prune", f"results={tmp_path}", "kind=samples")
        assert err.splitlines()[0].startswith("left ")
        assert f"the sweep of suite smoke that {state}" in err.splitlines()[0]
        assert err.splitlines()[-1] == "0 B freed by removing 0 artefacts"
        assert made <= {path.name for path in tmp_path.glob(".store/samples/*")}
        process.kill()
        process.wait()
    said(capsys, "prune", f"results={tmp_path}", "kind=samples", "stopped=true")
    assert not list(tmp_path.glob(".store/samples/*"))
