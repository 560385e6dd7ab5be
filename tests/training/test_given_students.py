"""Students that are there already: rows of a sweep by the path of their weights, without any training."""

import json
from pathlib import Path

import pytest
import torch

from bench import export, sweep
from bench.jobs.fits.published import given_student
from bench.jobs.fits.students import Student
from bench.jobs.models import load_model
from fewstep.errors import Unavailable, UsageError
from fewstep.nets.published.edm import SongUNet
from fewstep.nets.published.openai_unet import OpenaiUNet
from support.edm_file import edm_checkpoint
from support.published import golden_state

SUITE = """
name: given
model: ./model.yaml
samples: 20
reference: heun
reference_steps: 8
options: {cd: {weights: cd_digits8.pt}, ctm: {weights: ctm_digits8.pt}}
base: {metrics: [fd_digits]}
blocks:
  - {method: cd, nfe: 1}
  - {method: cd, grid: at 5 0.821, nfe: 3}
  - {method: ctm, nfe: 2}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a published teacher of digits, two students, and a suite of them."""
    monkeypatch.chdir(tmp_path)
    teacher = SongUNet((1, 8, 8), 10, {"channels": 8, "mult": [1, 2], "blocks": 1, "attention": [4]})
    teacher.load_state_dict(golden_state(teacher))
    edm_checkpoint(tmp_path / "edm-digits.pkl", teacher, {})
    for name in ("cd", "ctm"):
        net = OpenaiUNet((1, 8, 8), 10, {"channels": 32, "mult": [1], "blocks": 1, "attention": [0]}, two_time=name == "ctm")
        net.load_state_dict(golden_state(net))
        torch.save(net.state_dict(), tmp_path / f"{name}_digits8.pt")
    (tmp_path / "model.yaml").write_text("name: published\ndata: digits\nweights: ./edm-digits.pkl\n")
    (tmp_path / "suite.yaml").write_text(SUITE)
    return tmp_path


def rows() -> list[dict]:
    return [json.loads(line) for line in Path("results/given/runs.jsonl").read_text().splitlines()]


def test_published_students_are_rows(folder, capsys):
    assert sweep.main(["suite=./suite.yaml"]) == 0
    found = [r for r in rows() if r["metric"] == "fd_digits"]
    assert [(r["method"], r["nfe"], r["status"], r["train_seconds"]) for r in found] == [
        ("cd", 1, "ok", None),  # what it cost is not known
        ("cd", 3, "ok", None),
        ("ctm", 2, "ok", None),
    ]
    count = len(rows())
    assert sweep.main(["suite=./suite.yaml"]) == 0
    assert len(rows()) == count
    assert export.main(["method=cd", "steps=1", "suite=./suite.yaml", "model=./model.yaml"]) == 2
    assert "loads anywhere already" in capsys.readouterr().err


def test_students_that_do_not_fit(folder):
    model = load_model({"name": "published", "data": "digits", "weights": "edm-digits.pkl"}, "cpu")
    for method, weights, message in (
        ("cd", "edm-digits.pkl", "are no student but a song_unet"),
        ("cd", "ctm_digits8.pt", "is one of ctm, not of cd"),
    ):
        with pytest.raises(UsageError, match=message):
            given_student(Student(method, {"weights": weights}), model, 1, "cpu")
    with pytest.raises(UsageError, match=r"weights 'other\.pt' not found"):
        Student("cd", {"weights": "other.pt"}).distiller()
    lost = Student("cd", {"weights": "weights/cd_cat256_l2.pt"})
    with pytest.raises(Unavailable, match=r"cd_cat256_l2\.pt of cd is not here; type python -m bench\.fetch what=consistency_models\."):
        given_student(lost, model, 1, "cpu")
    other = OpenaiUNet((1, 8, 8), 3, {"channels": 32, "mult": [1], "blocks": 1, "attention": [0]})
    torch.save(other.state_dict(), "cd_digits8.pt")
    with pytest.raises(UsageError, match="3 classes and model published has 10"):
        given_student(Student("cd", {"weights": "cd_digits8.pt"}), model, 1, "cpu")
    Path("cd_digits8.pt").rename("cd_digits16.pt")
    with pytest.raises(UsageError, match=r"makes images of \[1, 16, 16\] and model published makes \[1, 8, 8\]"):
        given_student(Student("cd", {"weights": "cd_digits16.pt"}), model, 1, "cpu")
