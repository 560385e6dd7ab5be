"""EDM's networks against what the published code computes with the same weights, and against the layouts of published checkpoints."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from fewstep.cond import NULL, Cond
from fewstep.denoiser import Preconditioned
from fewstep.nets.loading import load_strict
from fewstep.nets.published.edm import DhariwalUNet, SongUNet
from fewstep.precond import EDMPrecond, ProcessPrecond, VEPrecond
from fewstep.schedule import VP
from support.each import each
from support.published import GOLDEN, golden_state, published_net, records

VP_EXACT, BETA_D, BETA_MIN = ProcessPrecond(VP(), "eps", 999.0), np.float32(VP().beta_d), np.float32(VP().beta_min)


@dataclass(frozen=True)
class PublishedVP:
    """VP as the published code tells it to the network: its time in float32, which moves 999 t by 1e-4, and F at sigma 5 by 1e-5."""

    form: str = "eps"

    def coefficients(self, sigma):
        c_skip, c_out, c_in, exact = VP_EXACT.coefficients(sigma)
        time = (np.sqrt(BETA_MIN**2 + 2 * BETA_D * np.log1p(np.float32(sigma) ** 2)) - BETA_MIN) / BETA_D
        assert_allclose(999 * time, exact, rtol=0, atol=1e-3)  # float32 of numbers up to 999
        return c_skip, c_out, c_in, np.float64(np.float32(999) * time)


PRECONDS = {"EDMPrecond": EDMPrecond(0.5), "VPPrecond": PublishedVP(), "VEPrecond": VEPrecond()}
SIGMAS = (0.002, 0.5, 5.0, 80.0)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n.startswith("adm_imagenet") else n for n in sorted(records())]
)
@torch.inference_mode()
def test_golden_networks(name):
    entry, expected = records()[name], np.load(GOLDEN / "edm_networks.npz")[name]
    config = entry["config"]
    net = published_net(config)
    assert {f"model.{key}": list(value.shape) for key, value in net.state_dict().items()} == entry["state_dict"]
    assert [f"model.{key}" for key in net.state_dict()] == list(entry["state_dict"])
    assert sum(p.numel() for p in net.parameters()) == entry["n_params"]
    load_strict(net, golden_state(net), name)
    shape, classes = (3, config["img_resolution"], config["img_resolution"]), config["label_dim"]
    denoiser = Preconditioned(net, PRECONDS[config["cls"]], shape, classes, (0.001, 100.0))
    for sigma, outputs in zip(SIGMAS, expected, strict=True):
        x = np.random.RandomState(7).standard_normal((2, *shape)) * np.sqrt(0.25 + sigma**2)
        d = denoiser(torch.from_numpy(x.astype(np.float32)), sigma, Cond(label=torch.tensor([1, 3])) if classes else NULL).numpy()
        # 1e-5 absolute: of D where c_out <= 1, and above of the network's own output F, since float32 leaves D only c_out times its error
        c_out = float(np.abs(denoiser.precond.coefficients(np.asarray(sigma))[1]))
        own = d[..., ::4, ::4] if name == "adm_imagenet64_cond" else d
        assert_allclose(own / max(1, c_out), outputs / max(1, c_out), rtol=0, atol=1e-5)  # as said above


CIFAR = {"channels": 128, "mult": [2, 2, 2], "blocks": 4, "attention": [16]}
FFHQ = {"channels": 128, "mult": [1, 2, 2, 2], "blocks": 4, "attention": [16]}
ADM = {"channels": 192, "mult": [1, 2, 3, 4], "blocks": 3, "attention": [32, 16, 8]}
LAYOUTS = [  # digest of the names and shapes, parameters, network
    ("c20070bcbcc766c9", 55_733_891, lambda: SongUNet((3, 32, 32), 0, CIFAR, augment=9)),
    ("8d25ec9007b52904", 55_735_299, lambda: SongUNet((3, 32, 32), 10, CIFAR, augment=9)),
    ("e1a4b61ad87b8242", 56_397_827, lambda: SongUNet((3, 32, 32), 0, CIFAR, "ncsnpp", augment=9)),
    ("736fb5c3d10fcc1d", 56_400_643, lambda: SongUNet((3, 32, 32), 10, CIFAR, "ncsnpp", augment=9)),
    ("f001b1ec0fa9adbc", 61_805_571, lambda: SongUNet((3, 64, 64), 0, FFHQ, augment=9)),
    ("2817f9cc36c2aaff", 62_761_091, lambda: SongUNet((3, 64, 64), 0, FFHQ, "ncsnpp", augment=9)),
    ("a5860f05352c1c8c", 295_899_267, lambda: DhariwalUNet((3, 64, 64), 1000, ADM)),
    ("afd2d416a8643529", 60_396_419, lambda: SongUNet((3, 32, 32), 0, CIFAR, augment=9, step_condition=True)),
    ("73dce849f32591a5", 67_256_067, lambda: SongUNet((3, 64, 64), 0, FFHQ, augment=9, step_condition=True)),
    ("ba5cd2742b7c9def", 324_100_611, lambda: DhariwalUNet((3, 64, 64), 1000, ADM, step_condition=True)),
]


@each(("digest", "parameters", "make"), LAYOUTS)
def test_layouts_of_published_checkpoints(digest, parameters, make):
    with torch.device("meta"):
        net = make()
    told = "\n".join(f"model.{key} [{', '.join(map(str, value.shape))}]" for key, value in net.state_dict().items())
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == digest
    assert sum(p.numel() for p in net.parameters()) == parameters


@torch.inference_mode()
def test_sfd_reads_the_number_of_steps():
    """The fill test of an SFD variant that is told five levels, which are four steps."""
    net = SongUNet((3, 32, 32), 0, CIFAR, augment=9, step_condition=True)
    for k, key in enumerate(sorted(f"model.{name}" for name, _ in net.named_parameters())):
        own = net.get_parameter(key.removeprefix("model."))
        filled = 0.02 * torch.sin(0.1 * torch.arange(own.numel(), dtype=torch.float64) + k)
        own.copy_((filled + (1.0 if "norm" in key and key.endswith("weight") else 0.0)).view(own.shape))
    x = (2 * torch.sin(0.3 * torch.arange(3 * 32 * 32, dtype=torch.float64))).float().view(1, 3, 32, 32)
    denoiser = Preconditioned(net.eval(), EDMPrecond(0.5), (3, 32, 32), 0, (0.002, 80.0))
    d = denoiser(x, 0.7, Cond(scalars={"steps": torch.tensor([4.0])}))
    # the published digits
    assert_allclose([d.mean(), d.std(), *d[0, 0, 0, :4]], [0.008145, 0.478768, -0.00922, 0.18018, 0.36012, 0.51069], rtol=0, atol=2e-5)
