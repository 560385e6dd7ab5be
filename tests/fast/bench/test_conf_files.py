"""Configuration files as people write them: what cannot be read is one line with the file and the line, and no name leads elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.jobs.suite import expand
from bench.settings import cli
from bench.settings import files as conf_files
from bench.settings.compose import configure
from bench.store.artefacts import Store
from fewstep.errors import UsageError
from fewstep.files import check_name, file_digest
from fewstep.nets.readers.card import SHIPPED, identity
from support.each import each
from support.suites import BLOCK, refused


@pytest.fixture
def conf(tmp_path: Path, monkeypatch) -> Path:
    """A copy of the configuration that a test may change."""
    folder = tmp_path / "conf"
    shutil.copytree(conf_files.CONF, folder)
    monkeypatch.setattr(conf_files, "CONF", folder)
    monkeypatch.setattr(cli, "CONF", folder)
    return folder


SMOKE = (conf_files.CONF / "suite" / "smoke.yaml").read_text(encoding="utf-8")
BROKEN = [
    (b"# a suite\nname: mine\n\tmodel: digits\n", "line 3", "a tab, where YAML takes spaces"),
    (b"name: mine\nmodel: digits\nname: again\n", "line 3", "found duplicate key name"),
    (b"name: mine\nbase: {a: 1,\n", "line 3", ""),
    ("# für\nname: mine\n".encode("latin-1"), "line 1", "is not UTF-8; save the file as UTF-8"),
    ("name: mine\n# für\n".encode("latin-1"), "line 2", "is not UTF-8; save the file as UTF-8"),
    (SMOKE.encode("utf-16"), "line 1", "is not UTF-8 but UTF-16; save the file as UTF-8"),
    (b"name: mine\nmodel: \x00\n", "line 2", "is not allowed"),
    (b"- solver: heun\n- solver: euler\n", "line 1", "must be a mapping"),
    (b"heun\n", "line 1", "must be a mapping"),
    (b"", "line 1", "is empty"),
    (b"# nothing yet\n", "line 1", "is empty"),
    (b"name: mine\nmodel: ${model\n", "line 1", "is not valid YAML"),
    (b"name: mine\nmodel: ${nowhere}\n", "line 1", "nowhere"),
    (b"name: mine\nmodel: &a [*a]\n", "line 1", "is not valid YAML"),
    (b"name: mine\nmodel: *a\n", "line 2", "undefined alias"),
    (b"name: !!python/object:os.system {}\n", "line 1", "python/object"),
]


@each(("data", "line", "message"), BROKEN)
@each(("name", "group"), [("sweep", "suite"), ("sample", "model")])
def test_a_file_that_cannot_be_read_is_one_line(name, group, data, line, message, conf, capsys) -> None:
    path = conf / group / "mine.yaml"
    path.write_bytes(data)
    said = refused(capsys, name, f"+{group}=mine")
    assert f"{path} {line} " in said.replace(":", " ") + " "
    assert message in said


def test_a_broken_file_that_no_argument_names_is_one_line_too(conf, capsys) -> None:
    (conf / "model" / "digits.yaml").write_bytes(b"name: digits\n\tdata: digits\n")
    assert "digits.yaml line 2 is not valid YAML" in refused(capsys, "sample")
    assert "digits.yaml line 2 is not valid YAML" in refused(capsys, "sweep", "suite=smoke")
    (conf / "suite" / "digits.yaml").write_bytes(b"\xff")
    assert "digits.yaml line 1 is not UTF-8" in refused(capsys, "train", "model=arena_mixture", "method=cd", "suite=digits")


def test_a_file_that_may_not_be_read_is_one_line(conf, capsys) -> None:
    (conf / "suite" / "mine.yaml").mkdir()
    assert "mine.yaml cannot be read (Is a directory)" in refused(capsys, "sweep", "suite=mine")
    (conf / "suite" / "lost.yaml").symlink_to(conf / "nowhere")
    assert "lost.yaml cannot be read (No such file or directory)" in refused(capsys, "sweep", "suite=lost")


@each("encoding", ["utf-8", "utf-8-sig"])
@each("name", ["mein-süite", "my suite", "it's"])
def test_a_suite_may_have_any_file_name_and_a_byte_order_mark(name, encoding, conf) -> None:
    (conf / "suite" / f"{name}.yaml").write_bytes(SMOKE.encode(encoding))
    assert configure("sweep", [f"+suite={name}"]) == configure("sweep", ["+suite=smoke"])


def test_a_suite_by_path_may_have_windows_line_ends(tmp_path: Path) -> None:
    for name, text in (("unix", SMOKE), ("windows", SMOKE.replace("\n", "\r\n"))):
        (tmp_path / f"{name}.yaml").write_bytes(text.encode())
    first, second = (configure("sweep", [f"suite={tmp_path / name}.yaml"]) for name in ("unix", "windows"))
    assert first == second == configure("sweep", ["suite=smoke"])


NAMES = [
    "..",
    "../../out",
    "",
    ".store",
    ".",
    "a/b",
    "/abs",
    "a\\b",
    "a\nb",
    "a\0b",
    "a\x1b[2J",
    " a",
    "a ",
    "~",
    "x" * 101,
    "日" * 34,
    None,
    5,
    ["a"],
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_is_refused(name: Any, conf, capsys, tmp_path) -> None:
    results = tmp_path / "deep" / "results"
    for group, command in (("suite", "sweep"), ("model", "train")):
        values = conf_files.load(conf / group / ("smoke.yaml" if group == "suite" else "digits.yaml"))
        (conf / group / "mine.yaml").write_text(json.dumps({**values, "name": name}), encoding="utf-8")
        said = refused(capsys, command, f"{group}=mine", f"results={results}")
        assert f"{group}.name names a folder and files: 1 to 100 printable characters, no slash, no dot in front; got " in said
    assert not results.exists()
    study = conf_files.load(conf / "suite" / "trajectories.yaml")
    (conf / "suite" / "mine.yaml").write_text(json.dumps({**study, "name": name}), encoding="utf-8")
    assert "suite.name names a folder and files" in refused(capsys, "sweep", "suite=mine", f"results={results}")
    assert not results.exists()


@each("name", ["a", "mein-süite", "日" * 33, "x" * 100, "a b", "a.b", "-x", "2024"])
def test_other_names_are_taken(name: str, tmp_path: Path) -> None:
    check_name("suite.name", name, "")
    assert expand(configure("sweep", ["suite=smoke", f"suite.name={name}"])["suite"], 0, "philox").name == name
    (tmp_path / name).mkdir()
    with Store(tmp_path).lock("rows", name):
        pass


def test_names_on_the_command_line_are_checked_too(capsys, tmp_path) -> None:
    results = tmp_path / "results"
    assert "got '../out'" in refused(capsys, "sweep", "suite=smoke", "suite.name=../out", BLOCK, f"results={results}")
    assert "got '../../out'" in refused(capsys, "train", "model.name=../../out", "batches=1", f"results={results}")
    assert not list(tmp_path.iterdir())


MODELS = [
    ({"name": "mine"}, "model mine: data must be a name, got None; e.g. data: digits"),
    ({"name": "mine", "data": "digits"}, "model mine: weights must be a name, got None; e.g. weights: digits_edm"),
    ({"sigma_range": [1]}, "sigma_range is two levels"),
    ({"sigma_range": [80.0, 0.002]}, "sigma_range is two levels"),
    ({"sigma_range": ["a", 2]}, "sigma_range is two levels"),
    ({"sigma_range": [0, ".inf"]}, "sigma_range is two levels"),
    ({"sigma_range": 5}, "sigma_range must be a list, got 5; e.g. sigma_range: [0.002, 80.0]"),
    ({"config": 5}, "config must be a mapping, got 5"),
    ({"arch": "unit"}, "unknown arch 'unit'; did you mean unet?"),
    ({"data": ["digits"]}, "data must be a name, got ['digits']"),
    ({"data": "digit"}, "unknown data set 'digit'; did you mean digits"),
    ({"closed_form": "arena"}, "unknown closed_form 'arena'"),
    ({"closed_form": ["arena"]}, "unknown closed_form '['arena']'"),
    ({"weights": "trained", "pretrain": None}, "pretrain must be a name, got None"),
    ({"weights": "trained", "options": None}, "options must be a mapping, got None"),
    ({"weights": "trained", "pretrain": "edn"}, "unknown pretrain 'edn'; did you mean edm?"),
    ({"weights": "trained", "precond": 5}, "precond must be a mapping, got 5"),
    ({"weights": "trained", "precond": {"schedule": "cosine"}}, "precond has a schedule and a form, got"),
    ({"weights": "trained", "config": {"chanels": [8]}}, "the config of architecture 'unet' does not fit"),
]


@each(("change", "message"), MODELS)
def test_a_model_that_is_none_is_one_line(change: dict[str, Any], message: str, conf, capsys, tmp_path) -> None:
    values = {} if "name" in change else conf_files.load(conf / "model" / "digits.yaml")
    (conf / "model" / "mine.yaml").write_text(json.dumps({**values, **change}), encoding="utf-8")
    assert message in refused(capsys, "sample", "model=mine", "nfe=1", f"results={tmp_path}/r", f"out={tmp_path}/x.png")


SUITES = [
    ({"model": []}, "suite.model is a model's name or a list of names, got []"),
    ({"model": 5}, "suite.model is a model's name or a list of names, got 5"),
    ({"reference_steps": "many"}, "reference_steps at least 1, got 'dpmpp_2m' and 'many'"),
    ({"reference_steps": 0}, "reference_steps at least 1"),
    ({"reference": 5}, "suite.reference is a solver's name"),
    ({"blocks": None}, "a suite's blocks are a list"),
    ({"samples": "many"}, "suite.samples must be at least 2, got many"),
]


@each(("change", "message"), SUITES)
def test_a_suite_that_is_none_is_one_line(change: dict[str, Any], message: str, conf, capsys, tmp_path) -> None:
    values = conf_files.load(conf / "suite" / "smoke.yaml")
    (conf / "suite" / "mine.yaml").write_text(json.dumps({**values, **change}), encoding="utf-8")
    assert message in refused(capsys, "sweep", "suite=mine", f"results={tmp_path}/r")


CARDS = [
    (b'{"arch": "unet"', "is not valid JSON"),
    (b"[1]", "has no valid 'arch'"),
    (b"\xff\xfe{}", "is not valid JSON"),
    ("[" * 100000, "is not valid JSON"),
    ({"sigma_range": [1.0]}, "'sigma_range' must be 2 numbers, got [1.0]"),
    ({"shape": ["a", 8, 8]}, "'shape' must be 3 numbers"),
]


@each(("card", "message"), CARDS)
def test_a_card_that_is_none_is_one_line(card: Any, message: str, capsys, tmp_path) -> None:
    weights, beside = tmp_path / "digits_edm.safetensors", tmp_path / "digits_edm.json"
    shutil.copy(SHIPPED / weights.name, weights)
    if isinstance(card, dict):
        changed = {**json.loads((SHIPPED / beside.name).read_text(encoding="utf-8")), **card}
        assert changed["sha256"] == file_digest(weights)
        card = json.dumps({**changed, "identity": identity(changed)})
    beside.write_bytes(card if isinstance(card, bytes) else card.encode())
    assert message in refused(capsys, "sample", f"model.weights={weights}", "nfe=1", f"results={tmp_path}/r")
    beside.unlink()
    beside.mkdir()
    assert "cannot be read (Is a directory)" in refused(capsys, "sample", f"model.weights={weights}", "nfe=1", f"results={tmp_path}/r")


def test_broken_data_is_no_bare_error() -> None:
    with pytest.raises(UsageError, match=r"nowhere\.yaml cannot be read"):
        conf_files.load(Path("nowhere.yaml"))
