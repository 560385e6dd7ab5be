"""Several processes that torchrun starts do each large job together, and give what one process gives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bench import measure, sample, sweep, train
from bench.jobs.models import data_of, untrained
from bench.settings.compose import group_config
from bench.store.rows import coordinates, read_rows
from fewstep.nets.loading import load_denoiser
from support.tiny import mixture_data, network

BLOCKS = (
    "suite.blocks=[{solver:euler,grid:polynomial,end:sigma_min,nfe:2,metrics:[fd_digits,precision_digits,kid_digits]},"
    "{solver:gits,grid:polynomial,end:sigma_min,nfe:2,metrics:[fd_digits]},{method:cd,nfe:1,metrics:[fd_digits]}]"
)
SUITE = ["suite=smoke", "threads=1", "batch=50", "suite.samples=2100", "suite.options.gits.warmup=8", BLOCKS]
CD = "++suite.options.cd={batches: 3, batch_size: 9, clip: 0.0, lr: 0.01}"
TESTS = Path(__file__).parents[1]


PLUGIN = """
import os
from pathlib import Path
from bench.training.engine import Engine
from fewstep import plugins
from metrics.families.kernel import KernelDistance
from metrics.families.neighbours import MANIFOLD, Manifold
from metrics.metric import Shown

plugins.register('metric', 'kid_digits', 'a test', extractor='digits')(KernelDistance)
precision = {'of': 'realistic', 'neighbours': MANIFOLD, 'shown': Shown(place=92), 'extractor': 'digits'}
plugins.register('metric', 'precision_digits', 'a test', **precision)(Manifold)


@plugins.register('wrapper', 'broken', 'a test')
def broken(d):
    return d / 0 if os.environ.get('RANK') == '1' else d


step = Engine._step


def failing(self, phase, batch):
    # Trainings with this learning rate fail in one process, at the second batch.
    if batch == 1 and self.world.rank == 1 and phase.optims['student'].lr == 0.0625:
        if 'DIES' in os.environ:
            os._exit(3)
        raise RuntimeError('no room')
    if 'TRAINED' in os.environ:
        Path(os.environ['TRAINED'], f"{phase.name}-{self.world.rank}-{self.world.size}").touch()
    return step(self, phase, batch)


Engine._step = failing
"""


def ran(processes: int, *args: str, folder: Path | None = None, **env: str) -> subprocess.CompletedProcess:
    """A module or a file in one process, or in several under torchrun; modules in a folder can be its plugins."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = [sys.executable, *(["-m"] if processes == 1 else [])]
    if processes > 1:
        start += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"]
        start += [] if args[0].endswith(".py") else ["-m"]
    paths = [str(TESTS), *([] if folder is None else [str(folder)]), os.environ.get("PYTHONPATH", "")]
    own = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **env}
    return subprocess.run([*start, *args], capture_output=True, text=True, env=own, timeout=280, check=False)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module `alike`."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "alike.py").write_text(PLUGIN)
    return folder


def apart(one: dict[str, Tensor], two: dict[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """How far two trainings end from each other, as a share of how far the first has come."""

    def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
        return float(sum((a[name].double() - b[name].double()).square().sum() for name in one)) ** 0.5

    return distance(one, two) / distance(one, start)


def test_two_processes_give_the_samples_and_rows_of_one(tmp_path: Path, plugin: Path) -> None:
    """Also of a student, whose batches of nine they cannot share evenly."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for processes, folder in enumerate(folders, 1):
        done = ran(processes, "bench.sweep", *SUITE, CD, "plugins=alike", f"results={folder}", folder=plugin)
        assert done.returncode == 0, done.stderr[-2000:]
        assert "cd" not in "".join(line for line in done.stderr.splitlines() if "alone" in line)
    one, two = ({coordinates(row): row for row in read_rows(f / "smoke" / "runs.jsonl")[0]} for f in folders)
    assert one.keys() == two.keys()
    assert {row["metric"] for row in one.values()} >= {"fd_digits", "kid_digits", "precision_digits"}
    for key, row in one.items():
        assert row["key"] == two[key]["key"]
        if row["method"] != "cd":  # whose gradients are summed in another order
            np.testing.assert_allclose(two[key]["value"], row["value"], rtol=1e-6)  # the stated bar
    for path in sorted((folders[0] / ".store" / "samples").iterdir()):
        files = [sorted((f / ".store" / "samples" / path.name).glob("samples-*")) for f in folders]
        told = json.loads((path / "record.json").read_text())
        if told["spec"]["fit"] is None:
            assert len(files[0]) > 1, "a part for each process"
            for mine, theirs in zip(*files, strict=True):
                a, b = load_file(mine), load_file(theirs)
                assert all(torch.equal(a[name], b[name]) for name in a)
    (mine,), (theirs,) = (
        [p for p in (f / ".store" / "fit").iterdir() if "cd" in json.loads((p / "record.json").read_text())["spec"].get("method", "")]
        for f in folders
    )
    weights, others = load_file(mine / "weights.safetensors"), load_file(theirs / "weights.safetensors")
    teacher = load_denoiser("digits_edm")[0].net.state_dict()
    assert apart(weights, others, {f"cd/{name}": value for name, value in teacher.items()}) < 1e-4
    records = [json.loads((p / "record.json").read_text()) for p in (mine, theirs)]
    assert records[0]["passes"] == records[1]["passes"]


def test_small_trainings_of_two_processes(tmp_path: Path) -> None:
    """They end where those of one do, which they do not where gradients are not summed; what fails in one, or is signalled to it, is
    everybody's, wherever the others are."""
    done = ran(2, str(TESTS / "support" / "pair.py"), str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    start = {"weights": torch.cat([p.detach().flatten() for p in network(mixture_data()[1]).net.parameters()])}

    def left(name: str) -> dict[str, Tensor]:
        return load_file(tmp_path / f"{name}.safetensors")

    for microbatches in (1, 3, 6):
        one, two, deaf = (f"{name}-{microbatches}" for name in ("one", "two", "deaf"))
        assert torch.equal(left(f"{two}-0")["weights"], left(f"{two}-1")["weights"])
        assert apart(left(f"{one}-0"), left(f"{two}-0"), start) < 1e-4
        assert apart(left(f"{one}-0"), left(f"{deaf}-0"), start) > 0.1
        (alone, losses), (shared, others) = seen[0][one], seen[0][two]
        assert shared["cd"]["passes"] == alone["cd"]["passes"]
        np.testing.assert_allclose(others, losses, rtol=1e-5)  # float32 sums in another order
    for name, kind, text in (
        ("first batch", "RuntimeError", "boom"),
        ("the first's", "ValueError", "bad"),
        ("last batch", "UsageError", "no room for"),
        ("after the last", "UsageError", "no room for"),
        ("disk", "FileExistsError", "File exists"),
        ("signal", "Terminated", ""),
    ):
        for own in seen:
            assert own[name][0] == kind, (name, own[name])
            assert text in own[name][1]
            assert own[name][2] < 60
    assert seen[0]["unlike"][:2] == ["RuntimeError", "Unlike: a, b"]
    assert seen[0]["on"] == seen[1]["on"] == ["nothing"]
    assert torch.equal(left("signal/0")["weights"], left("two-1-0")["weights"])


def test_a_failure_in_one_process_is_the_cells(tmp_path: Path, plugin: Path) -> None:
    """While it samples or trains; and the sweep goes on with the others."""
    blocks = (
        "suite.blocks=[{method:cd,nfe:1,metrics:[fd_digits]},"
        "{solver:euler,grid:logsnr,end:sigma_min,nfe:2,wrap:[broken,clip],metrics:[fd_digits]}]"
    )
    own = ["suite=smoke", "threads=1", "suite.samples=2100", blocks, "++suite.options.cd={batches: 3, batch_size: 8, lr: 0.0625}"]
    done = ran(2, "bench.sweep", *own, "plugins=alike", f"results={tmp_path}", folder=plugin)
    found = {(row["method"], row["wrap"], row["metric"]): row for row in read_rows(tmp_path / "smoke" / "runs.jsonl")[0]}
    assert found["cd", "", "cell"]["error"] == "RuntimeError: no room", done.stderr[-2000:]
    assert found["teacher", "broken", "cell"]["status"] == "failed"
    assert found["teacher", "clip", "fd_digits"]["status"] == "ok"


def test_a_process_that_dies_ends_the_sweep(tmp_path: Path, plugin: Path) -> None:
    """Of which no cell has a row: the same command goes on."""
    block = "suite.blocks=[{method:cd,nfe:1,metrics:[fd_digits]}]"
    own = ["suite=smoke", "threads=1", "suite.samples=20", block, "++suite.options.cd={batches: 3, batch_size: 8, lr: 0.0625}"]
    done = ran(2, "bench.sweep", *own, "plugins=alike", f"results={tmp_path}", folder=plugin, DIES="1")
    assert done.returncode == 1
    assert "error: process 0 of 2 has lost the others (" in done.stderr or "terminated: finished work is kept" in done.stderr  # by torchrun
    assert read_rows(tmp_path / "smoke" / "runs.jsonl")[0] == []


def test_a_teacher_is_trained_by_two(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    quick = "model.check={solver: euler, grid: polynomial, end: zero, nfe: 1, metric: fd_digits, samples: 20}"
    plain = ["model.config.dropout=0", "++model.options={batches: 3, batch_size: 31, lr: 0.01}"]
    own = ["model=digits", *plain, "threads=1", quick, f"results={tmp_path}"]
    assert train.main([*own, f"out={folders[0]}"]) == 0
    done = ran(2, "bench.train", *own, f"out={folders[1]}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("trained digits in") == 1
    (one,), (two,) = (list(folder.glob("*.safetensors")) for folder in folders)
    config = group_config("model", "digits")
    config["config"]["dropout"] = 0
    start = untrained(config, data_of(config), 0).net.state_dict()
    assert apart(load_file(one), load_file(two), start) < 1e-2  # Adam takes the sign of what is next to nothing, also of rounding


def test_a_sweeps_teacher_is_trained_by_two(tmp_path: Path, plugin: Path) -> None:
    small = "{channels: [16, 32], blocks: 1, emb: 32}"
    model = group_config("model", "digits_x0") | {"name": "small", "config": small, "options": "{batches: 2, batch_size: 8}"}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "small.yaml").write_text("".join(f"{key}: {value}\n" for key, value in model.items()))
    block = "suite.blocks=[{solver:euler,grid:cosine,end:zero_last,nfe:2,metrics:[fd_digits]}]"
    own = ["suite=smoke", "threads=1", "suite.samples=20", "suite.model=small", f"conf={tmp_path}", block, "plugins=alike"]
    done = ran(2, "bench.sweep", *own, f"results={tmp_path / 'r'}", folder=plugin, TRAINED=str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in tmp_path.glob("vp-*-2")} == {"vp-0-2", "vp-1-2"}


def test_two_processes_draw_and_score_what_one_does(tmp_path: Path) -> None:
    drawn, scores = [tmp_path / f"{n}.safetensors" for n in (1, 2)], [tmp_path / f"{n}.jsonl" for n in (1, 2)]
    own = ["solver=heun", "nfe=4", "n=30", "batch=15", "threads=1"]
    assert sample.main([*own, f"out={drawn[0]}"]) == 0
    done = ran(2, "bench.sample", *own, f"out={drawn[1]}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("30 images of") == 1
    own = ["images=digits", "split=heldout", "reference=digits", "metrics=fd_digits,class_accuracy", "threads=1"]
    assert measure.main([*own, f"out={scores[0]}", f"results={tmp_path / 'one'}"]) == 0
    done = ran(2, "bench.measure", *own, f"out={scores[1]}", f"results={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("fd_digits") == 1
    one, two = map(load_file, drawn)
    assert all(torch.equal(one[name], two[name]) for name in ("images", "labels"))
    one, two = ([json.loads(line) for line in path.read_text().splitlines()] for path in scores)
    assert [row["metric"] for row in one] == ["fd_digits", "class_accuracy"]
    np.testing.assert_allclose([row["value"] for row in two], [row["value"] for row in one], rtol=1e-6)  # the stated bar


def test_a_study_is_no_work_of_several(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert sweep.main(["suite=trajectories"]) == 2
    assert "suite trajectories is a study, which runs in one process; start it without torchrun" in capsys.readouterr().err
