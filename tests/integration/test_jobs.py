"""Jobs as data: each can be done in a process that knows nothing else, and all of them give what the sweep gives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import job, sweep
from bench.execute.graph import Graph, jobs_once
from bench.execute.here import local
from bench.execute.prepare import prepare_all
from bench.jobs import samples
from bench.jobs.models import load_model
from bench.jobs.session import Session
from bench.jobs.spec import ADVICE, VERSION, Spec, read_spec
from bench.jobs.suite import expand
from bench.jobs.work import do
from bench.settings import cli
from bench.settings.compose import configure, group_config
from bench.store.artefacts import Store
from bench.store.measures import TIMINGS
from bench.store.rows import coordinates, read_rows
from fewstep.errors import UsageError
from support.registered import put
from support.suites import refused

BLOCKS = (
    "suite.blocks=[{method:naive,solver:real_train,metrics:[fd_digits]},"
    "{solver:[euler,dpmpp_2m],grid:polynomial,end:sigma_min,nfe:1,metrics:[fd_digits]},"  # alike at one step: samples of both, rows of each
    "{solver:[euler,gits],grid:polynomial,end:sigma_min,nfe:[2],metrics:[fd_digits,psnr_teacher,timing]},{method:cd,nfe:[1,2]}]"
)
ARGS = ["suite=smoke", "threads=1", "suite.samples=20", "suite.options.gits.warmup=8", BLOCKS]


def comparable(row: dict) -> dict:
    """What two runs of one row have in common."""
    kept = {name: value for name, value in row.items() if name not in ("date", "checksum", "train_seconds")}
    if row["metric"] in TIMINGS:
        kept |= {"value": None, "samples": None}  # the latter are its repeats
    dropped = ("training", "load_of_others")
    return {**kept, "protocol": {name: value for name, value in row["protocol"].items() if name not in dropped}}


def rows_of(folder: Path) -> dict:
    return {coordinates(row): comparable(row) for row in read_rows(folder / "smoke" / "runs.jsonl")[0]}


def session(folder: Path) -> Session:
    return Session(Store(folder), "cpu", 250, lambda line: None)


def listed(folder: Path) -> list[Spec]:
    """The jobs of the suite that a results folder lacks."""
    config = configure("sweep", [*ARGS, f"results={folder}"])
    works = prepare_all({**config, "dry": True}, expand(config["suite"], 0, "philox"), session(folder))
    return jobs_once([branch for work in works for branch in work.branches()])


def test_every_job_on_its_own_gives_the_sweeps_rows(tmp_path: Path) -> None:
    """One of each kind in a process of its own, the others each in a session of its own, from their text."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli.entry("sweep", "", sweep.run, [*ARGS, f"results={whole}"]) == 0
    file = parts / "jobs.jsonl"
    assert cli.entry("job", "", job.run, [*ARGS, f"results={parts}", f"out={file}"]) == 0
    jobs = [read_spec(line) for line in file.read_text().splitlines()]
    assert [spec.kind for spec in jobs if spec.kind in ("fit", "truth")].count("fit") == 2
    alone = {spec.kind: spec.name for spec in jobs}
    for spec in jobs:
        made = set(file.parent.glob(".store/*/*"))
        if alone[spec.kind] == spec.name:
            command = [sys.executable, "-m", "bench.job", f"jobs={file}", f"name={spec.name}", f"results={parts}", "threads=1"]
            assert subprocess.run(command, capture_output=True, check=False).returncode == 0
        else:
            do(session(parts), read_spec(spec.text()))
        if not spec.makes_rows:
            assert (parts / ".store" / spec.kind / spec.key) not in made
            assert session(parts).store.has(spec.kind, spec.key)
    assert rows_of(parts) == rows_of(whole)
    assert listed(parts) == []


def test_inputs_come_before_what_reads_them(tmp_path: Path) -> None:
    made: set[tuple[str, str]] = set()
    for spec in listed(tmp_path):
        assert made.issuperset(spec.inputs)
        assert not spec.makes_rows or spec.inputs
        made.add((spec.kind, spec.key))


def test_a_cells_plan_and_network_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For its samples, its timings and its rows."""
    counts = {"plan_of": list[str](), "denoiser_of": list[str]()}

    def counted(name: str) -> Callable:
        original, seen = getattr(samples, name), counts[name]
        return lambda own, *rest: seen.append(own.cell.label) or original(own, *rest)

    for name in counts:
        monkeypatch.setattr(samples, name, counted(name))
    blocks = (
        "suite.blocks=[{method:cd,nfe:2,metrics:[fd_digits,timing]},{solver:euler,grid:logsnr,end:sigma_min,nfe:2,metrics:[fd_digits]}]"
    )
    assert cli.entry("sweep", "", sweep.run, [*ARGS[:-1], blocks, f"results={tmp_path}"]) == 0
    for seen in counts.values():
        assert len(seen) == len(set(seen)), "once for each cell, the one that it is compared with among them"


def test_a_job_without_its_inputs_says_which(tmp_path: Path) -> None:
    spec = next(spec for spec in listed(tmp_path) if spec.kind == "samples" and spec.inputs)
    with pytest.raises(UsageError, match=f"job {spec.name} needs fit-[0-9a-f]+, which .* lacks; do the jobs that make them first"):
        do(session(tmp_path), spec)


def test_a_job_of_other_code_is_refused(tmp_path: Path) -> None:
    spec = next(spec for spec in listed(tmp_path) if spec.kind == "samples" and not spec.inputs)
    with pytest.raises(UsageError, match="job samples-0123 is of other code or inputs: here its cell has the jobs "):
        do(session(tmp_path), replace(spec, key="0123"))


def test_what_is_no_job_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "jobs.jsonl"
    line = json.loads(listed(tmp_path)[0].text())
    for text, message in [
        (json.dumps({**line, "version": VERSION + 1}), f"line 1 is of version {VERSION + 1}, and here jobs are of version {VERSION}"),
        ("{}", "line 1 is no job (KeyError: 'version')"),
        ("[", "line 1 is no job"),
        (json.dumps({**line, "params": {}}), "its params lack suite, model, seed, noise, names, plugins"),
        (json.dumps({**line, "params": []}), "line 1 is no job"),
        (json.dumps({**line, "kind": 5}), "kinds and keys are names"),
        (json.dumps({**line, "params": {**line["params"], "plugins": "mine"}}), "its plugins is 'mine'"),
    ]:
        file.write_text(text)
        assert message in refused(capsys, "job", f"jobs={file}", f"results={tmp_path}")
    file.write_text(json.dumps(line))
    assert "has no job 'fit-1'" in refused(capsys, "job", f"jobs={file}", "name=fit-1", f"results={tmp_path}")
    assert "give a suite to list its jobs" in refused(capsys, "job", f"results={tmp_path}")


def test_the_advice_about_jobs_can_be_typed(tmp_path: Path) -> None:
    words = ADVICE.replace("NAME", "smoke").split()[3:]
    assert configure("job", [*words, f"results={tmp_path}"])["out"] == "jobs.jsonl"


def test_a_job_that_fails_is_a_row_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, "wrapper", "broken", lambda d: d / 0)
    args = [*ARGS[:-1], f"results={tmp_path}"]
    args.append("suite.blocks=[{solver:euler,grid:logsnr,end:sigma_min,nfe:2,wrap:[broken,clip],metrics:[fd_digits]}]")
    file = tmp_path / "jobs.jsonl"
    assert cli.entry("job", "", job.run, [*args, f"out={file}"]) == 0
    assert cli.entry("job", "", job.run, [f"jobs={file}", f"results={tmp_path}", "threads=1"]) == 1
    assert "3 of 7 jobs failed" in capsys.readouterr().err
    found = {(row["wrap"], row["metric"]): row["status"] for row in read_rows(tmp_path / "smoke" / "runs.jsonl")[0]}
    assert found == {("broken", "cell"): "failed", ("clip", "fd_digits"): "ok", ("clip", "nfe_counted"): "ok"}


def test_a_cell_in_fewer_bits_is_another_cell(tmp_path: Path, capsys) -> None:
    """Its rows say what its networks computed in; solvers that are fitted are fitted once, in float32."""
    block = "suite.blocks=[{solver:[euler,gits],grid:logsnr,end:sigma_min,nfe:2,dtype:['',bf16],metrics:[fd_digits,psnr_teacher]}]"
    assert cli.entry("sweep", "", sweep.run, [*ARGS[:-1], block, f"results={tmp_path}"]) == 0
    rows, _ = read_rows(tmp_path / "smoke" / "runs.jsonl")
    values = {(row["solver"], row["dtype"]): row["value"] for row in rows if row["metric"] == "psnr_teacher"}
    assert all(1e-4 < abs(values[solver, ""] - values[solver, "bf16"]) < 1 for solver in ("euler", "gits"))
    assert len([*tmp_path.glob(".store/fit/*/record.json")]) == 1
    assert "noise philox, state float32." in (tmp_path / "smoke" / "summary.md").read_text()
    assert cli.entry("sweep", "", sweep.run, [*ARGS[:-1], block.replace("bf16", "int8"), f"results={tmp_path}"]) == 2
    assert "dtype is bf16 or fp16, or empty for float32, got 'int8'" in capsys.readouterr().err


def test_a_batch_without_room_is_halved_and_the_row_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    asked = list[int]()

    def narrow(d):
        asked.append(len(d))
        if len(d) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return d

    put(monkeypatch, "wrapper", "narrow", narrow)
    block = "suite.blocks=[{solver:euler,grid:logsnr,end:sigma_min,nfe:1,wrap:narrow,metrics:[fd_digits]}]"
    for most, code in ((7, 0), (0, 1)):
        asked.clear()
        assert cli.entry("sweep", "", sweep.run, [*ARGS[:-1], block, f"results={tmp_path / str(most)}"]) == code
        rows = {row["metric"]: row for row in read_rows(tmp_path / str(most) / "smoke" / "runs.jsonl")[0]}
        if most:
            assert asked == [20, 10, 5, 5, 5, 5]
            assert rows["fd_digits"]["protocol"]["samples_batch"] == 5
            told = "cpu has no room for 20 images of teacher/euler"
            assert any(told in line and "going on with 5: batch=5" in line for line in capsys.readouterr().err.splitlines())
        else:
            assert "cpu has no room for one image of teacher/euler" in rows["cell"]["error"]


def test_models_of_the_same_weights_have_judges_of_their_own_data(tmp_path: Path) -> None:
    one = load_model(group_config("model", "digits"), "cpu")
    half = replace(one.data, train_x=one.data.train_x[:500], train_y=one.data.train_y[:500], kept=None)
    other = replace(one, data=half, config={**one.config, "data": "half"})
    here, names = session(tmp_path), frozenset({"fd_digits"})
    assert one.digest == other.digest
    assert len({here.judge(model, names).reference.digest for model in (one, other, one)}) == 2


def test_another_executor_is_given_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Graph] = []
    put(monkeypatch, "executor", "mine", lambda graph: seen.append(graph) or local(graph))
    blocks = "suite.blocks=[{method:naive,solver:real_train,metrics:[fd_digits]}]"
    assert cli.entry("sweep", "", sweep.run, [*ARGS[:-1], blocks, "executor=mine", f"results={tmp_path}"]) == 0
    assert [spec.kind for graph in seen for spec in graph.jobs()] == ["reference", "features", "rows"]


def test_an_unknown_executor_is_refused_before_anything_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown executor 'locl'; did you mean local" in refused(capsys, "sweep", *ARGS, "executor=locl", f"results={tmp_path}")


def test_a_teacher_of_the_store_is_trained_by_a_job_and_read_by_the_others(tmp_path: Path) -> None:
    """The first job trains it in one session with those that sample it: these see the trained weights, as a sweep does."""
    model = tmp_path / "quick.yaml"
    told = group_config("model", "digits_v")
    model.write_text(json.dumps({**told, "name": "quick", "options": {**told["options"], "batches": 3, "batch_size": 8}}))
    args = ["suite=smoke", f"suite.model={model}", "threads=1", "suite.samples=20", "suite.reference_steps=2"]
    args += ["suite.blocks=[{solver:euler,grid:logsnr,end:sigma_min,nfe:2,metrics:[fd_digits]}]"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli.entry("sweep", "", sweep.run, [*args, f"results={whole}"]) == 0
    config = configure("sweep", [*args, f"results={parts}"])
    one = session(parts)
    (work,) = prepare_all({**config, "dry": True}, expand(config["suite"], 0, "philox"), one)
    jobs = jobs_once(work.branches())
    assert [spec.kind for spec in jobs] == ["fit", "samples", "reference", "features", "rows"]
    for spec in jobs:
        do(one, spec)
    assert rows_of(parts) == rows_of(whole)
