"""Models and students that are given as weights: by path, by the name of a fetched file, and by a name of the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.fetching.wants import wanted
from bench.jobs.models import load_model
from bench.settings.compose import configure, group_config
from fewstep.errors import Unavailable, UsageError
from fewstep.nets.loading import load_denoiser
from support.edm_file import edm_checkpoint
from support.published import DIFFUSERS, DOWN, NETS, UP


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with nothing fetched and an empty cache of the hub."""
    monkeypatch.chdir(tmp_path)
    for name in ("FEWSTEP_CACHE", "FEWSTEP_DATA", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    hub = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed: its cache was not looked into")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def cached(place: Path, owner: str, name: str) -> Path:
    """A small pipeline as the hub's library keeps a copy."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pipelines of the hub's cache were not read")
    repository = place / "hub" / f"models--{owner}--{name}"
    copy = repository / "snapshots" / "0123abcd"
    diffusers.UNet2DModel(**DIFFUSERS, down_block_types=DOWN, up_block_types=UP).save_pretrained(copy)
    (copy / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    return copy


def test_a_name_of_the_hub_is_no_path(place: Path) -> None:
    """It is looked up in the hub's cache first; before it is there, what is on the list can be fetched, and anything else says how."""
    told = {"name": "ddpm-cifar10-32", "data": "cifar10", "augment": "flip", "weights": "google/ddpm-cifar10-32"}
    assert group_config("model", "google/ddpm-cifar10-32") == told
    with pytest.raises(Unavailable, match=r"CIFAR-10: .*; google/ddpm-cifar10-32 .*type python -m bench.fetch what=ddpm_cifar10"):
        load_model(told, "cpu")
    with pytest.raises(UsageError, match=r"^model=some-body/v1\.5 does not exist here; type hf download some-body/v1\.5, if that is"):
        group_config("model", "some-body/v1.5")
    with pytest.raises(UsageError, match=r"^model=some/nothing\.pkl does not exist \(looked from"):
        group_config("model", "some/nothing.pkl")
    own = place / "mine"
    own.mkdir()
    (own / "m.yaml").write_text("data: cifar10\nweights: google/ddpm-cifar10-32\n")
    assert group_config("model", "mine/m.yaml")["weights"] == "google/ddpm-cifar10-32"
    (own / "s.yaml").write_text("name: s\nmodel: [google/ddpm-cifar10-32, ./m.yaml]\n")
    assert group_config("suite", "mine/s.yaml")["model"] == ["google/ddpm-cifar10-32", f"{Path('mine')}/m.yaml"]
    cached(place, "google", "ddpm-cifar10-32")
    assert group_config("model", "google/ddpm-cifar10-32") == told
    assert load_denoiser("google/ddpm-cifar10-32")[0].shape == (3, 8, 8)
    (own / "google" / "ddpm-cifar10-32").mkdir(parents=True)  # which is a path there
    assert group_config("model", "mine/m.yaml")["weights"] == "mine/google/ddpm-cifar10-32"


def test_a_suite_wants_nothing_that_the_hub_s_cache_has(place: Path) -> None:
    Path("s.yaml").write_text(
        "name: s\nmodel: google/ddpm-cifar10-32\nsamples: 50\nreference: dpmpp_2m\nreference_steps: 8\n"
        "blocks: [{solver: euler, grid: polynomial, end: sigma_min, nfe: 4, metrics: [psnr_teacher]}]\n"
    )
    assert len(wanted(configure("sweep", ["suite=./s.yaml"]))) == 5
    cached(place, "google", "ddpm-cifar10-32")
    assert [piece.label for piece in wanted(configure("sweep", ["suite=./s.yaml"]))] == ["cifar10"]


def test_weights_by_path_are_used_as_the_model_that_names_them(place: Path) -> None:
    """The published file, wherever it lies; any other network of a data set whose published trainings are on flipped images; and others."""
    flipped = "edm-cifar10-32x32-cond-vp", "edm-cifar10-mine", "edm-ffhq-mine", "edm-afhqv2-mine"
    for name in (*flipped, "edm-imagenet-mine"):
        edm_checkpoint(place / f"{name}.pkl", NETS["ddpmpp"]().eval(), {})
        told = group_config("model", f"./{name}.pkl")
        assert told["weights"] == f"{name}.pkl"
        assert (told["name"], told.get("augment")) == (name, "flip" if name in flipped else None)
    assert group_config("model", "weights/edm-cifar10-32x32-cond-vp.pkl")["augment"] == "flip"  # before it is there


def test_weights_of_students_that_begin_with_a_dot_are_beside_their_suite(place: Path) -> None:
    (place / "mine").mkdir()
    (place / "mine" / "s.yaml").write_text(
        "name: s\noptions: {cd: {weights: ./a.pt}, ct: {weights: weights/b.pt}}\nbudgets: {cpu: {options: {ctm: {weights: ../c.pt}}}}\n"
    )
    found = group_config("suite", "mine/s.yaml")["options"]
    assert {name: own["weights"] for name, own in found.items()} == {"cd": "mine/a.pt", "ct": "weights/b.pt", "ctm": "mine/../c.pt"}
