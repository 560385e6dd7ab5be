"""python -m bench.train: recipes of teachers and of students, typed or in a suite, and weights of a former run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from bench import train
from bench.jobs.models import load_model
from bench.jobs.resolve import student_of
from bench.jobs.suite import expand
from bench.settings import cli
from bench.settings.compose import configure, group_config
from bench.store.cell import Cell
from fewstep.nets.readers.card import read_weights, write_card


def ran(*args: str) -> int:
    return cli.entry("train", "", train.run, [*args, "threads=1"])


def test_a_teacher_and_its_student_go_on_from_former_weights(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each under another precision, one after the other in one process; the card says what was typed."""
    results = f"results={tmp_path}"
    monkeypatch.setattr(train, "quality", lambda model, device, store: {"value": 0.0})  # which takes longer than the training
    former = tmp_path / "former"
    assert ran("model=digits", "batches=2", "precision=fp16", results, f"out={former}") == 0
    weights = next(former.glob("*.safetensors"))
    assert read_weights(weights)[1]["training"]["options"]["precision"] == "fp16"
    assert ran("model=digits", "batches=2", f"init={former}", "precision=bf16", results, f"out={tmp_path / 'next'}") == 0
    told = read_weights(tmp_path / "next" / weights.name)[1]["training"]["options"]
    assert (told["init_from"], told["precision"]) == (str(former), "bf16")
    assert ran("method=cd", "batches=2", f"init={former}", "precision=bf16", results) == 0
    (record,) = [json.loads(path.read_text()) for path in tmp_path.glob(".store/fit/*/record.json")]
    options = record["spec"]["options"]
    assert options["precision"] == "bf16"
    assert len(options["init_from"]) == 64
    assert str(tmp_path) not in json.dumps(record["spec"])
    assert "is in the store" in capsys.readouterr().err


def test_a_finished_training_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """What was not measured of it is; another training does not write over it; weights are of the type that the model names."""
    asked = list[str]()
    monkeypatch.setattr(train, "quality", lambda model, device, store: asked.append(model["weights"]) or {"value": 1.0})
    for stored in ("float16", "float8"):
        (tmp_path / f"{stored}.yaml").write_text(yaml.safe_dump({**group_config("model", "digits"), "stored": stored}))
    given = (f"model={tmp_path / 'float16.yaml'}", "batches=2", f"results={tmp_path}", f"out={tmp_path / 'own'}")
    assert ran(*given) == 0
    (weights,) = (tmp_path / "own").glob("*.safetensors")
    before = weights.read_bytes()
    tensors, card = read_weights(weights)
    assert {value.dtype for value in tensors.values() if value.is_floating_point()} == {torch.float16}
    assert load_model({**group_config("model", "digits"), "weights": str(weights)}, "cpu").teacher.shape == (1, 8, 8)
    with Image.open(tmp_path / "own" / "samples.png") as picture:
        assert picture.size == (10 * 9 * train.SCALE, 8 * 9 * train.SCALE)
    del card["training"]["check"]
    write_card(weights, card)
    assert ran(*given) == 0
    assert (weights.read_bytes(), len(asked), read_weights(weights)[1]["training"]["check"]) == (before, 2, {"value": 1.0})
    capsys.readouterr()
    assert ran(*given, "seed=1") == 2
    assert "own/digits_edm.safetensors is of another training; give another folder as out=" in capsys.readouterr().err
    (tmp_path / "left" / "snapshots").mkdir(parents=True)
    (tmp_path / "left" / "snapshots" / "0000000256.safetensors").write_bytes(b"")
    assert ran("model=digits", "batches=2", f"results={tmp_path}", f"out={tmp_path / 'left'}") == 2
    assert "holds weights of a former training" in capsys.readouterr().err
    assert ran(f"model={tmp_path / 'float8.yaml'}", "batches=2", f"results={tmp_path}") == 2
    assert "stored is what weights files hold, float32 or float16, got float8" in capsys.readouterr().err


def test_weights_on_the_way_are_kept_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of a training that was stopped between them; they change nothing of its end."""
    asked = list[str]()
    monkeypatch.setattr(
        train, "quality", lambda model, device, store: asked.append(Path(model["weights"]).stem) or {"value": float(len(asked))}
    )
    plain, own = tmp_path / "plain", tmp_path / "own"
    assert ran("model=digits", "batches=4", f"results={tmp_path}", f"out={plain}") == 0
    asked.clear()
    assert ran("model=digits", "batches=4", f"results={tmp_path}", f"out={own}", "snapshots=2") == 0
    kept = sorted(path.name for path in (own / "snapshots").glob("*.safetensors"))
    assert kept == ["0000000256.safetensors", "0000000512.safetensors"]
    (weights,) = own.glob("*.safetensors")
    tensors, card = read_weights(weights)
    last, _ = read_weights(own / "snapshots" / kept[-1])
    first, _ = read_weights(own / "snapshots" / kept[0])
    expected, _ = read_weights(plain / weights.name)
    assert all(torch.equal(tensors[key], last[key]) and torch.equal(tensors[key], expected[key]) for key in tensors)
    assert not all(torch.equal(first[key], last[key]) for key in tensors)
    assert [point["samples"] for point in card["training"]["curve"]] == [256, 512]
    assert asked[1:] == ["0000000256", "0000000512"]
    assert (own / "quality.png").stat().st_size > 1000


def test_what_cannot_be_typed_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, line in (
        (["precision=fp8"], "error: unknown precision 'fp8'; did you mean fp16?"),
        (["compile=maybe"], "error: compile must be true or false, got 'maybe'"),
        (["init=nowhere"], "error: weights 'nowhere' not found"),
        ([f"init={tmp_path}"], f"error: init={tmp_path} holds no weights, and one file is needed"),
    ):
        assert ran("model=digits", f"results={tmp_path / 'r'}", *args) == 2
        told = capsys.readouterr().err
        assert told.startswith(line), told
        assert len(told.splitlines()) == 1


def test_a_recipe_in_a_suite_is_part_of_the_address() -> None:
    suite = configure("sweep", ["suite=smoke"])["suite"]
    model = load_model(group_config("model", "digits"), "cpu")

    def address(**options) -> str:
        expanded = expand({**suite, "options": {"cd": {"batches": 2, **options}}}, 0, "philox")
        return student_of(Cell("cd"), expanded).key(model)

    recipes = [{}, {"precision": "bf16"}, {"precision": "fp16"}, {"compile": True}, {"accumulate": 2}, {"init_from": "digits_edm"}]
    assert len({address(**options) for options in recipes}) == len(recipes)
    assert address(compile=False, precision="no", init_from="") == address()
