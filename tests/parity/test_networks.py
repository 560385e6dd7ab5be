"""Extractors and weights files: the real loading paths, on files of the published format that hold random weights."""

import hashlib
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fewstep.errors import Unavailable, UsageError
from fewstep.nets.features import DigitClassifier
from fewstep.nets.readers.torch_pt import WeightsFile
from metrics import Evidence, metric_named, perceptual
from metrics.features.extractors import digits_classifier, load_extractor, three_channels
from metrics.features.networks import INCEPTION, inception
from metrics.reference import Reference
from support.evidence import images

LPIPS_TEACHER = metric_named("lpips_teacher")


def publish(module, monkeypatch, constant: str, folder, state) -> None:
    """Write `state` under the published name, and expect that file's digest instead of the published one."""
    file: WeightsFile = getattr(module, constant)
    torch.save(state, folder / file.name)
    digest = hashlib.sha256((folder / file.name).read_bytes()).hexdigest()
    monkeypatch.setattr(module, constant, WeightsFile(file.name, digest[:8], file.url))


# --- weights files --------------------------------------------------------------------------------------------------------------


def test_a_missing_file_says_what_where_and_how(hub):
    for make, name, host in (
        (inception, "weights-inception-2015-12-05-6726825d.pth", "github.com/toshas/torch-fidelity"),
        (perceptual.ALEXNET.path, "alexnet-owt-7be5be79.pth", "download.pytorch.org"),
    ):
        with pytest.raises(Unavailable) as raised:
            make()
        message = str(raised.value)
        assert name in message
        assert str(hub) in message
        assert f"https://{host}" in message
        assert "\n" not in message


def test_published_digests_are_in_the_published_names():
    for file in (*INCEPTION[:2], perceptual.ALEXNET):
        assert file.name.endswith(f"-{file.sha256[:8]}.pth")
        assert file.url.endswith(file.name)


FILE = WeightsFile("weights.pth", "", "https://example.org/weights.pth")


def test_a_truncated_or_altered_file_is_refused(hub):
    state = {"w": torch.arange(1000.0)}
    torch.save(state, hub / FILE.name)
    raw = (hub / FILE.name).read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    file = WeightsFile(FILE.name, digest[:8], FILE.url)
    loaded, found = file.load()
    assert found == digest
    assert torch.equal(loaded["w"], state["w"])
    for broken in (raw[:-100], b"", raw[:2000] + b"\x00\x01" + raw[2002:]):
        (hub / FILE.name).write_bytes(broken)
        with pytest.raises(UsageError, match=rf"expected {digest[:8]}.*get it again from https://example.org"):
            file.load()


class Bomb:
    """Unpickling it makes a folder: proof that code in the file was run."""

    def __init__(self, target) -> None:
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize(
    "write", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state, protocol=2))], ids=["zip", "pickle"]
)
def test_code_in_a_file_is_never_run(hub, tmp_path, write):
    write({"w": Bomb(tmp_path / "ran")}, hub / FILE.name)
    with pytest.raises(UsageError, match="not a plain file of tensors"):
        FILE.load()
    assert not (tmp_path / "ran").exists()


def test_a_file_of_something_else_is_refused(hub):
    for wrong in ([torch.zeros(2)], {"epoch": 3}):
        torch.save(wrong, hub / FILE.name)
        with pytest.raises(UsageError, match="something else than named tensors"):
            FILE.load()


# --- the digit classifier -------------------------------------------------------------------------------------------------------


def test_digit_features_are_the_module_s_own_in_float64_without_dropout():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = DigitClassifier(dropout=0.9).train()
    extractor = digits_classifier(module, "d" * 64)
    x = images(20)
    features, logits = extractor(x)
    assert (features.shape, logits.shape) == ((20, 64), (20, 10))
    assert features.dtype == logits.dtype == np.float64
    with torch.no_grad():
        expected = module(torch.from_numpy(x))
    # float32 network, other batch sizes below: the defaults of float32 apply.
    assert_close(torch.from_numpy(features).float(), expected)
    assert_close(torch.from_numpy(logits).float(), module.logits(expected).detach())
    small = type(extractor)(module, extractor.digest, batch=7)(x)
    assert_close(torch.from_numpy(small[0]).float(), expected)


def test_unknown_extractor_names_the_near_miss():
    with pytest.raises(UsageError, match="inception"):
        load_extractor("incpetion")


# --- Inception ------------------------------------------------------------------------------------------------------------------


def test_only_grey_and_colour_are_taken():
    grey, colour = images(2, 1), images(2, 3)
    assert np.array_equal(three_channels(grey), np.concatenate([grey] * 3, axis=1))
    assert np.array_equal(three_channels(colour), colour)
    with pytest.raises(UsageError, match="4 channels"):
        three_channels(images(2, 4))


# --- LPIPS ----------------------------------------------------------------------------------------------------------------------


def alexnet_state() -> dict:
    """torchvision's AlexNet file: its convolutions (random) and its classifier, which LPIPS does not read (one bias stands for it)."""
    rng = np.random.RandomState(0)
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    state = {"classifier.6.bias": torch.zeros(1000)}
    for index, (out, inner, side) in shapes.items():
        scale = (2 / (inner * side * side)) ** 0.5  # He initialisation keeps every layer's features alive
        state[f"features.{index}.weight"] = torch.from_numpy(scale * rng.randn(out, inner, side, side)).float()
        state[f"features.{index}.bias"] = torch.from_numpy(0.1 * rng.randn(out)).float()
    return state


def pair(x: np.ndarray, teacher: np.ndarray) -> Evidence:
    none = np.zeros(0)
    reference = Reference("none", 1, none, none, none, none, "", {})
    return Evidence(x, np.zeros(len(x), np.int64), {}, {}, teacher, reference)


def package_lpips(path, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The package on the same trunk, through its own loading of torchvision's network."""
    lpips = pytest.importorskip("lpips")
    import torchvision

    state = torch.load(path, weights_only=True)
    trunk = torchvision.models.alexnet(weights=None)
    trunk.features.load_state_dict({k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "alexnet", lambda pretrained: trunk)
        network = lpips.LPIPS(net="alex", verbose=False)
    with torch.no_grad():
        return network(x, y).flatten()


@pytest.mark.parametrize(("channels", "side", "size"), [(1, 8, [64, 64]), (3, 32, [32, 32])])
def test_lpips_is_the_package_s(hub, monkeypatch, channels, side, size):
    publish(perceptual, monkeypatch, "ALEXNET", hub, alexnet_state())
    x, y = images(5, channels, side), images(5, channels, side, seed=1)
    before = torch.random.get_rng_state()
    measured = LPIPS_TEACHER(pair(x, y))
    assert torch.equal(before, torch.random.get_rng_state())
    assert measured.protocol["size"] == size
    assert measured.protocol["features"].startswith(f"alexnet-{perceptual.ALEXNET.sha256}")

    both = [torch.from_numpy(three_channels(v)) for v in (x, y)]
    if size[0] != side:
        both = [torch.nn.functional.interpolate(v, tuple(size), mode="bilinear", align_corners=False) for v in both]
    expected = package_lpips(hub / perceptual.ALEXNET.name, *both).double()
    assert_close(measured.value, expected.mean().item(), rtol=1.3e-6, atol=1e-5)  # the defaults of float32, which the network is
    assert_close(measured.std_error, (expected.std() / 5**0.5).item(), rtol=1.3e-6, atol=1e-5)  # as above
    assert measured.value > 0.01
    assert LPIPS_TEACHER(pair(x, x)).value == 0

    true = replace(pair(x, x), target=y, groups=np.array([0, 0, 1, 2, 3]))  # the same distance to true images, over conditions
    found, each = metric_named("lpips")(true), expected.numpy()
    means = np.array([each[:2].mean(), *each[2:]])
    assert found.protocol["features"] == measured.protocol["features"]
    # The defaults of float32, which the network is.
    assert_close((found.value, found.std_error), (means.mean(), means.std(ddof=1) / 2), rtol=1.3e-6, atol=1e-5)


def test_lpips_refuses_another_network_and_is_unavailable_without_its_file(hub, monkeypatch):
    x = images(2)
    with pytest.raises(Unavailable, match="alexnet-owt-7be5be79"):
        LPIPS_TEACHER(pair(x, x))
    wrong = alexnet_state()
    del wrong["features.3.bias"]
    publish(perceptual, monkeypatch, "ALEXNET", hub, wrong)
    with pytest.raises(UsageError, match=r"not torchvision's AlexNet \('features\.3\.bias'\)"):
        LPIPS_TEACHER(pair(x, x))
