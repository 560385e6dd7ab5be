"""A sweep of a task with ground truth: its samples against their true images, from a suite to its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bench import sweep
from bench.evaluate.judge import Judge
from bench.evaluate.measuring import work_of
from bench.jobs.models import Model, load_model
from bench.settings.compose import group_config
from bench.store.artefacts import Store
from bench.store.rows import Rows
from metrics.reference import described

METRICS = ["psnr", "consistency", "diversity_condition", "psnr_hidden", "fd_digits"]


def written(folder: Path, task: str) -> Path:
    """A suite of a model with that task."""
    (folder / "model").mkdir(parents=True)
    config = {**group_config("model", "digits"), "name": "asked", **({"task": task} if task else {})}
    (folder / "model" / "asked.yaml").write_text(yaml.safe_dump(config))
    cells = {"method": "teacher", "solver": ["euler"], "grid": ["polynomial"], "end": ["zero"], "nfe": [2], "metrics": METRICS}
    rows = {"method": "naive", "solver": ["picture", "real_heldout"], "metrics": ["psnr"]}
    suite = {"name": "paired", "model": "asked", "samples": 20, "reference": "dpmpp_2m", "reference_steps": 4, "options": {}}
    (folder / "paired.yaml").write_text(yaml.safe_dump({**suite, "blocks": [cells, rows]}))
    return folder / "paired.yaml"


def swept(folder: Path, task: str) -> dict[tuple[str, str], dict[str, Any]]:
    suite = folder / "paired.yaml" if (folder / "paired.yaml").exists() else written(folder, task)
    assert sweep.main([f"suite={suite}", f"conf={folder}", f"results={folder / 'results'}", "threads=1"]) == 0
    found = Rows(Store(folder / "results"), "paired", print).read()
    return {(row["solver"], row["metric"]): row for row in found}


def test_samples_of_a_task_with_ground_truth_are_compared_with_it(tmp_path: Path) -> None:
    found = swept(tmp_path, "superres_x2")
    psnr = found["euler", "psnr"]
    assert (psnr["status"], psnr["samples"]) == ("ok", 20)
    assert psnr["std_error"] > 0
    assert psnr["protocol"]["pairs"]["task"].startswith("Pictured(degradation='bicubic_x2'")
    assert psnr["protocol"] | {"border": 0, "channels": "rgb", "over": "images", "conditions": 20} == psnr["protocol"]
    assert "pairs" not in found["euler", "fd_digits"]["protocol"]
    assert "masks of conditions" in found["euler", "psnr_hidden"]["error"]
    assert "draw several: each=4" in found["euler", "diversity_condition"]["error"]
    told = found["picture", "psnr"]  # what enlarging alone scores
    assert told["value"] > psnr["value"]
    assert told["protocol"]["pairs"] == psnr["protocol"]["pairs"]
    assert found["real_heldout", "psnr"]["status"] == "unavailable"
    assert found["euler", "consistency"]["value"] > 10
    lines = (tmp_path / "results" / "paired" / "runs.jsonl").read_text()
    swept(tmp_path, "superres_x2")
    assert (tmp_path / "results" / "paired" / "runs.jsonl").read_text() == lines


def test_a_task_without_ground_truth_has_no_paired_numbers(tmp_path: Path) -> None:
    found = swept(tmp_path, "")
    for name in METRICS[:4]:
        row = found["euler", name]
        assert row["status"] == "unavailable"
        assert row["error"] == f"{name} compares with the true images that conditions were made of, and these samples have none"
    assert found["euler", "fd_digits"]["status"] == "ok"
    assert "the row picture is of tasks that ask by pictures, and a ClassConditional asks by none" in found["picture", "psnr"]["error"]


def test_the_address_of_a_paired_number_holds_the_task_and_the_images_that_are_held_out() -> None:
    config = group_config("model", "digits")

    def work(model: Model) -> str:
        judge = Judge(described(model.data), {})
        return work_of("psnr", model.digest, "", judge, "cpu")

    two = load_model({**config, "task": "superres_x2"}, "cpu")
    four = load_model({**config, "task": "superres_x4"}, "cpu")
    assert work(two) == work(load_model({**config, "task": "superres_x2"}, "cpu"))
    assert work(two) != work(four)
    assert np.array_equal(two.data.heldout_x[:], four.data.heldout_x[:])
