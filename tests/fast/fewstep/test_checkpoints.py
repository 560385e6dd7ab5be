"""Published checkpoints: each format is read to the last bit, nothing in a file is run, and a wrong one is said to be wrong in one line."""

import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from fewstep import load_student, load_teacher
from fewstep.cond import Cond
from fewstep.denoiser import FlowMap, Preconditioned
from fewstep.errors import UsageError
from fewstep.nets.loading import build, load_denoiser, read
from fewstep.nets.published.edm import DhariwalUNet, SongUNet
from fewstep.nets.published.openai_unet import OpenaiUNet
from fewstep.nets.readers.diffusers_folder import process_of
from fewstep.precond import ConsistencyPrecond, IDDPMPrecond
from support.each import each
from support.edm_file import edm_checkpoint, sfd_snapshot
from support.published import golden_state, published_net, records

SMALL = {"channels": 8, "mult": [1, 2], "blocks": 1, "attention": [4]}
PAGE = b"<!DOCTYPE html><html><head><title>Quota exceeded</title></head></html>"


def song(classes=3, **options):
    net = SongUNet((3, 8, 8), classes, SMALL, augment=9, **options)
    net.load_state_dict(golden_state(net))
    return net.eval()


def openai(name, folder, size=8, **options):
    net = OpenaiUNet((3, size, size), 4, {"channels": 32, "mult": [1, 2], "blocks": 1, "attention": [1]}, **options)
    net.load_state_dict(golden_state(net))
    torch.save(net.state_dict(), folder / name)
    return folder / name, net.eval()


def pipeline(folder, scheduler, classes=None, flat=True):
    """A folder of diffusers' with a small network, and its network."""
    from diffusers import UNet2DModel

    down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
    net = UNet2DModel(8, 3, 3, down_block_types=down, up_block_types=up, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
                      num_class_embeds=classes)  # fmt: skip
    net.load_state_dict(golden_state(net))
    net.save_pretrained(folder if flat else folder / "unet")
    place = folder if flat else folder / "scheduler"
    place.mkdir(exist_ok=True)
    (place / "scheduler_config.json").write_text(json.dumps(scheduler))
    return net.eval()


# --- EDM's pickles ---------------------------------------------------------------------------------------------------------------


@each("name", [name for name in records() if name.endswith("small")])
def test_a_pickle_of_the_documented_structure_loads_bit_equal(name, tmp_path):
    config = records()[name]["config"]
    net = published_net(config)
    net.load_state_dict(golden_state(net))
    path = edm_checkpoint(tmp_path / f"edm-{name}.pkl", net, config, config["cls"])
    tensors, card = read(path)
    assert list(tensors) == list(net.state_dict())
    assert all(torch.equal(tensors[key], value) for key, value in net.state_dict().items())
    assert (card["config"]["dropout"], card["classes"]) == (config["dropout"], config["label_dim"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]  # the source in it would have left a file
    teacher, _ = load_denoiser(path)
    x, cond = torch.randn(2, *teacher.shape), Cond(label=torch.tensor([1, 3])) if teacher.classes else Cond()
    with torch.no_grad():
        assert torch.equal(teacher.net(x, torch.tensor([0.5, 0.1]), cond), net.eval()(x, torch.tensor([0.5, 0.1]), cond))


def test_a_baseline_of_improved_ddpm(tmp_path):
    net = DhariwalUNet((3, 8, 8), 3, {**SMALL, "channels": 32}, outputs=2)
    levels = torch.from_numpy(IDDPMPrecond().table.astype(np.float32))
    path = edm_checkpoint(tmp_path / "baseline-imagenet-x.pkl", net, {}, "iDDPMPrecond", {"u": levels})
    teacher, _ = load_denoiser(path)
    assert isinstance(teacher.precond, IDDPMPrecond)
    # the published digits, of a table in float32 that cancels near 1
    assert np.allclose([teacher.precond.table[0], teacher.precond.table[-2]], [20291.14, 0.006422], rtol=1e-3)
    assert teacher(torch.randn(1, 3, 8, 8), 2.0).shape == (1, 3, 8, 8)
    nearest = [999 - int(np.abs(teacher.precond.table - s).argmin()) for s in (0.01, 0.7, 50.0)]
    assert teacher.precond.coefficients(np.array([0.01, 0.7, 50.0]))[3].tolist() == nearest


def test_a_snapshot_of_sfd_is_a_student(tmp_path):
    net = song(0, step_condition=True)
    path = sfd_snapshot(tmp_path / "network-snapshot-000200.pkl", net, {"num_steps": 4})
    with pytest.raises(UsageError, match=r"student of sfd; load it with fewstep\.load_student"):
        load_denoiser(path)
    student = load_student(path, steps=3)
    assert [round(s, 3) for s in student.card["student"]["levels"]] == [80.0, 10.929, 0.67, 0.006]
    assert student.plan.nfe(student.denoiser) == 2  # AFS
    images, _ = student.sample(torch.arange(2))
    assert images.isfinite().all()


# --- openai's checkpoints -----------------------------------------------------------------------------------------------------------


def test_openai_teachers_and_students(tmp_path):
    path, net = openai("edm_imagenet8_ema.pt", tmp_path)
    tensors, card = read(path)
    assert all(torch.equal(tensors[key], value) for key, value in net.state_dict().items())
    assert (card["data"], card["shape"], card["classes"]) == ("imagenet64", [3, 8, 8], 4)
    assert load_teacher(str(path)).sigma_range == (0.002, 80.0)
    for name in ("cd_imagenet8_lpips.pt", "ct_cat8.pt"):
        student = load_student(openai(name, tmp_path)[0])
        assert isinstance(student.denoiser, Preconditioned)
        assert student.denoiser.precond == ConsistencyPrecond(0.5, 0.002)
        x = torch.randn(2, 3, 8, 8)
        assert_close(student.denoiser(x, 0.002), x)  # the boundary
        assert [round(s, 3) for s in student.card["student"]["levels"]] == [80.0, 0.002]
        assert student.plan.nfe(student.denoiser) == 1
        assert torch.equal(student.sample(torch.arange(3))[1], torch.tensor([0, 1, 2]))


def test_a_trajectory_model_is_a_flow_map(tmp_path):
    student = load_student(openai("ctm_imagenet8_ema.pt", tmp_path, two_time=True)[0])
    assert isinstance(student.denoiser, FlowMap)
    x = torch.randn(2, 3, 8, 8)
    assert_close(student.denoiser.jump(x, 5.0, 5.0), x)
    assert not torch.allclose(student.denoiser.jump(x, 5.0, 0.5), student.denoiser.jump(x, 5.0, 0.002))
    assert student.sample(torch.arange(2))[0].isfinite().all()


# --- pipelines of diffusers -------------------------------------------------------------------------------------------------------------


PROCESSES = (
    ({"_class_name": "DDPMScheduler"}, True),
    ({"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}, False),
    ({"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"}, True),
)


@each(("scheduler", "flat"), PROCESSES)
@torch.no_grad()
def test_a_pipeline_is_read_with_its_schedule(scheduler, flat, tmp_path):
    import diffusers

    net = pipeline(tmp_path / "net", scheduler, flat=flat)
    teacher = load_teacher(str(tmp_path / "net"))
    own = getattr(diffusers, scheduler["_class_name"]).from_config({k: v for k, v in scheduler.items() if k != "_class_name"})
    x = torch.randn(2, 3, 8, 8)
    for t in (0, 300, 900):
        a = own.alphas_cumprod[t]
        z = a.sqrt() * x
        out = net(z, torch.tensor(t)).sample
        d = z * a.sqrt() - (1 - a).sqrt() * out if "prediction_type" in scheduler else (z - (1 - a).sqrt() * out) / a.sqrt()
        # the library's products of betas are float32, which leaves five digits of the highest levels
        assert_close(teacher(x, float(((1 - a) / a).sqrt())), d, rtol=1e-4, atol=1e-4 * float(d.abs().max()))


def test_edm_and_consistency_schedulers(tmp_path):
    net = pipeline(tmp_path / "edm", {"_class_name": "EDMEulerScheduler", "sigma_max": 50.0}, classes=4)
    teacher = load_teacher(str(tmp_path / "edm"))
    assert (teacher.sigma_range, teacher.classes) == ((0.002, 50.0), 4)
    x, label = torch.randn(2, 3, 8, 8), torch.tensor([0, 3])
    with torch.no_grad():
        raw = net(x / (4 + 0.25) ** 0.5, torch.tensor(np.log(2.0) / 4), label).sample
        assert_close(teacher(x, 2.0, Cond(label=label)), 0.25 / 4.25 * x + 2 * 0.5 / 4.25**0.5 * raw)
    config = json.loads((tmp_path / "edm" / "config.json").read_text())
    (tmp_path / "edm" / "config.json").write_text(json.dumps({**config, "_fewstep_null_class": True}))
    teacher = load_teacher(str(tmp_path / "edm"))
    assert teacher.classes == 3
    with torch.no_grad():
        raw = net(x / (4 + 0.25) ** 0.5, torch.tensor(np.log(2.0) / 4), torch.tensor([3, 3])).sample
        for cond in (Cond(), Cond(label=torch.tensor([3, 3]))):
            assert_close(teacher(x, 2.0, cond), 0.25 / 4.25 * x + 2 * 0.5 / 4.25**0.5 * raw)
    pipeline(tmp_path / "cm", {"_class_name": "CMStochasticIterativeScheduler"}, flat=False)
    with pytest.raises(UsageError, match="student of cd"):
        load_teacher(str(tmp_path / "cm"))


def test_old_names_of_attention(tmp_path):
    pipeline(tmp_path / "net", {"_class_name": "DDPMScheduler"})
    path = tmp_path / "net" / "diffusion_pytorch_model.safetensors"
    tensors, _ = read(tmp_path / "net")
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        tensors = {key.replace(f".{new}.", f".{old}.") if "attentions" in key else key: value for key, value in tensors.items()}
    save_file({key.removeprefix("unet."): value for key, value in tensors.items()}, path)
    assert set(read(tmp_path / "net")[0]) == {f"unet.{k}" for k in build(read(tmp_path / "net")[1]).unet.state_dict()}


SCHEDULERS = (
    ({"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}, "unknown beta_schedule 'sigmoid'"),
    ({"_class_name": "DDPMScheduler", "trained_betas": [0.1]}, "lists its own betas"),
    ({"_class_name": "DDPMScheduler", "prediction_type": "eps"}, "unknown prediction_type 'eps'; did you mean"),
    ({"_class_name": "DDPMScheduler", "rescale_betas_zero_snr": True}, "eps says nothing of the image at zero SNR"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "no scheduler whose process is known"),
    ({}, "no class is no scheduler"),
    ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "EDM's own networks have epsilon"),
)


@each(("config", "message"), SCHEDULERS)
def test_schedulers_that_are_not_read(config, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        process_of(config, tmp_path)
    zero = {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    assert process_of(zero, tmp_path)["precond"]["zero_snr"]


# --- bad input ----------------------------------------------------------------------------------------------------------------------------


def one_line(path, *words):
    with pytest.raises(UsageError) as caught:
        load_denoiser(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500, message
    for word in words:
        assert word in message, message


def test_pages_and_pointers_in_place_of_files(tmp_path):
    for name in ("edm-x.pkl", "edm_imagenet64_ema.pt", "mine.safetensors"):
        (tmp_path / name).write_bytes(PAGE)
        one_line(tmp_path / name, "is a web page and not the file")
        (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n")
        one_line(tmp_path / name, "pointer of git-lfs")
        (tmp_path / name).write_bytes(b"")
        one_line(tmp_path / name, "is empty")
    pipeline(tmp_path / "net", {"_class_name": "DDPMScheduler"})
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        before = (tmp_path / "net" / name).read_bytes()
        (tmp_path / "net" / name).write_bytes(PAGE)
        one_line(tmp_path / "net", "is a web page")
        (tmp_path / "net" / name).write_bytes(before)


def test_truncated_files(tmp_path):
    whole = edm_checkpoint(tmp_path / "edm-x.pkl", song(), {}).read_bytes()
    for share in (0.1, 0.5, 0.99):
        (tmp_path / "edm-x.pkl").write_bytes(whole[: int(share * len(whole))])
        one_line(tmp_path / "edm-x.pkl", "is no complete pickle")
    path, _ = openai("edm_imagenet8_ema.pt", tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    one_line(path, "are no file of tensors")
    pipeline(tmp_path / "net", {"_class_name": "DDPMScheduler"})
    weights = tmp_path / "net" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    one_line(tmp_path / "net", "truncated or not safetensors")


def test_other_architectures(tmp_path):
    """A file of the right format with another network in it."""
    net = song()
    path = edm_checkpoint(tmp_path / "edm-x.pkl", net, {}, "OtherPrecond")
    one_line(path, "OtherPrecond", "none of EDMPrecond")
    broken = song()
    broken.map_layer0.weight = torch.nn.Parameter(torch.zeros(32, 9))
    one_line(edm_checkpoint(path, broken, {}), "'map_layer0.weight' has shape [32, 9], the network needs [32, 8]")
    del broken.map_layer0
    one_line(edm_checkpoint(path, broken, {}), "lack 'map_layer0.weight'")
    path.write_bytes(pickle.dumps({"G_ema": None}))
    one_line(path, "hold no network under 'ema' or 'model'")
    path.write_bytes(pickle.dumps(np.zeros(3)))
    one_line(path, "hold no network")
    file, made = openai("edm_imagenet8_ema.pt", tmp_path)
    torch.save({**made.state_dict(), "more": torch.zeros(1)}, file)
    one_line(file, "another network than openai's")
    torch.save({"model": made.state_dict()}, file)
    one_line(file, "hold something else than named tensors")
    torch.save(made, tmp_path / "edm_imagenet8_whole.pt")
    one_line(tmp_path / "edm_imagenet8_whole.pt", "asks for fewstep.nets.published.openai_unet.OpenaiUNet")
    torch.save(made.state_dict(), tmp_path / "mine.pt")
    one_line(tmp_path / "mine.pt", "do not say the size of their images")
    with zipfile.ZipFile(tmp_path / "edm_cat8.pt", "w") as archive:
        archive.writestr("x", "y")
    one_line(tmp_path / "edm_cat8.pt", "has no data.pkl")


def test_other_pipelines(tmp_path):
    pipeline(tmp_path / "net", {"_class_name": "DDPMScheduler"})
    folder = tmp_path / "net"
    config = json.loads((folder / "config.json").read_text())
    for change, words in (
        ({"_class_name": "UNet2DConditionModel"}, ("UNet2DConditionModel", "only UNet2DModel is read")),
        ({"block_out_channels": [16, 64]}, ("has shape", "the network needs")),
        ({"num_class_embeds": 3}, ("lack 'unet.class_embedding.weight'",)),
        ({"sample_size": None}, ("does not say the size",)),
        ({"colour": 1}, ("has no 'colour'",)),
        ({"time_embedding_type": "learned"}, ("time_embedding_type learned is not read",)),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        one_line(folder, *words)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "scheduler_config.json").unlink()
    one_line(folder, "has no scheduler_config.json")
    (folder / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")
    one_line(folder, "only safetensors in one file are read")


def test_what_is_not_here_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name, word in (
        ("weights/edm-cifar10-32x32-cond-vp.pkl", "type python -m bench.fetch what=edm_teachers.cifar10-32x32-cond-vp"),
        ("weights/ddpm-cifar10-32", "type python -m bench.fetch what=ddpm_cifar10"),
        ("somebody/some-model", "type hf download somebody/some-model"),
        ("digits_edn", "did you mean digits_edm?"),
    ):
        one_line(name, "not found", word)


def test_a_class_out_of_range_is_one_line(tmp_path):
    teacher = load_teacher(str(openai("edm_imagenet8_ema.pt", tmp_path)[0]))
    for label in (-1, 5):
        with pytest.raises(UsageError, match=f"label {label} is outside of the model's 4 classes; use 0 to 3, or 4 for no class"):
            teacher(torch.zeros(1, 3, 8, 8), 1.0, Cond(label=torch.tensor([label])))
