"""Checkpoints of the right format whose values are wrong: each is one line, and none loads as something else."""

import json
import math

import pytest
import torch

from fewstep import load_student, load_teacher
from fewstep.assets import held, pieces
from fewstep.errors import UsageError
from fewstep.guidance import guide
from fewstep.nets.loading import load_denoiser, read
from fewstep.nets.published.edm import SongUNet
from fewstep.nets.readers.card import here, how_to_get
from fewstep.nets.readers.diffusers_folder import process_of, read_pipeline
from fewstep.nets.readers.edm_pickle import precond_card, trained_for
from fewstep.nets.readers.safe_pickle import Record, Refused
from support.each import each
from support.edm_file import edm_checkpoint, sfd_snapshot
from support.published import DOWN, LEVELS, UP, golden_state, made

PINNED = "edm-cifar10-32x32-uncond-vp.pkl"


def one_line(call, *words):
    with pytest.raises(UsageError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 500, said
    for word in words:
        assert word in said, said


def test_another_network_under_a_published_name(tmp_path):
    assert len(held(PINNED)) == 64
    assert not held("nobody.pkl")
    path = edm_checkpoint(tmp_path / PINNED, made("ddpmpp"), {})
    one_line(lambda: read(path), "has SHA-256", f"the published {PINNED} has {held(PINNED)[:12]}", "give another file another name")
    assert read(path.rename(tmp_path / "edm-cifar10-mine.pkl"))[1]["data"] == "cifar10"


def test_every_reader_asks_for_the_published_digest(tmp_path, monkeypatch):
    """Nobody publishes those of `.pt` files and pipelines yet: here somebody does."""
    from fewstep.nets.readers import opened

    monkeypatch.setattr(opened, "held", lambda name: "0" * 64)
    pt = tmp_path / "edm_imagenet8_ema.pt"
    torch.save(made("openai").state_dict(), pt)
    for path in (pt, edm_checkpoint(tmp_path / "edm-x.pkl", made("adm"), {}), pipeline(tmp_path / "net")):
        one_line(lambda path=path: read(path), "and the published", "has 000000000000")


def test_weights_that_are_no_dense_finite_numbers(tmp_path):
    state, path = made("openai").state_dict(), tmp_path / "edm_imagenet8_ema.pt"
    name = next(key for key, value in state.items() if value.ndim == 4)
    broken = state[name].clone()
    broken[0, 0, 0, 0] = math.nan
    for value, words in (
        (broken, f"'{name}' holds NaN or infinity"),
        (broken.nan_to_num(math.inf), f"'{name}' holds NaN or infinity"),
        (state[name].long(), f"'{name}' is torch.int64, the network needs torch.float32"),
    ):
        torch.save({**state, name: value}, path)
        one_line(lambda: load_denoiser(path), words)
    from fewstep.nets.loading import load_strict

    for value, words in (
        (state[name].to_sparse(), "only dense tensors are loaded"),
        (state[name].to("meta"), "is without values"),
        (state[name].to(torch.complex64), "is torch.complex64"),
    ):
        one_line(lambda value=value: load_strict(made("openai"), {**state, name: value}, "they"), words)


@each(
    ("name", "state", "words"),
    [
        ("VPPrecond", {"M": math.inf}, "its M is inf, and no number above 0"),
        ("VPPrecond", {"M": math.nan}, "its M is nan"),
        ("VPPrecond", {"M": 10**400}, "its process has 1e+300 steps"),
        ("VPPrecond", {"M": True}, "its M is True"),
        ("VPPrecond", {"beta_d": math.nan}, "its beta_d is nan"),
        ("VPPrecond", {"beta_min": "0.1"}, "its beta_min is 0.1, and no number above 0"),
        ("EDMPrecond", {"sigma_data": 0.0}, "its sigma_data is 0.0"),
        ("iDDPMPrecond", {"C_1": math.nan}, "its C_1 is nan"),
    ],
)
def test_numbers_of_a_preconditioning(name, state, words):
    with pytest.raises(Refused) as caught:
        precond_card(Record(name, state=state), torch.zeros(1001))
    assert words in str(caught.value)


def test_levels_of_a_baseline(tmp_path):
    for levels in (torch.zeros(()), torch.zeros(1), torch.zeros(200_000)):
        path = edm_checkpoint(tmp_path / "edm-u.pkl", made("adm"), {}, "iDDPMPrecond", {"u": levels})
        one_line(lambda path=path: read(path), "its process has")
    half = edm_checkpoint(tmp_path / "edm-u.pkl", made("adm"), {}, "iDDPMPrecond", {"u": torch.zeros(11, dtype=torch.bfloat16)})
    assert read(half)[1]["precond"]["steps"] == 10  # only their number is read


# --- students that say what they were trained for ------------------------------------------------------------------------------------


def snapshot(folder, training, **options):
    net = SongUNet((3, 8, 8), 0, LEVELS, step_condition=True, **options)
    net.load_state_dict(golden_state(net))
    return sfd_snapshot(folder / "network-snapshot-000200.pkl", net.eval(), training)


def test_a_snapshot_is_sampled_as_it_was_trained(tmp_path):
    path = snapshot(tmp_path, {"num_steps": 4, "afs": False, "sigma_min": 0.01, "sampler_stu": "euler", "schedule_type": "polynomial"})
    one_line(lambda: load_student(path, steps=7), "was trained for 3 step(s), not for 7; use steps=3")
    student = load_student(path, steps=3)
    assert student.plan.nfe(student.denoiser) == 3  # without AFS, as it says
    assert student.card["student"]["levels"][-1] == pytest.approx(0.01)
    assert student.card["student"]["trained"]["steps"] == [3]
    assert "warning" not in student.card["student"]
    for training, words in (
        ({"sampler_stu": "dpm2"}, "solver=dpm2, and is sampled with solver=euler"),
        ({"schedule_type": "logsnr"}, "grid=logsnr, and is sampled with grid=polynomial"),
        ({"sigma_max": 10.0}, "sigma_max=10.0"),
    ):
        path = snapshot(tmp_path, {"num_steps": 4, **training})
        one_line(lambda path=path: load_student(path, steps=3), words)


def test_a_snapshot_that_reads_the_number_of_steps(tmp_path):
    path = snapshot(tmp_path, {"num_steps": 7, "afs": True, "use_step_condition": True})
    assert read(path)[1]["student"]["method"] == "sfd_v"
    assert load_student(path, steps=4).plan.nfe(load_student(path, steps=4).denoiser) == 3
    one_line(lambda: load_student(path, steps=2), "was trained for 3, 4, 5, 6 step(s), not for 2")
    second = snapshot(tmp_path, {"num_steps": 3, "use_step_condition": True})
    assert read(second)[1]["student"]["trained"]["steps"] == [2]


def test_a_snapshot_that_says_nothing_is_marked(tmp_path):
    student = load_student(snapshot(tmp_path, {}), steps=2)
    assert student.card["student"]["warning"] == "its file does not say for which steps and settings it was trained"
    for wrong in ({"num_steps": "4"}, {"num_steps": 1}, {"afs": 1}, {"sigma_min": True}):
        with pytest.raises(Refused, match="its setting"):
            trained_for(wrong)


# --- networks that were trained with labels only ------------------------------------------------------------------------------------


def test_a_network_without_a_null_branch_is_not_guided(tmp_path):
    torch.save(made("openai").state_dict(), tmp_path / "edm_imagenet8_ema.pt")
    for path in (edm_checkpoint(tmp_path / "edm-x.pkl", made("ddpmpp"), {}), tmp_path / "edm_imagenet8_ema.pt"):
        teacher = load_teacher(str(path))
        one_line(lambda teacher=teacher: guide(teacher, 2.0), "guidance asks the network for images of no class")
        assert guide(teacher, 1.0) is teacher
        assert guide(teacher, 2.0, ref=teacher).classes == 3  # autoguidance keeps the labels
    free = SongUNet((3, 8, 8), 0, LEVELS).eval()
    assert "null" not in read(edm_checkpoint(tmp_path / "edm-y.pkl", free, {}))[1]


# --- pipelines of diffusers ------------------------------------------------------------------------------------------------------------


def pipeline(folder):
    from diffusers.models.unets.unet_2d import UNet2DModel

    sizes = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
    UNet2DModel(8, 3, 3, down_block_types=DOWN, up_block_types=UP, **sizes).save_pretrained(folder)
    (folder / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    return folder


@each(
    ("config", "words"),
    [
        ({"_class_name": "DDPMScheduler", "beta_start": None}, "beta_start is a finite number, got 'None'"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": ["linear"]}, "unknown beta_schedule '['linear']'"),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": "a"}, "sigma_min is a finite number, got 'a'"),
        ({"_class_name": "EDMEulerScheduler", "sigma_max": math.nan}, "sigma_max is a finite number"),
        ({"_class_name": "DDPMScheduler", "num_train_timesteps": math.inf}, "num_train_timesteps is a finite number"),
        ({"_class_name": "DDPMScheduler", "num_train_timesteps": 10**12}, "num_train_timesteps is 2 to 100000, got 1e+12"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "told levels (timestep_type continuous)"),
        ({"_class_name": "LCMScheduler"}, "LCMScheduler is no scheduler whose process is known"),
    ],
)
def test_settings_of_schedulers(config, words, tmp_path):
    one_line(lambda: process_of(config, tmp_path), words)


def test_sizes_of_pipelines(tmp_path):
    folder = pipeline(tmp_path / "net")
    config = json.loads((folder / "config.json").read_text())
    for change, words in (
        ({"layers_per_block": 10**7}, "layers_per_block has 10000000, and 1 to 64 is what is read"),
        ({"block_out_channels": [16] * 40}, "block_out_channels has 40, and 1 to 12"),
        ({"block_out_channels": [16, 10**9]}, "block_out_channels has 1000000000, and 1 to 8192"),
        ({"block_out_channels": "ab"}, "block_out_channels has 0"),
        ({"attention_head_dim": 0}, "are of no network that diffusers_unet2d can be"),
        ({"num_class_embeds": -3}, "are of no network"),
        ({"act_fn": "nope"}, "are of no network"),
        ({"down_block_types": 5}, "are of no network"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        one_line(lambda: read_pipeline(folder), words)


# --- where files are looked for ------------------------------------------------------------------------------------------------------


def test_a_path_that_is_mistyped_leads_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fetched = tmp_path / "fetched"
    (fetched / "ddpm-cifar10-32").mkdir(parents=True)
    (fetched / PINNED).write_bytes(b"x")
    (fetched / "ddpm-cifar10-32" / "config.json").write_text("{}")
    for name in (PINNED, f"weights/{PINNED}"):
        assert here(name) == fetched / PINNED
    for name in ("ddpm-cifar10-32", "weights/ddpm-cifar10-32", "google/ddpm-cifar10-32"):
        assert here(name) == fetched / "ddpm-cifar10-32"
    for name in (f"old/{PINNED}", f"/data/old/{PINNED}", "somebody/ddpm-cifar10-32", "./old/ddpm-cifar10-32"):
        assert here(name) is None, name
    assert how_to_get(f"old/{PINNED}") == f"put it there, or say {PINNED} alone, which is looked for among what was fetched"


def test_the_data_of_published_files(tmp_path):
    torch.save(made("openai").state_dict(), tmp_path / "edm_bedroom8_ema.pt")
    assert read(tmp_path / "edm_bedroom8_ema.pt")[1]["data"] == "data/lsun_bedroom"
    assert any(file.name == "baseline-imagenet-64x64-cond-adm.pkl" for piece in pieces() for file in piece.files)
