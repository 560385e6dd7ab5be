"""What a row says is enough to make it again, and a component that computes something else has another address."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import sweep
from bench.evaluate.judge import make_judge
from bench.evaluate.measuring import work_of
from bench.jobs import solutions
from bench.jobs.models import load_model
from bench.jobs.resolve import options_of, resolve
from bench.jobs.rows import Facts, Made, config_of, row
from bench.jobs.solutions import truth_of
from bench.jobs.suite import expand
from bench.settings import cli
from bench.settings.compose import configure, group_config
from bench.store.cell import Cell
from bench.store.rows import read_rows
from bench.store.supersession import newest
from fewstep.errors import Unreachable
from fewstep.nets.unet import UNet
from fewstep.plugins import get
from metrics import Measurement, metrics_by_name
from support.registered import changed

METRICS = metrics_by_name()

SUITES = ("smoke", "arena", "digits", "digits_full", "sfd_ablation", "guidance")


@pytest.mark.parametrize("name", SUITES)
def test_a_rows_own_configuration_leads_to_the_same_samples(name: str) -> None:
    suite = expand(group_config("suite", name), 3, "philox")
    model = load_model(group_config("model", str(group_config("suite", name)["model"])), "cpu")
    checked = 0
    for cell in suite.cells[:: max(1, len(suite.cells) // 60)]:
        if cell.method == "naive":
            continue
        try:
            job = resolve(cell, suite, model)
        except Unreachable:
            continue
        config = config_of(job.cell, suite, model, ["fd_moments"])
        (again,) = (alone := expand(config["suite"], config["seed"], config["noise"])).cells
        assert resolve(again, alone, load_model(config["model"], "cpu")).key == job.key
        assert again.metrics == ("fd_moments",)
        checked += 1
    assert checked > 5


def smoke(**change: Any) -> Any:
    return replace(expand(group_config("suite", "smoke"), 0, "philox"), **change)


def test_only_options_that_are_not_the_default_name_another_contestant() -> None:
    cell = Cell(solver="dpmpp_2m", grid="polynomial", end="sigma_min", nfe=5)
    for options, told in (({"order": 1}, "order=1"), ({"order": 2}, ""), ({"order": 1, "lower_order_final": False}, None)):
        found = options_of(cell, smoke(options={"dpmpp_2m": options}))
        assert found == told if told is not None else found.startswith("lower_order_final=False, order=1")
    assert options_of(cell, smoke(options={"euler": {}, "cd": {"batches": 3}})) == ""


def test_a_row_states_its_conditions_and_the_versions_of_its_components() -> None:
    suite = smoke()
    model = load_model(group_config("model", "digits"), "cpu")
    judge = make_judge(model.data, model.teacher, {"fd_digits", "psnr_teacher"})
    cell = Cell(solver="euler", grid="polynomial", end="zero", nfe=2)
    facts = Facts("k", {}, 2, "cpu", Made(), components={"sampler": 2}, compared_with={"solver": "dpmpp_2m", "artifact": "a"})
    made = {
        m: row(cell, suite, model, judge, m, Measurement(1.0, None, 7, {}), facts) for m in ("fd_digits", "psnr_teacher", "peak_memory_mb")
    }
    base = {"samples": suite.samples, "seed": 0, "noise": "philox", "dtype": "float32"}
    assert made["fd_digits"]["conditions"] == base
    assert made["psnr_teacher"]["conditions"] == {**base, "compared_with": {"solver": "dpmpp_2m"}}
    assert set(made["peak_memory_mb"]["conditions"]) == {*base, "machine"}
    assert len({r["cohort"] for r in made.values()}) == 1
    assert made["fd_digits"]["components"]["metric fd_digits"] == METRICS["fd_digits"].version
    assert {"sampler", "metric fd_digits", "reference digits", "features digits"} == set(made["fd_digits"]["components"])
    naive = row(
        Cell("naive", "real_train"), suite, model, judge, "fd_digits", Measurement(1.0, None, 7, {}), Facts("k", {}, 0, "cpu", Made())
    )
    assert naive["conditions"] == {"samples": suite.samples, "seed": 0}


def job_key(wrap: str = "", model: str = "digits") -> str:
    cell = Cell(solver="euler", grid="polynomial", end="zero", nfe=2, wrap=wrap)
    return resolve(cell, smoke(), load_model(group_config("model", model), "cpu")).key


def student_key(model: str) -> str:
    config = group_config("suite", "smoke")
    job = resolve(Cell("cd", loss="l2", nfe=1), expand(config, 0, "philox"), load_model(group_config("model", model), "cpu"))
    assert job.student is not None
    return job.key


def test_a_wrapper_of_another_version_has_other_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {wrap: job_key(wrap) for wrap in ("", "clip", "dynamic_threshold")}
    changed(monkeypatch, "wrapper", "clip", function_version=2)
    assert {wrap for wrap in before if job_key(wrap) != before[wrap]} == {"clip"}


def test_a_network_of_another_version_has_other_samples_and_students(monkeypatch: pytest.MonkeyPatch) -> None:
    before = job_key(), student_key("digits"), student_key("arena_mixture")
    closed = job_key(model="arena_mixture")
    monkeypatch.setattr(UNet, "version", 2)
    assert not set(before) & {job_key(), student_key("digits"), student_key("arena_mixture")}
    assert job_key(model="arena_mixture") == closed  # which asks no network


def test_the_exact_solution_follows_its_noise_and_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = expand({**configure("sweep", ["suite=smoke"])["suite"], "reference": "exact"}, 0, "edm")
    model = load_model(group_config("model", "digits"), "cpu")
    before = truth_of(suite, 1.0, model).key
    with monkeypatch.context() as patch:
        changed(patch, "noise", "edm", function_version=99)
        assert truth_of(suite, 1.0, model).key != before
    monkeypatch.setattr(solutions, "SAMPLER_VERSION", 99)
    assert truth_of(suite, 1.0, model).key != before


def test_an_extractor_of_another_version_measures_again() -> None:
    model = load_model(group_config("model", "digits"), "cpu")
    judge = make_judge(model.data, model.teacher, {"fd_digits"})
    later = replace(judge, extractors={name: replace(own, version=2) for name, own in judge.extractors.items()})
    assert work_of("fd_digits", "samples", "", later, "cpu") != work_of("fd_digits", "samples", "", judge, "cpu")


def test_a_metric_of_another_version_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(group_config("model", "digits"), "cpu")
    judge = make_judge(model.data, model.teacher, {"class_accuracy"})
    before = work_of("class_accuracy", "samples", "", judge, "cpu")
    changed(monkeypatch, "metric", "class_accuracy", preset={**get("metric", "class_accuracy").preset, "version": 9})
    assert work_of("class_accuracy", "samples", "", judge, "cpu") != before


def test_rows_of_real_images_stand_beside_each_other_however_they_were_drawn(tmp_path: Path) -> None:
    """At 40 no image stands twice, at 2,000 they repeat, and class means are no images at all: none of them supersedes another."""
    block = "suite.blocks=[{method:naive,solver:[class_means,real_heldout],metrics:[fd_digits]}]"
    for samples in (40, 2000, 40):
        args = ["suite=smoke", block, f"suite.samples={samples}", "threads=1", f"results={tmp_path}"]
        assert cli.entry("sweep", "", sweep.run, args) == 0
    rows, _ = read_rows(tmp_path / "smoke" / "runs.jsonl")
    assert len(rows) == 4
    assert newest(rows) == rows
