"""Bad input: one clear line, exit code 2 (130 for Ctrl-C), nothing lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench import ls, train
from bench.settings import cli
from fewstep.files import file_digest
from fewstep.nets.readers.card import SHIPPED, identity
from fewstep.plugins import KINDS
from support.each import each
from support.suites import BLOCK, RUNS, refused

SWEEPS = [
    (["+suite=digit"], "unknown suite 'digit'; did you mean digits?"),
    (["suite=digits", "sead=1"], "unknown field 'sead'; did you mean seed?"),
    (["suite=digits", "suite.sampels=1"], "unknown field 'sampels' in suite; did you mean samples?"),
    (["suite=digits", "seed=abc"], "seed must be an integer, got 'abc'"),
    (["suite=digits", "dry=1"], "dry must be true or false, got '1'"),
    (["suite=digits", "batch"], "argument 'batch' is not of the form key=value"),
    ([], "no suite given; type +suite=NAME with one of: afhqv2, arena, arena_digits, cifar, codi, codi_ablation, conditional,"),
    (["suite=smoke", "noise=philux"], "unknown noise 'philux'; did you mean philox?"),
    (["suite=smoke", "suite.blocks=[{solver:hoin,grid:polynomial,end:zero,nfe:1}]"], "unknown solver 'hoin'; did you mean heun?"),
    (["suite=smoke", "suite.blocks=[{solver:heun,grid:polynomal,end:zero,nfe:1}]"], "unknown grid 'polynomal'; did you mean polynomial?"),
    (["suite=smoke", "suite.blocks=[{solver:heun,grid:logsnr,end:zro,nfe:1}]"], "unknown end 'zro'; did you mean zero"),
    (["suite=smoke", "suite.blocks=[{method:cdd,nfe:1}]"], "unknown distiller 'cdd'; did you mean cd?"),
    (["suite=smoke", "suite.blocks=[{method:cd,loss:l3,nfe:1}]"], "unknown loss 'l3'; did you mean l2, l1?"),
    (["suite=smoke", "suite.blocks=[{solvr:heun,nfe:1}]"], "unknown axis 'solvr' in a suite block; did you mean solver?"),
    (["suite=smoke", "suite.blocks=[{solver:heun,nfe:1,metrics:[fd_digit]}]"], "unknown metric 'fd_digit'; did you mean fd_digits"),
    (["suite=smoke", "suite.options.cd={batchs:3}"], "distiller 'cd' has no field 'batchs'; did you mean batches"),
    (["suite=smoke", "suite.model=digit"], "unknown model 'digit'; did you mean digits"),
    (["suite=smoke", "suite.samples=0"], "suite.samples must be at least 2, got 0"),
    (["suite=smoke", "suite.samples=25"], "suite.samples=25 cannot be balanced over 10 classes"),
    (["suite=smoke", "suite.samples=null"], "suite.samples must be an integer"),
    (["suite=smoke", "suite.blocks=[1]"], "a suite's blocks are a list of {axis: values}"),
    (["suite=smoke", "suite.blocks=[{solver:5,nfe:1}]"], "suite axis solver takes a name, got 5"),
    (["suite=smoke", "suite.blocks=[{solver:heun,nfe:1,afs:'no'}]"], "suite axis afs takes true or false, got 'no'"),
    (["suite=smoke", "suite.blocks=[{solver:heun,nfe:1,guidance:nan}]"], "suite axis guidance takes a finite number"),
    (["suite=smoke", "suite.blocks=[{method:naive,solver:real_trian}]"], "unknown naive row 'real_trian'; did you mean real_train"),
    (["suite=smoke", "suite.blocks=[{method:naive,solver:real_train,metrics:[timing]}]"], "naive rows have no sampler to time"),
    (["suite=smoke", "suite.options.cd.batches=0"], "phase cd needs at least one batch"),
    (["suite=smoke", "suite.options.pd.start=abc"], "distiller 'pd': start must be like 8, got 'abc'"),
    (["suite=smoke", "seed=-1"], "seed must lie in 0..2^62, got -1"),
    (["suite=smoke", "batch=0"], "batch must be at least 1, got 0"),
    (["suite=smoke", "device=cuda:9"], "device 'cuda:9' cannot be used"),
    (["suite=smoke", "device=foo"], "device 'foo' cannot be used"),
    (
        ["suite=cifar", "suite.model=cifar10", "suite.blocks=[{solver:euler,grid:polynomial,end:zero,nfe:1,metrics:[fid]}]"],
        "model cifar10 lacks: CIFAR-10: data and ",
    ),
]


@each(("args", "message"), SWEEPS)
def test_sweeps_refuse_in_one_line(args, message, capsys, tmp_path) -> None:
    assert message in refused(capsys, "sweep", *args, f"results={tmp_path}")


SAMPLES = [
    (["solver=heun", "end=zero", "nfe=6"], "heun ending at 0 uses 2N-1 evaluations; 6 is not reachable; try 5 or 7"),
    (["solver=euler", "nfe=5", "guidance=2"], "5 is not reachable; try 4 or 6"),
    (["method=pd", "nfe=3"], "pd has students for 8, 4, 2, 1 steps, not 3"),
    (["nfe=0"], "0 is not reachable; try 1"),
    (["method=cd", "end=zero", "afs=true"], "cd has its own end and AFS; leave end and afs out"),
    (["method=cd", "grid=logsnr"], "cd has its own polynomial grid, not logsnr; leave grid out"),
    (["method=sfd", "grid=at 0.8", "nfe=1"], "sfd has students for its own polynomial grid, not for levels by hand"),
    (["method=cd", "variant=lng"], "suite.options has no 'cd/lng'"),
    (["n=0"], "n must be at least 1, got 0"),
    (["out=grid.gif"], "out must end in .png or .safetensors, got 'grid.gif'"),
    (["model.weights=digits_edn"], "weights 'digits_edn' not found"),
]


@each(("args", "message"), SAMPLES)
def test_sample_refuses_in_one_line(args, message, capsys, tmp_path) -> None:
    assert message in refused(capsys, "sample", *args, f"results={tmp_path}")


TRAININGS = [
    (["batches=0"], "batches must be at least 1, got 0"),
    (["batches=abc"], "batches must be at least 1, got abc"),
    (["precision=fp8"], "unknown precision 'fp8'"),
    (["accumulate=3"], "accumulate=3 does not divide the batch size 128"),
    (["method=cd", "loss=5"], "distiller 'cd': loss must be like 'l2', got 5"),
    (["loss=l2", "variant=long"], "only a student has a loss and a variant; add method=NAME, e.g. method=cd, or leave that out"),
    (["method=cd", "accumulate=3"], "accumulate=3 does not divide the batch size 128"),
]


@each(("args", "message"), TRAININGS)
def test_train_refuses_in_one_line(args, message, capsys, tmp_path) -> None:
    assert message in refused(capsys, "train", *args, f"results={tmp_path}")


def test_another_trainings_checkpoint_is_refused(capsys, tmp_path, monkeypatch) -> None:
    from bench.training.engine import Engine

    whole = Engine.run
    monkeypatch.setattr(Engine, "run", lambda self: whole(self, stop_after=1))
    with pytest.raises(KeyError):  # stopped after one batch: there is no export yet, but there is a checkpoint
        cli.entry("train", "", train.run, ["batches=3", f"out={tmp_path}", "threads=1"])
    monkeypatch.setattr(Engine, "run", whole)
    assert "is the checkpoint of another training (its method, options," in refused(capsys, "train", "batches=2", f"out={tmp_path}")


def weights_copy(folder: Path) -> Path:
    for suffix in (".safetensors", ".json"):
        shutil.copy(SHIPPED / f"digits_edm{suffix}", folder)
    return folder / "digits_edm.safetensors"


def test_broken_weights_are_refused(capsys, tmp_path) -> None:
    path = weights_copy(tmp_path)
    args = [f"model.weights={path}", f"results={tmp_path}/r", "nfe=1"]
    raw = path.read_bytes()

    path.write_bytes(raw[:1000])
    assert "truncated or not safetensors" in refused(capsys, "sample", *args)
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert "do not match their card" in refused(capsys, "sample", *args)

    tensors = load_file(SHIPPED / "digits_edm.safetensors")
    card = json.loads(path.with_suffix(".json").read_text())

    def put(changed: dict[str, torch.Tensor]) -> None:
        save_file(changed, path)
        fixed = {**card, "sha256": file_digest(path)}
        path.with_suffix(".json").write_text(json.dumps({**fixed, "identity": identity(fixed)}))

    put({**tensors, "conv_in.bias": torch.zeros(3)})
    assert "'conv_in.bias' has shape [3], the network needs [32]" in refused(capsys, "sample", *args)
    put({k: v for k, v in tensors.items() if k != "conv_in.bias"})
    assert "lack 'conv_in.bias'" in refused(capsys, "sample", *args)
    path.with_suffix(".json").write_text(json.dumps({**card, "sigma_data": 3.0}))
    assert "was changed after it was written" in refused(capsys, "sample", *args)
    path.with_suffix(".json").write_text(json.dumps({k: v for k, v in card.items() if k != "shape"}))
    assert "has no valid 'shape'" in refused(capsys, "sample", *args)
    path.with_suffix(".json").unlink()
    assert "have no card digits_edm.json beside them" in refused(capsys, "sample", *args)
    path.unlink()
    assert "digits_edm.safetensors with its card" in refused(capsys, "sample", *args)


def test_an_unwritable_results_folder_is_refused(capsys, tmp_path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be written" in refused(capsys, "sweep", "suite=smoke", f"results={tmp_path}/file/results")


def test_a_file_where_a_folder_belongs_is_one_line(capsys, tmp_path) -> None:
    (tmp_path / "smoke").touch()
    message = refused(capsys, "sweep", "suite=smoke", BLOCK, "suite.samples=20", f"results={tmp_path}")
    assert "cannot be used" in message or "cannot be written" in message


@pytest.mark.parametrize("name", RUNS)
def test_help_lists_fields_and_defaults(name, capsys) -> None:
    assert cli.entry(name, f"about {name}", RUNS[name], ["--help"]) == 0
    out = capsys.readouterr().out
    assert f"about {name}" in out
    assert "results: results" in out


def test_ls_lists_everything_with_its_paper(capsys) -> None:
    assert ls.main([]) == 0
    out = capsys.readouterr().out
    for word in (*KINDS, "dpmpp_2m", "cd", "fd_digits", "suite", "cifar", "time_uniform", "clip", "adamw"):
        assert word in out
    assert ls.main(["kind=solver"]) == 0
    assert "2211.01095" in capsys.readouterr().out
    assert ls.main(["kind=solvers"]) == 2
    assert "did you mean solver" in capsys.readouterr().err
    assert ls.main(["solver"]) == 2
    assert "argument 'solver' is not of the form key=value" in capsys.readouterr().err


def test_ls_explains_one_entry(capsys) -> None:
    assert ls.main(["name=fid"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("metric fid, version 3\npaper: arXiv 1706.08500")
    assert "    resamples: 20" in out
    assert "needs: the features of inception" in out
    assert ls.main(["name=sfd"]) == 0
    assert "    batches: " in capsys.readouterr().out
    assert ls.main(["name=digits"]) == 0  # a data set, an extractor, a suite and a model
    assert {"data digits, version 1", "extractor digits, version 1", "suite digits", "model digits"} <= set(
        capsys.readouterr().out.splitlines()
    )
    assert ls.main(["name=fidd"]) == 2
    assert "nothing is registered as 'fidd'; did you mean fid?" in capsys.readouterr().err
