"""What is typed after a field's name: text as it stands, other values by their kind, and one line for the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bench import sample, sweep, train
from bench.settings import cli
from bench.settings.compose import configure
from bench.settings.files import CONF, load
from bench.settings.overrides import split
from fewstep.errors import UsageError
from support.each import each

RUNS = {"sweep": sweep.run, "sample": sample.run, "train": train.run}
COMMANDS = ("certify", "export", "report", "sample", "sweep", "train")
WORDS = [
    "für",
    "日本語",
    "a=1",
    "a,b",
    "2024",
    "a b",
    " a",
    "a'b",
    '"q"',
    "$HOME",
    "${x}",
    "{x}",
    "[x]",
    "x\\",
    "#1",
    "a:b",
    "null",
    "true",
]
WORDS += ["1e5", "-x", "~x", "@", "%", "*", "(", "a\tb", "choice(1,2)", "..", "=", "+", "\u200bb", "\udcff"]


@pytest.mark.parametrize("name", COMMANDS)
def test_text_is_taken_as_it_stands(name: str) -> None:
    """Every word in every field of the command that holds text, a word for each of them at once."""
    before = configure(name, [])
    text = [
        key for key, value in before.items() if isinstance(value, str) and key not in ("plugins", "conf", "budget")
    ]  # those are looked up at once
    text = list(dict.fromkeys([*text, *(key for key in ("out", "grid") if key in before)]))
    assert "results" in text
    for first in range(len(WORDS)):
        typed = dict(zip(text, WORDS[first:] + WORDS[:first]))
        weights = [f"model.weights={WORDS[first]}"] if "model" in before else []
        found = configure(name, [f"{key}={word}" for key, word in typed.items()] + weights)
        nullable = [key for key, word in typed.items() if before[key] is None and word == "null"]
        expected = {**before, **typed, **dict.fromkeys(nullable, None)}
        if weights:
            expected["model"] = {**before["model"], "weights": WORDS[first]}
        assert found == expected


@each("word", ["für", "a=1", "a,b", "2024", "{x}", "x\\", "..."])
def test_pictures_and_records_lie_where_they_were_asked_for(word: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    args = [f"results={word}", f"out={word}.safetensors", "n=10", "nfe=1", "threads=1"]
    assert cli.entry("sample", "", sample.run, args) == 0
    assert load_file(tmp_path / f"{word}.safetensors")["images"].shape == (10, 1, 8, 8)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([word, f"{word}.safetensors"])


REFUSED = [
    ("sample", "grid=at 5,5", "levels by hand are numbers, got 'at 5,5'; e.g. 'at 5 0.821'"),
    ("sample", "grid=2024", "unknown grid '2024'"),
    ("sample", "solver=5", "unknown solver '5'"),
    ("sample", "solver=hün", "unknown solver 'hün'; did you mean heun?"),
    ("sample", "method=ü", "'ü'"),
    ("sample", "end=true", "unknown end 'true'"),
    ("sample", "noise=ü", "unknown noise 'ü'"),
    ("sample", "suite=ü", "unknown suite 'ü'"),
    ("sample", "model=ü", "unknown model 'ü'"),
    ("sample", "n=viele", "n must be an integer, got 'viele'; e.g. n=100"),
    ("sample", "n=1e3", "n must be an integer, got '1e3'; e.g. n=100"),
    ("sample", "n=zehn,elf", "n must be an integer, got 'zehn,elf'; e.g. n=100"),
    ("sample", "nfe=für", "nfe must be an integer, got 'für'; e.g. nfe=10"),
    ("sample", "nfe=range(1,3)", "nfe must be an integer, got 'range(1,3)'; e.g. nfe=10"),
    ("sample", "seed=${oc.env:HOME}", "seed must be an integer, got '${oc.env:HOME}'; e.g. seed=0"),
    ("sample", "guidance=zwei", "guidance must be a number, got 'zwei'; e.g. guidance=1.0"),
    ("sample", "guidance=nan", "guidance must be a finite number, got 'nan'; e.g. guidance=1.0"),
    ("sample", "guidance=1e400", "guidance must be a finite number, got '1e400'; e.g. guidance=1.0"),
    ("sample", "afs=ja,nein", "afs: the value 'ja,nein' cannot be read (it stands for several values); write text in quotes, lists as"),
    ("sample", "afs=ja", "afs must be true or false, got 'ja'; e.g. afs=true"),
    ("sample", "afs=1", "afs must be true or false, got '1'"),
    ("train", "loss=ü", "loss: the value 'ü' cannot be read"),
    ("sample", "results=", "results names a folder or file and is empty; e.g. results=results"),
    ("sample", "out=", "out names a folder or file and is empty; e.g. out=grid.png"),
    ("sample", "results=~/x", "results=~/x: '~' stands for no folder here; write $HOME/x, or ./~/x for one of that name"),
    ("sample", "out=~/x.png", "out=~/x.png: '~' stands for no folder here"),
    ("sample", "threads=100000000000", "threads must be at most 4096, got 100000000000"),
    ("sample", "batch=100000000000000000000", "batch must be at most 2147483647"),
    ("sample", "nfe=1000000000000", "nfe must be at most 100000"),
    ("sample", "seed=100000000000000000000", "seed must lie in 0..2^62"),
    ("train", "seed=-1", "seed must lie in 0..2^62, got -1"),
    ("train", "batches=1.5", "batches must be at least 1, got 1.5"),
    ("sample", "ñ=1", "unknown field 'ñ'"),
    ("sample", "results.x=1", "unknown field 'x' in results"),
    ("sample", "~results=1", "unknown field '~results'; did you mean results?"),
    ("sample", "--results=1", "unknown field '--results'; did you mean results?"),
    ("sweep", "+suite=mein-süite", "unknown suite 'mein-süite'"),
    ("sweep", "+suite=", "unknown suite ''"),
    ("sweep", "suite=../suite/digits", "suite=../suite/digits does not exist"),
    ("sample", "model=x\ny", "unknown model 'x\\ny'"),
    ("sample", "device=meta", "device 'meta' cannot be used"),
    ("sample", "device=mps", "device 'mps' cannot be used"),
    ("sample", "device=cuda:99", "device 'cuda:99' cannot be used"),
    ("sample", "device=xla", "device 'xla' cannot be used"),
    ("sample", "device=hpu", "device 'hpu' cannot be used"),
    ("sample", "device=privateuseone", "device 'privateuseone' cannot be used"),
    ("sample", "device=ü", "device 'ü' cannot be used"),
    ("sample", "device=", "device '' cannot be used"),
    ("sample", "device=0", "device '0' cannot be used"),
]


@each(("name", "arg", "message"), REFUSED)
def test_other_values_are_one_line(name: str, arg: str, message: str, capsys, tmp_path, monkeypatch) -> None:
    if arg == "device=mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has that device: that it is refused elsewhere was not checked")
    monkeypatch.chdir(tmp_path)
    assert cli.entry(name, "", RUNS[name], [arg]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.strip().splitlines())) == ("", 1), err
    assert message in err
    assert not (tmp_path / "~").exists()


def test_the_options_of_a_method_are_read_as_before() -> None:
    args = ["suite=smoke", "suite.options.cd={batches: 3, loss: l1}", "suite.options.neu.a=[1, {b: 'x y'}]", "suite.blocks.0.solver=[1,2]"]
    suite = configure("sweep", args)["suite"]
    plain = configure("sweep", ["suite=smoke"])["suite"]
    assert suite["options"] == {
        **plain["options"],
        "cd": {**plain["options"].get("cd", {}), "batches": 3, "loss": "l1"},
        "neu": suite["options"]["neu"],
    }
    assert suite["options"]["neu"] == {"a": [1, {"b": "x y"}]}
    assert suite["blocks"][0] == {**plain["blocks"][0], "solver": [1, 2]}
    with pytest.raises(UsageError, match=r"suite.options.cd: the value '\{batches:' cannot be read"):
        configure("sweep", ["suite=smoke", "suite.options.cd={batches:"])


@each("name", COMMANDS)
def test_the_values_shown_by_help_can_be_typed(name: str) -> None:
    plain = configure(name, [])

    def typed(value: Any) -> str:
        return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

    fields = {k: v for k, v in load(CONF / f"{name}.yaml").items() if k != "defaults"}
    assert configure(name, [f"{k}={typed(v)}" for k, v in fields.items()]) == plain


def test_the_first_equals_sign_ends_the_name() -> None:
    assert split(["+a=b=c", "d==", "e="]) == [("a", "b=c"), ("d", "="), ("e", "")]
