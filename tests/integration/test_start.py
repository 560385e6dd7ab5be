"""docs/start.md as a newcomer types it: a network, images, a metric and a suite of one's own, from a folder outside of the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import sweep
from bench.settings import cli
from bench.store.rows import read_rows
from support.repository import ROOT

LINES = 60  # of Python and YAML together


def blocks() -> dict[str, str]:
    """The files that docs/start.md tells a reader to write."""
    text = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    return dict(re.findall(r"```\w+ title=(\S+)\n(.*?)```", text, re.DOTALL))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The reader's folder, with 64 images, and a space and an umlaut in its path."""
    own = tmp_path / "my own försök"
    (own / "images").mkdir(parents=True)
    drawn = np.random.RandomState(0)
    for i in range(64):
        Image.fromarray(drawn.randint(0, 256, (20, 24, 3), dtype=np.uint8)).save(own / "images" / f"{i}.png")
    for name, text in blocks().items():
        (own / name).write_text(text, encoding="utf-8")
    return own


def command(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", *args], cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_the_files_are_few() -> None:
    written = blocks()
    assert set(written) == {"mine.py", "model.yaml", "suite.yaml"}
    assert sum(1 for text in written.values() for line in text.splitlines() if line.strip()) <= LINES


def test_own_network_images_metric_and_suite(folder: Path) -> None:
    first = command(folder, "bench.sweep", "suite=./suite.yaml", "plugins=mine", "threads=1")
    assert first.returncode == 0, first.stderr
    rows, corrupt = read_rows(folder / "results" / "mine" / "runs.jsonl")
    assert not corrupt
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["method"] for row in rows} == {"teacher", "cd", "sfd"}
    own = {(row["solver"], row["nfe"]): row for row in rows if row["metric"] == "colour_gap"}
    assert all(row["std_error"] > 0 for row in own.values())
    assert own["euler", 8]["components"]["metric colour_gap"] == 1
    again = command(folder, "bench.sweep", "suite=./suite.yaml", "plugins=mine", "threads=1")
    assert "13 done before, 0 to do" in again.stderr
    told = (folder / "results" / "mine" / "students.md").read_text()
    assert re.search(r"\| sfd +\| euler +\| 2 .*(better|worse) by|not told apart", told)
    assert "colour_gap" in (folder / "results" / "mine" / "summary.md").read_text()
    report = command(folder, "bench.report", "suite=mine", "plugins=mine", "pictures=false")
    assert report.returncode == 0, report.stderr
    two = command(folder, "bench.sweep", "suite=./suite.yaml", "plugins=mine", "workers=2", "threads=2", "results=two")
    assert two.returncode == 0, two.stderr
    both = {(r["method"], r["solver"], r["nfe"], r["metric"]): r["value"] for r in read_rows(folder / "two" / "mine" / "runs.jsonl")[0]}
    # threads share sums in another order: float32 samples differ by their rounding, and metrics by as much
    assert both == pytest.approx({(r["method"], r["solver"], r["nfe"], r["metric"]): r["value"] for r in rows}, rel=1e-3, abs=1e-4)


def test_its_student_is_exported_and_loaded(folder: Path) -> None:
    args = ["bench.export", "method=cd", "steps=2", "model=./model.yaml", "suite=./suite.yaml", "plugins=mine", "out=cd"]
    done = command(folder, *args)
    assert done.returncode == 0, done.stderr
    code = "import mine, torch, fewstep; print(fewstep.load_student('cd').sample(torch.arange(4))[0].shape)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert told.stdout == "torch.Size([4, 3, 16, 16])\n", told.stderr


def test_a_folder_of_images_is_scored(folder: Path) -> None:
    done = command(folder, "bench.measure", "images=images", "reference=images", "plugins=mine", "out=scores.jsonl")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^colour_gap +0\.\d+ +0\.\d+ +levels", done.stdout, re.MULTILINE)
    assert "psnr_teacher: not measured" in done.stderr
    assert '"metric": "energy_distance"' in (folder / "scores.jsonl").read_text()
    for name in ("cat", "dog"):
        (folder / "pets" / name).mkdir(parents=True)
        for i in range(3):
            (folder / "pets" / name / f"{i}.png").write_bytes((folder / "images" / f"{i}.png").read_bytes())
    strange = command(folder, "bench.measure", "images=pets", "reference=digits")
    assert strange.returncode == 2
    assert "'cat' is no class of digits; name subfolders 0, 1, 2" in strange.stderr
    loose = command(folder, "bench.measure", "images=images", "reference=digits", "metrics=class_accuracy,nn_train_share")
    assert "class_accuracy: not measured: it compares labels, and the images are in no subfolders" in loose.stderr
    assert "nn_train_share" in loose.stdout
    wrong = command(folder, "bench.measure", "images=nowhere", "reference=images")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("suite=./other.yaml",), "error: suite=./other.yaml does not exist"),
        (("suite=./suite.yaml",), "error: unknown metric 'colour_gap'"),
        (("suite=./suite.yaml", "plugins=missing"), "error: plugins=missing fails to import: No module named 'missing'"),
        (("suite=./suite.yaml", "conf=nowhere"), "error: conf=nowhere is no folder"),
    ],
)
def test_bad_input_is_one_line(folder: Path, args: tuple[str, ...], told: str, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    assert cli.entry("sweep", "", sweep.run, [*args, "threads=1"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(told)
    assert err.count("\n") == 1
