"""ST-LPIPS: the network from its published file, its gradient, and what it refuses; numbers of the package where its weights are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from fewstep.errors import Unavailable, UsageError
from fewstep.nets import st_lpips as module
from fewstep.nets.perceptual import efficientnet_distance
from fewstep.nets.perceptual_files import EFFICIENTNET, ST_LPIPS
from fewstep.nets.readers.torch_pt import WeightsFile
from fewstep.nets.st_lpips import LEVELS, STLPIPS, prepared, size_shown, st_lpips
from methods.losses.distances import distance

# What the package stlpips-pytorch 0.0.2 gives on the pairs of `published_pairs`.
PUBLISHED = {"alex": (0.238168418, 0.245013148), "vgg": (0.0654666871, 0.0437271483)}


def made_state(trunk: str, width: int = 4) -> dict[str, torch.Tensor]:
    """Tensors under the names of a published file, with few channels and random weights."""
    g, number, channels = torch.Generator().manual_seed(0), 0, 3
    blur = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    state = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.full((1, 3, 1, 1), 0.5)}
    for i, level in enumerate(LEVELS[trunk]):
        for layer in level:
            name = f"net.slice{i + 1}.{number}"
            number += 1
            if isinstance(layer, tuple) and len(layer) == 2:
                side = int(layer[0])  # pyright: ignore[reportArgumentType]
                state[f"{name}.weight"] = torch.randn(width, channels, side, side, generator=g) / (channels * side**2) ** 0.5
                state[f"{name}.bias"] = torch.randn(width, generator=g) / 10
                channels = width
            elif layer == "half":
                state[f"{name}.filt"] = blur.expand(channels, 1, 3, 3).contiguous()
        state[f"lin{i}.model.1.weight"] = torch.rand(1, channels, 1, 1, generator=g)
    return state


def pictures(count: int, channels: int = 3, side: int = 40, seed: int = 0) -> torch.Tensor:
    """Smooth random images."""
    x = torch.randn(count, channels, side // 4, side // 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(x, (side, side), mode="bicubic").clamp(-1, 1)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of the network on AlexNet, with few channels, where it is looked for."""
    file = ST_LPIPS["alex"]
    torch.save(made_state("alex"), tmp_path / file.name)
    digest = hashlib.sha256((tmp_path / file.name).read_bytes()).hexdigest()
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    monkeypatch.setitem(module.ST_LPIPS, "alex", WeightsFile(file.name, digest, file.url))
    yield tmp_path
    module._read.cache_clear()


def test_equal_images_are_at_distance_0_and_others_have_a_gradient(small: Path) -> None:
    a, b = pictures(3), pictures(3, seed=1).requires_grad_()
    value = st_lpips(a, b)
    assert value.shape == (3,)
    assert (value > 0).all()
    value.sum().backward()
    assert b.grad is not None
    assert (b.grad.abs().amax((1, 2, 3)) > 0).all()
    assert torch.equal(st_lpips(a, a), torch.zeros(3))
    assert_close(st_lpips(a, b), st_lpips(b, a))
    step = 1e-3 * torch.randn(b.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        slope = (st_lpips(a, b + step) - st_lpips(a, b - step)).sum().item() / 2
    assert_close((b.grad * step).sum().item(), slope, rtol=0.02, atol=0)  # differences of float32, at kinks of maxima
    assert distance("st_lpips") is st_lpips
    flat = torch.zeros(1, 3, 40, 40, requires_grad=True)
    st_lpips(flat, flat.detach()).sum().backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_the_network_is_the_published_one_written_another_way() -> None:
    """Layer by layer in float64: strides after a filter over reflected edges, unit vectors, heads, means over positions."""
    for trunk in LEVELS:
        state = {name: value.double() for name, value in made_state(trunk).items()}
        net = STLPIPS(trunk, state)
        a, b = pictures(2).double(), pictures(2, seed=1).double()

        def levels(x: torch.Tensor, trunk: str = trunk, state: dict[str, torch.Tensor] = state) -> list[torch.Tensor]:
            x, number, found = (x - state["scaling_layer.shift"]) / state["scaling_layer.scale"], 0, []
            for i, level in enumerate(LEVELS[trunk]):
                for layer in level:
                    name = f"net.slice{i + 1}.{number}"
                    number += 1
                    if layer == "relu":
                        x = x.clamp(min=0)
                    elif layer == "half":
                        wide = F.pad(x, (2, 2, 2, 2), mode="reflect")
                        smooth = (wide[..., :-2] + 2 * wide[..., 1:-1] + wide[..., 2:]) / 4
                        x = ((smooth[..., :-2, :] + 2 * smooth[..., 1:-1, :] + smooth[..., 2:, :]) / 4)[..., ::2, ::2]
                    elif isinstance(layer, tuple) and len(layer) == 1:
                        x = x.unfold(2, layer[0], 1).unfold(3, layer[0], 1).amax((-1, -2))
                    else:
                        side, pad = layer  # pyright: ignore
                        columns = F.unfold(x, side, padding=pad)
                        flat = state[f"{name}.weight"].flatten(1) @ columns + state[f"{name}.bias"][:, None]
                        x = flat.unflatten(2, (x.shape[2] + 2 * pad - side + 1, -1))
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
            return found

        expected = torch.zeros(2, dtype=torch.float64)
        for i, (x, y) in enumerate(zip(levels(a), levels(b))):
            expected += ((x - y) ** 2 * state[f"lin{i}.model.1.weight"]).sum(1).mean((1, 2))
        assert_close(net(a.float(), b.float()).double(), expected, rtol=1e-4, atol=1e-6)  # float32: sums of hundreds of terms


def test_small_and_grey_images_are_enlarged_and_repeated(small: Path) -> None:
    grey = pictures(2, 1, 8)
    assert size_shown(grey.shape) == (64, 64)
    assert size_shown((3, 32, 48)) == (32, 48)
    assert size_shown((3, 32, 48), 128) == (128, 192)
    assert size_shown((3, 200, 150), 128) == (200, 150)
    assert prepared(grey, 128).shape == (2, 3, 128, 128)
    assert prepared(grey).shape == (2, 3, 64, 64)
    assert torch.equal(prepared(pictures(1, 3, 32)), pictures(1, 3, 32))
    assert (st_lpips(grey, pictures(2, 1, 8, seed=1)) > 0).all()
    with pytest.raises(UsageError, match=r"^st_lpips takes grey or RGB images, got shape \[4, 8, 8\]; decode"):
        st_lpips(pictures(1, 4, 8), pictures(1, 4, 8))


def test_another_network_s_file_is_refused_in_one_line(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = small / ST_LPIPS["alex"].name
    for change, told in (
        (lambda s: s.pop("net.slice4.11.bias"), "it lacks net.slice4.11.bias"),
        (lambda s: s.update({"net.slice1.0.weight": torch.zeros(4, 3, 3, 3)}), r"its net.slice1.0.weight is of \[4, 3, 3, 3\], not of"),
        (lambda s: s.update(extra=torch.zeros(1)), "it also holds extra"),
    ):
        state = made_state("alex")
        change(state)
        torch.save(state, file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        monkeypatch.setitem(module.ST_LPIPS, "alex", WeightsFile(file.name, digest, "the package"))
        with pytest.raises(UsageError, match=f"is not ST-LPIPS on alex: {told}.*; get it from the package") as raised:
            st_lpips(pictures(1), pictures(1))
        assert "\n" not in str(raised.value)
        module._read.cache_clear()
    file.unlink()
    with pytest.raises(Unavailable, match=r"alex_shift_tolerant.pth is not in .*; get it from the package"):
        st_lpips(pictures(1), pictures(1))


def here(file: WeightsFile) -> pytest.MarkDecorator:
    why = f"{file.name} is not here: that its network gives the package's numbers was not checked"
    return pytest.mark.skipif(file.found() is None, reason=why)


def published_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of 45 x 33 pixels, of numbers that need no generator."""
    at = torch.arange(2 * 3 * 45 * 33, dtype=torch.float64).reshape(2, 3, 45, 33)
    return (at * 0.37).sin().float(), (at * 0.37 + (at * 0.011).cos()).sin().float()


@here(ST_LPIPS["alex"])
@pytest.mark.slow
def test_numbers_are_those_of_the_package() -> None:
    a, b = published_pairs()
    for trunk, expected in PUBLISHED.items():
        network, _ = module.st_lpips_network(trunk)
        with torch.no_grad():
            assert_close(network(a, b).double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-8)  # float32


@here(EFFICIENTNET)
@pytest.mark.slow
def test_efficientnet_distance_is_a_distance_with_a_gradient() -> None:
    a, b = pictures(3, 3, 32), pictures(3, 3, 32, seed=1).requires_grad_()
    value = efficientnet_distance(a, b)
    assert (value > 0.1).all()
    assert torch.equal(efficientnet_distance(a, a), torch.zeros(3))
    value.sum().backward()
    assert b.grad is not None
    assert (b.grad.abs().amax((1, 2, 3)) > 0).all()
    near = (a + 0.01 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    assert (efficientnet_distance(a, near) < 0.5 * value.detach()).all()
    with pytest.raises(UsageError, match=r"efficientnet_distance takes grey or RGB images, got shape \[4, 8, 8\]"):
        efficientnet_distance(pictures(1, 4, 8), pictures(1, 4, 8))
