"""The smoke budgets of suites, whole: a cell of each block and a fit of each method, on data that are made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import sweep
from bench.jobs.suite import expand
from bench.settings import cli
from bench.settings.compose import group_config
from fewstep.plugins import entries

# What a suite has under smoke, but for the cells that take most of the time: one solver, one that is fitted, one student and real images.
FEW = (
    "[{method: naive, solver: real_heldout, metrics: [energy_distance]}, {solver: euler, grid: polynomial, end: sigma_min, nfe: 2}, "
    "{solver: amed, grid: time_uniform, end: sigma_min, afs: true, nfe: 3}, {method: sfd, nfe: 2}]"
)
NOTHING = "nothing to measure them with"


def swept(results: Path, *args: str) -> list[dict]:
    assert cli.entry("sweep", "", sweep.run, ["budget=smoke", *args, f"results={results}", "threads=1"]) == 0
    return [json.loads(line) for path in results.glob("*/runs.jsonl") for line in path.read_text().splitlines()]


def test_every_row_of_a_smoke_run_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched: no data set is where it would be, and the cache is empty."""
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    rows = swept(tmp_path, "suite=cifar", f"suite.blocks={FEW}")
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["conditions"]["budget"] for row in rows} == {"smoke (not a measurement)"}
    assert all(row["protocol"]["warning"].startswith("not a measurement") for row in rows)
    assert all(row["config"]["suite"]["budget_name"] == "smoke" for row in rows)
    assert "not a measurement" in (tmp_path / "cifar" / "summary.md").read_text()
    before = len(rows)
    assert len(swept(tmp_path, "suite=cifar", f"suite.blocks={FEW}")) == before  # a second run adds nothing


def test_a_row_s_own_suite_is_of_its_budget(tmp_path: Path) -> None:
    """The configuration that a row holds makes the same cell again, under the same conditions."""
    rows = swept(tmp_path, "suite=cifar", "suite.blocks=[{solver: euler, grid: polynomial, end: sigma_min, nfe: 2}]")
    suite = expand(rows[0]["config"]["suite"], 0, "philox")
    assert (suite.budget, suite.mark, suite.samples) == ("smoke", "not a measurement", 40)


def test_a_dry_run_tells_hours_memory_and_disk_of_each_block(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swept(tmp_path, "suite=cifar", f"suite.blocks={FEW}", "dry=true")
    said = capsys.readouterr().out.splitlines()
    blocks = [line for line in said if line.startswith("block ")]
    assert [line.split(":")[1].strip() for line in blocks] == ["real_heldout", "euler", "amed", "sfd"]
    assert all("hours" in line and "GB of memory" in line and "GB of disk" in line for line in blocks)
    assert said[-1].startswith("4 cells under budget=smoke, 4 to do, about ")
    assert not (tmp_path / "cifar").exists()


def test_a_dry_run_without_the_model_s_files_says_what_is_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    lost = ["suite.model=cifar10", "suite.blocks=[{solver: [euler, heun], grid: polynomial, end: sigma_min, nfe: 4}]"]
    assert swept(tmp_path, "suite=cifar", *lost, "dry=true") == []
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("lacking model cifar10 lacks: ")
    assert said[1:] == [
        "block 1: euler, heun: 2 cells, 320 passes to sample",
        f"2 cells under budget=smoke; hours, memory and disk are known when that is here: {NOTHING}",
    ]


MINE = """name: mine
data: patterns32
weights: weights/elsewhere.safetensors
arch: song_unet
config: {levels: {channels: 8, mult: [1, 1], blocks: 1, attention: [16]}, classes: 0}
sigma_range: [0.002, 80.0]
"""


def test_a_dry_run_without_the_weights_is_estimated_with_fresh_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a method that cannot have the model's teacher is a line, not the end."""
    (tmp_path / "mine.yaml").write_text(MINE)
    blocks = (
        "[{solver: euler, grid: polynomial, end: sigma_min, nfe: 2}, {method: [gd, sfd], nfe: 2}, {model: cifar_smoke, method: gd, nfe: 2}]"
    )
    mine = [f"suite.model={tmp_path / 'mine.yaml'}", f"suite.blocks={blocks}"]
    assert swept(tmp_path, "suite=cifar", *mine, "suite.base.metrics=[energy_distance,fid]", "dry=true") == []
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("lacking model mine lacks: ")
    assert said[1].startswith("estimated with a network of its kind and fresh weights")
    refused = [line for line in said if line.startswith("refused fit gd")]
    assert len(refused) == 1
    assert "gd distils guidance by class" in refused[0]
    assert [line for line in said if line.startswith("to do   fit sfd")]
    totals = [line for line in said if "under budget=smoke" in line]
    assert [line.split(",")[0] for line in totals] == ["3 cells under budget=smoke", "1 cells under budget=smoke"]
    assert all("hours" in line and "GB of memory" in line for line in totals)
    assert [line for line in said if line.startswith(("unknown features of inception: its network", "to do   features of inception: "))]


def test_cells_of_a_block_s_model_that_is_not_here_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text(MINE)
    euler = "{solver: euler, grid: polynomial, end: sigma_min, nfe: 2"
    blocks = f"suite.blocks=[{euler}}}, {euler}, model: {tmp_path / 'mine.yaml'}}}]"
    rows = swept(tmp_path, "suite=cifar", blocks)
    assert {(row["model"], row["status"]) for row in rows} == {("cifar_smoke", "ok")}
    assert "skipped 1 cells: model mine lacks: " in capsys.readouterr().err


def test_features_are_part_of_an_estimate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two cells that share their samples, and of the real images once."""
    blocks = "[{solver: [euler, ipndm_4], grid: polynomial, end: sigma_min, nfe: 1, metrics: [fd_digits]}]"
    args = ["suite=digits", "suite.samples=40", f"suite.blocks={blocks}", "dry=true", f"results={tmp_path}", "threads=1"]
    assert cli.entry("sweep", "", sweep.run, args) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("to do   features of digits: "))
    assert line.removeprefix("to do   features of digits: ").startswith(f"{1797 + 40:,} images at ")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar", "sfd_ablation_cifar", "imagenet64", "ffhq64", "afhqv2"])
def test_a_smoke_budget_runs_end_to_end(name: str, tmp_path: Path) -> None:
    """Every cell has its numbers, each method of the suite its fit."""
    rows = swept(tmp_path, f"suite={name}")
    assert {row["status"] for row in rows} == {"ok"}
    suite = expand(group_config("suite", name, budget="smoke"), 0, "philox")
    assert {row["method"] for row in rows} == {cell.method for cell in suite.cells}
    trained = {row["method"] for row in rows} & set(entries("distiller"))
    assert all((tmp_path / ".store" / "fit").is_dir() for _ in trained)
