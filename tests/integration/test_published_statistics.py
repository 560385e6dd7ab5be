"""Sweeps that are measured against published statistics: in place of images that are not here, and beside those that are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import sweep
from bench.evaluate.judge import make_judge
from bench.settings import cli
from fewstep.data.digits import digits

BLOCKS = """
base: {metrics: [fd_digits, energy_distance, nn_train_share, psnr_teacher]}
blocks:
  - {solver: euler, grid: polynomial, end: sigma_min, nfe: 2}
  - {method: naive, solver: [class_means, real_train], metrics: [fd_digits]}
  - {method: sfd, nfe: 2, metrics: [fd_digits]}
  - {method: cd, nfe: 1, metrics: [fd_digits]}
options: {sfd: {batches: 2, batch_size: 8}, cd: {weights: weights/cd_imagenet64_l2.pt}}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Statistics of the digits, and a folder to work in where no other data set is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    found = make_judge(digits(), None, {"fd_digits"}).reference.spaces["digits"].moments
    np.savez("digits-8x8.npz", mu=found.mean, sigma=found.cov)
    return tmp_path


def swept(name: str, capsys: pytest.CaptureFixture[str], model: str, *args: str) -> tuple[dict[tuple[str, ...], dict[str, Any]], str, int]:
    """The rows of a sweep on a model, by method, solver and metric; what was said; and the exit code."""
    Path(f"{name}_model.yaml").write_text(f"weights: digits_edm\n{model}\n")
    head = f"name: {name}\nmodel: ./{name}_model.yaml\nsamples: 40\nreference: dpmpp_2m\nreference_steps: 8"
    Path(f"{name}.yaml").write_text(f"{head}{BLOCKS}")
    code = cli.entry("sweep", "", sweep.run, [f"suite=./{name}.yaml", "results=results", "threads=1", *args])
    path = Path("results") / name / "runs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    told = capsys.readouterr()
    assert len(rows) == len({(row["method"], row["solver"], row["metric"]) for row in rows})
    return {(row["method"], row["solver"], row["metric"]): row for row in rows}, told.out + told.err, code


def test_a_sweep_without_the_images_is_measured_against_their_statistics(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, _, code = swept("whole", capsys, "data: digits")
    assert code == 0
    rows, told, code = swept("bare", capsys, "data: cifar10\nstatistics: ./digits-8x8.npz", "dry=true")
    assert (rows, code) == ({}, 0)
    assert "refused fit cd" in told
    assert "what=consistency_models.cd_imagenet64_l2" in told
    for _ in range(2):  # a second time adds nothing
        rows, told, code = swept("bare", capsys, "data: cifar10\nstatistics: ./digits-8x8.npz")
        assert code == 0
        assert {row["status"] for row in rows.values()} == {"ok", "unavailable"}
        one, same = rows["teacher", "euler", "fd_digits"], whole["teacher", "euler", "fd_digits"]
        assert one["value"] == pytest.approx(same["value"], rel=1e-6)
        statistics = one["protocol"]["statistics"]
        assert statistics.startswith("digits-8x8-")
        assert one["conditions"]["statistics"] == one["components"]["statistics"] == statistics
        assert one["protocol"]["work"] != same["protocol"]["work"]
        assert (one["dataset"], one["protocol"]["data"]) == ("cifar10", f"no images, but statistics {statistics}")
        assert rows["teacher", "euler", "psnr_teacher"]["value"] == whole["teacher", "euler", "psnr_teacher"]["value"]
        assert "statistics" not in rows["teacher", "euler", "psnr_teacher"]["conditions"]
        for key, words in {
            ("teacher", "euler", "energy_distance"): "compares with real images, and of data set cifar10 only statistics are here",
            ("teacher", "euler", "nn_train_share"): "needs training and held-out images",
            ("naive", "class_means", "fd_digits"): "the images of cifar10 are not here, only their statistics (digits-8x8-",
            ("naive", "real_train", "fd_digits"): "only their statistics (digits-8x8-",
            ("sfd", "euler", "fd_digits"): "the images of cifar10 are not here",
            ("cd", "consistency", "fd_digits"): "cd_imagenet64_l2.pt of cd is not here; type python -m bench.fetch what=",
        }.items():
            assert words in rows[key]["error"], rows[key]["error"]
            assert rows[key]["status"] == "unavailable"


def test_statistics_beside_images_are_what_their_distance_is_to(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load("digits-8x8.npz") as found:
        np.savez("other.npz", mu=found["mu"] + 1, sigma=found["sigma"])
    whole, _, _ = swept("both", capsys, "data: digits")
    (place / "results" / "both" / "runs.jsonl").unlink()
    rows, _, code = swept("both", capsys, "data: digits\nstatistics: ./other.npz")
    assert code == 0
    moved = [rows[key]["value"] - whole[key]["value"] for key in rows if key[2] == "fd_digits" and rows[key]["status"] == "ok"]
    assert len(moved) == 4
    assert min(moved) > 10  # of 64 features each mean is another by 1, and not in the same direction
    for metric in ("energy_distance", "nn_train_share"):
        assert rows["teacher", "euler", metric]["value"] == whole["teacher", "euler", metric]["value"]
        assert "statistics" not in rows["teacher", "euler", metric]["conditions"]


def test_statistics_that_are_none_of_these_images_are_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("digits-8x8.npz").rename("mine-64x64.npz")
    for data in ("digits", "cifar10"):
        rows, told, code = swept("wrong", capsys, f"data: {data}\nstatistics: ./mine-64x64.npz")
        assert (rows, code) == ({}, 2)
        assert "statistics mine-64x64.npz are of images of 64x64, and these are 8x8; give those of the same resolution" in told
        rows, told, code = swept("wrong", capsys, f"data: {data}\nstatistics: fid-refs/imagenet-64x64.npz")
        assert (rows, code) == ({}, 2)
        assert "statistics fid-refs/imagenet-64x64.npz (type python -m bench.fetch what=edm_statistics.imagenet64" in told
