"""Distances of images that losses are made of."""

from __future__ import annotations

import hashlib
import math
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch.testing import assert_close
from torchvision.models.vgg import cfgs as vgg_configs
from torchvision.models.vgg import make_layers as vgg_layers

from fewstep.errors import Unavailable, UsageError
from fewstep.nets import perceptual
from fewstep.nets.perceptual import lpips_vgg
from fewstep.nets.readers.torch_pt import WeightsFile
from fewstep.plugins import entries, get
from methods.losses.distances import digits_features, distance, huber, norm
from support.each import each

DISTANCES = entries("distance")

PUBLISHED = perceptual.VGG16


def test_huber_and_norm_by_hand() -> None:
    a = torch.tensor([[[[0.0, 0.003]]], [[[1.0, -1.0]]]], dtype=torch.float64)
    b = torch.zeros_like(a)
    expected = [(math.hypot(0.003, 0.001) - 0.001) / 2, math.hypot(1, 0.001) - 0.001]
    assert_close(huber(a, b), torch.tensor(expected, dtype=torch.float64))
    assert_close(norm(a, b), torch.tensor([0.003, math.sqrt(2)], dtype=torch.float64))


def test_a_second_stages_distance_is_a_sum_with_equal_weights() -> None:
    a, b = pictures(3, 1, 8, 0), pictures(3, 1, 8, 1)
    assert torch.equal(distance("l1_digits_features")(a, b), distance("l1")(a, b) + digits_features(a, b))


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """A file as torchvision publishes VGG16's (its convolutions, with random weights), under its published name; images enlarged to 32."""
    hub = tmp_path_factory.mktemp("hub")
    folder = hub / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    g, state, width = torch.Generator().manual_seed(0), {}, 3
    plan = [(0, 64), (2, 64), (5, 128), (7, 128), (10, 256), (12, 256), (14, 256), (17, 512), (19, 512), (21, 512), (24, 512), (26, 512)]
    for index, out in [*plan, (28, 512)]:
        state[f"features.{index}.weight"] = torch.randn(out, width, 3, 3, generator=g) * math.sqrt(2 / (9 * width))
        state[f"features.{index}.bias"] = torch.zeros(out)
        width = out
    file = perceptual.VGG16
    torch.save(state, folder / file.name)
    digest = hashlib.sha256((folder / file.name).read_bytes()).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(hub))
        patch.setattr(perceptual, "VGG16", WeightsFile(file.name, digest[:8], file.url))
        # Without the classifier, 124 million numbers that LPIPS does not read.
        patch.setattr(torchvision.models, "vgg16", lambda pretrained: SimpleNamespace(features=vgg_layers(vgg_configs["D"])))
        patch.setattr(perceptual, "SMALL", 32)
        patch.setattr(perceptual, "ENLARGED", 32)
        yield state


def pictures(count: int, channels: int, side: int, seed: int) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def enlarged(x: torch.Tensor, side: int) -> torch.Tensor:
    return torch.nn.functional.interpolate(x.expand(-1, 3, -1, -1), (side, side), mode="bilinear", align_corners=False)


@pytest.mark.parametrize("channels", [1, 3])
def test_lpips_enlarges_images_below_256_pixels_to_224(channels: int) -> None:
    small, large = pictures(1, channels, 8, 0), pictures(1, channels, 256, 0)
    assert torch.equal(perceptual._prepared(small), enlarged(small, 224))
    assert torch.equal(perceptual._prepared(large), large.expand(-1, 3, -1, -1))
    assert perceptual._prepared(large[..., :255, :]).shape[2:] == (224, 224)


def test_lpips_is_the_packages_on_enlarged_images(vgg) -> None:
    a, b = pictures(2, 1, 8, 0), pictures(2, 1, 8, 1).requires_grad_()
    value = lpips_vgg(a, b)
    network, _ = perceptual.lpips_network("vgg", perceptual.VGG16)
    package = network(enlarged(a, 32), enlarged(b.detach(), 32)).flatten()
    assert_close(value.detach(), package, rtol=1e-4, atol=1e-6)  # float32: other sums of thousands of terms
    assert package.min() > 0.01
    value.sum().backward()
    assert b.grad.isfinite().all()
    assert (b.grad.abs().amax((1, 2, 3)) > 0).all()
    for k, v in vgg.items():  # the published numbers of the layers
        slice_of = next(n for n in network.net.state_dict() if n.split(".", 1)[1] == k.removeprefix("features."))
        assert torch.equal(network.net.state_dict()[slice_of], v)


def test_lpips_of_equal_and_of_flat_images_has_a_gradient(vgg) -> None:
    """Where the scaled image is 0 no ReLU of a trunk without biases answers: feature vectors of zeros, of which the package's gradient
    is not a number."""
    network, _ = perceptual.lpips_network("vgg", perceptual.VGG16)
    flat = network.scaling_layer.shift.expand(1, 3, 8, 8).clone().requires_grad_()
    assert network.net.slice1(network.scaling_layer(flat)).abs().max() == 0
    value = lpips_vgg(flat, flat.detach())
    assert value.item() == 0
    value.backward()
    assert flat.grad.isfinite().all()


def test_lpips_without_its_file_says_which_and_where(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(Unavailable) as raised:
        distance("lpips")(pictures(1, 1, 8, 0), pictures(1, 1, 8, 1))
    message = str(raised.value)
    assert message.startswith(f"vgg16-397923af.pth is not in data, {tmp_path}/hub/checkpoints or ")
    assert "; get it from https://download.pytorch.org/" in message
    assert message.endswith(", or type python -m bench.fetch what=lpips.vgg16")
    assert "\n" not in message
    assert PUBLISHED.name.endswith(f"-{PUBLISHED.sha256}.pth")
    assert PUBLISHED.url.endswith(PUBLISHED.name)
    assert get("distiller", "cd").make(loss="lpips").loss == "lpips"  # a configuration needs no weights


def test_lpips_takes_grey_and_rgb_only(vgg) -> None:
    with pytest.raises(UsageError, match=r"^lpips takes grey or RGB images, got shape \[4, 8, 8\]; decode latents to pixels, or use"):
        lpips_vgg(pictures(1, 4, 8, 0), pictures(1, 4, 8, 1))


def test_digit_features_tell_digits_apart_and_have_a_gradient() -> None:
    a, b = pictures(4, 1, 8, 0).double(), pictures(4, 1, 8, 1).double().requires_grad_()
    value = distance("digits_features")(a, b)
    assert value.shape == (4,)
    assert value.dtype == torch.float64
    assert value.min() > 0
    value.sum().backward()
    assert (b.grad.abs().amax((1, 2, 3)) > 0).all()
    assert torch.equal(digits_features(a, a), torch.zeros(4, dtype=torch.float64))
    alone = torch.stack([digits_features(a[i : i + 1], b[i : i + 1]).detach()[0] for i in range(4)])
    assert_close(value.detach(), alone, rtol=1e-4, atol=1e-5)  # float32 convolutions of another batch size
    with pytest.raises(UsageError, match=r"^digits_features compares images of shape \[1, 8, 8\], got \[1, 4, 4\]; use lpips or"):
        digits_features(pictures(2, 1, 4, 0), pictures(2, 1, 4, 1))


@each("name", sorted(set(DISTANCES) - {"lpips", "l1_lpips", "st_lpips", "efficientnet_distance"}))  # which need weights that are not here
def test_every_distance_is_zero_on_equals_with_a_finite_gradient(name: str) -> None:
    a, b = pictures(3, 1, 8, 0).requires_grad_(), pictures(3, 1, 8, 0)
    value = distance(name)(a, b)
    assert_close(value, torch.zeros(3), rtol=0, atol=1e-7)  # pseudo_huber: sqrt(c^2) - c in float32
    value.sum().backward()
    assert a.grad.isfinite().all()
