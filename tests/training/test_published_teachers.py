"""Published networks as teachers of a sweep: they go with their data, and their students start without dropout, or from scratch."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from bench.jobs.fits.published import given, given_student
from bench.jobs.fits.students import Student
from bench.jobs.models import load_data, load_model
from bench.settings.compose import group_config
from fewstep.cond import Cond
from fewstep.denoiser import Preconditioned
from fewstep.errors import Unavailable, UsageError
from fewstep.nets.published.diffusers_unet import DiffusersUNet
from fewstep.nets.published.edm import DhariwalUNet, SongUNet
from fewstep.nets.published.openai_unet import OpenaiUNet
from fewstep.plugins import get
from fewstep.precond import EDMPrecond
from methods.start import refuse_guided
from support.each import each
from support.edm_file import edm_checkpoint, sfd_snapshot
from support.published import DIFFUSERS, DOWN, LEVELS, UP, WIDE, golden_state, made

PLAIN = {**DIFFUSERS, "num_class_embeds": None, "down_block_types": DOWN, "up_block_types": UP}
NETWORKS = {
    "ddpmpp": lambda dropout: SongUNet((3, 8, 8), 0, LEVELS, dropout=dropout),
    "ncsnpp": lambda dropout: SongUNet((3, 8, 8), 0, LEVELS, "ncsnpp", dropout=dropout),
    "adm": lambda dropout: DhariwalUNet((3, 8, 8), 0, {**LEVELS, "channels": 32}, dropout=dropout),
    "openai": lambda dropout: OpenaiUNet((3, 8, 8), 0, WIDE, dropout=dropout),
    "diffusers": lambda dropout: DiffusersUNet((3, 8, 8), 0, {**PLAIN, "dropout": dropout}),
}


def teacher_of(name: str, dropout: float = 0.5) -> Preconditioned:
    torch.manual_seed(0)
    net = NETWORKS[name](dropout)
    net.load_state_dict(golden_state(net))
    return Preconditioned(net.eval().requires_grad_(False), EDMPrecond(0.5), (3, 8, 8), 0, (0.002, 80.0))


def calls(net: torch.nn.Module) -> bool:
    """Whether two calls in training agree."""
    x, c = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3, -0.5])
    with torch.no_grad():
        return torch.equal(net.train()(x, c), net(x, c))


@each("name", list(NETWORKS))
def test_students_of_published_networks_have_no_dropout(name):
    teacher = teacher_of(name)
    assert not calls(teacher.net)
    teacher.net.eval()
    for method in ("cd", "ct", "ect", "kd", "pd", "ctm", "dmd", "dmd2", "sfd"):
        assert calls(get("distiller", method).make().build(teacher)["student"]), method
    kept = get("distiller", "sfd").make(released=True).build(teacher)["student"]
    assert not calls(kept)  # as in its paper's code


@each("name", list(NETWORKS))
def test_consistency_training_starts_from_scratch(name):
    teacher = teacher_of(name)
    for method in ("ct", "ict"):
        torch.manual_seed(1)
        net = get("distiller", method).make(init="scratch").build(teacher)["student"]
        before = teacher.net.state_dict()
        same = [key for key, value in net.named_parameters() if value.ndim > 1 and torch.equal(value, before[key])]
        assert not same
        assert all(value.isfinite().all() for value in net.parameters())
    if name == "ddpmpp":  # as EDM's networks start: next to nothing from the last layer, nothing in biases
        last = net.dec["8x8_aux_conv"]
        assert 0 < float(last.weight.abs().max()) < 1e-5
        assert not last.bias.any()


# --- teachers and their data --------------------------------------------------------------------------------------------------------


def folder_zip(path, labels, size=8):
    """A zip as EDM's tool makes it, of 12 images."""
    import io
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        for i in range(12):
            file = io.BytesIO()
            Image.new("RGB", (size, size), (10 * i, 0, 0)).save(file, "PNG")
            archive.writestr(f"00000/img{i:08d}.png", file.getvalue())
        if labels:
            told = [[f"00000/img{i:08d}.png", i % labels] for i in range(12)]
            archive.writestr("dataset.json", json.dumps({"labels": told}))
    return str(path)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model of three classes on images of so many, with a task."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    weights = str(edm_checkpoint(tmp_path / "edm-mine.pkl", made("ddpmpp"), {}))

    def load(labels, **more):
        return load_model({"name": "mine", "data": folder_zip(tmp_path / f"of{labels}.zip", labels), "weights": weights, **more}, "cpu")

    return load


def test_a_teacher_goes_with_the_classes_of_its_data(model):
    assert model(3).teacher.classes == 3
    for labels in (2, 4):
        with pytest.raises(UsageError, match=f"the teacher knows 3 classes and of{labels} has {labels}; both must agree"):
            model(labels)
    with pytest.raises(UsageError, match="of0, which has no labels, asks the network for images of no class"):
        model(0)
    with pytest.raises(UsageError, match="model mine: its task asks the network for images of no class"):
        model(3, task="unconditional")
    with pytest.raises(UsageError, match="gd asks the network for images of no class, and it was trained with labels only"):
        refuse_guided(model(3).teacher, "gd")


def test_images_of_imagenet_have_labels(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    folder_zip(tmp_path / "imagenet-64x64.zip", 0, 64)
    with pytest.raises(UsageError, match=r"holds images \[3, 64, 64\] without labels, and imagenet64 is \[3, 64, 64\] in 1000"):
        load_data("imagenet64")


def test_a_training_drops_no_label_that_its_teacher_needs(model, tmp_path):
    from bench.training.engine import Engine, Settings
    from bench.training.sharing import Part
    from methods.recipe import Recipe

    found = model(3)
    assert isinstance(found.teacher, Preconditioned)
    for null, dropped in ((False, False), (True, True)):
        teacher = replace(found.teacher, null=null)
        method = get("distiller", "ct").make(batches=1, batch_size=4)
        engine = Engine(
            method, teacher, found.data, tmp_path / f"work{null}", Settings(0, "cpu", Recipe(condition_dropout=1.0), found.task)
        )
        cond: Cond = engine._drawn(method.phases()[0], Part(0, 4), 0).cond
        assert bool((cond.label == 3).all()) is dropped


def test_models_of_weights_by_path(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "own" / "weights").mkdir(parents=True)
    mine, published = tmp_path / "own" / "mine.yaml", "weights/edm-cifar10-32x32-cond-vp.pkl"
    for weights, meant in ((published, published), ("weights/mine.pkl", f"{tmp_path}/own/weights/mine.pkl")):
        mine.write_text(f"name: mine\ndata: cifar10\nweights: {weights}\n")
        assert group_config("model", str(mine))["weights"] == meant
    (tmp_path / "own" / published).write_bytes(b"")
    mine.write_text(f"name: mine\ndata: cifar10\nweights: {published}\n")
    assert group_config("model", str(mine))["weights"] == f"{tmp_path}/own/{published}"
    monkeypatch.chdir(tmp_path)
    net = OpenaiUNet((3, 8, 8), 0, WIDE)
    torch.save(net.state_dict(), tmp_path / "edm_bedroom8_ema.pt")
    config = group_config("model", str(tmp_path / "edm_bedroom8_ema.pt"))
    assert config["data"] == "data/lsun_bedroom"
    with pytest.raises((UsageError, Unavailable), match="lsun_bedroom"):
        load_model(config, "cpu")
    (tmp_path / "edm-cifar10-x.pkl").write_bytes(b"nobody reads this for a name")
    assert group_config("model", "./edm-cifar10-x.pkl")["data"] == "cifar10"
    (tmp_path / "mine-x.pkl").write_bytes(b"")
    with pytest.raises(UsageError, match="does not say what data it is of"):
        group_config("model", "./mine-x.pkl")


# --- students that say what they were trained for -----------------------------------------------------------------------------------


def test_rows_of_a_snapshot_are_at_its_own_steps_and_settings(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    found = model(0, weights=str(edm_checkpoint(tmp_path / "edm-free.pkl", SongUNet((3, 8, 8), 0, LEVELS).eval(), {})))
    net = SongUNet((3, 8, 8), 0, LEVELS, step_condition=True).eval()

    def loaded(name, training, steps, **options):
        path = sfd_snapshot(tmp_path / "network-snapshot-000200.pkl", net, training)
        return given_student(Student(name, {"weights": str(path), **options}), found, steps, "cpu")

    whole = {"num_steps": 4, "afs": True}
    assert loaded("sfd", whole, 3).classes == 0
    with pytest.raises(UsageError, match="was trained for 3 step"):
        loaded("sfd", whole, 7)
    with pytest.raises(UsageError, match="trained with afs=False, and is sampled with afs=True here"):
        loaded("sfd", {**whole, "afs": False}, 3)
    assert loaded("sfd", {**whole, "afs": False}, 3, afs=False).classes == 0
    with pytest.raises(UsageError, match="trained with tells_steps=False"):
        loaded("sfd_v", {**whole, "use_step_condition": False}, 3)
    with pytest.raises(UsageError, match="one of sfd_v, not of sfd"):
        loaded("sfd", {"num_steps": 7, "use_step_condition": True}, 3)
    assert loaded("sfd_v", {"num_steps": 7, "use_step_condition": True}, 3).classes == 0
    student = Student("sfd", {"weights": str(tmp_path / "network-snapshot-000200.pkl")})
    for training, warned in ((whole, ""), ({}, "its file does not say for which steps and settings it was trained")):
        sfd_snapshot(tmp_path / "network-snapshot-000200.pkl", net, training)
        assert given(student, found)["warning"] == warned
