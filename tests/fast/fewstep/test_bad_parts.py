"""What a stranger may make grids, schedules, noise, networks and closed forms of, from Python: one clear line for each that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from fewstep.analytic import Gaussian, GaussianMixture, image_set
from fewstep.arenas import arena_mixture, walsh_basis
from fewstep.errors import UsageError
from fewstep.grid import ENDS, TimeGrid, make_grid
from fewstep.nets.adapters import GuidanceAdapter, with_scalars
from fewstep.nets.features import DigitClassifier
from fewstep.nets.loading import as_denoiser, build, load_digit_classifier
from fewstep.nets.unet import UNet
from fewstep.nets.x0_eps import X0Eps
from fewstep.noise import LATENT, EDMNoise, PhiloxNoise, noised
from fewstep.plugins import entries, get
from fewstep.precond import ConsistencyPrecond, EDMPrecond, ProcessPrecond
from fewstep.sampling.draw import sample
from fewstep.schedule import EDM, VP, Cosine, NoiseSchedule, RectifiedFlow, TrigFlow
from support.each import each

FAMILIES = entries("grid")

NAN, INF = float("nan"), float("inf")


def refused(call: Callable[[], Any], line: str) -> None:
    with pytest.raises(UsageError, match=line) as raised:
        call()
    assert "\n" not in str(raised.value)


RANGES: list[tuple[Any, str]] = [
    ((NAN, 80.0), r"has 0 < sigma_min < sigma_max, got \(nan, 80\); e.g. \(0.002, 80.0\)"),
    ((0.002, INF), r"got \(0.002, inf\)"),
    ((0.002, 1e300), r"got \(0.002, 1e\+300\)"),  # its square is not finite
    ((80.0, 0.002), r"got \(80, 0.002\)"),
    ((1.0, 1.0), r"got \(1, 1\)"),
    ((0.0, 80.0), r"got \(0, 80\)"),
    ((-1.0, 80.0), r"got \(-1, 80\)"),
    ((0.002,), r"sigma_range is two levels \(sigma_min, sigma_max\), got \(0.002,\)"),
    (("a", "b"), r"sigma_range is two levels \(sigma_min, sigma_max\), got \('a', 'b'\)"),
    (None, r"sigma_range is two levels \(sigma_min, sigma_max\), got None"),
]


@each(("ends", "line"), RANGES)
def test_ranges_of_grids(ends: Any, line: str) -> None:
    for family in FAMILIES:
        for end in ENDS:
            refused(lambda f=family, e=end: make_grid(f, 3, ends, e), line)


@each("steps", [True, 2.5, "3", None, NAN, 0, -1])
def test_numbers_of_steps(steps: Any) -> None:
    refused(lambda: make_grid("polynomial", steps, (0.002, 80.0)), "the number of steps is an integer >= 1, got")


def test_numbers_of_other_libraries_are_numbers() -> None:
    expected = make_grid("logsnr", 3, (0.25, 64.0)).sigmas
    ends: Any = (torch.tensor(0.25), torch.tensor(64.0))
    assert_array_equal(make_grid("logsnr", int(np.int64(3)), ends).sigmas, expected)
    assert_array_equal(make_grid("logsnr", np.int64(3), (np.float32(0.25), 64)).sigmas, expected)  # pyright: ignore[reportArgumentType]
    levels: Any = torch.tensor([64.0, 0.25])
    assert_array_equal(TimeGrid(levels).sigmas, [64.0, 0.25])


GRIDS: list[tuple[Any, str]] = [
    ([80.0, NAN], "a grid needs finite noise levels >= 0, got nan"),
    ([80.0, -1.0], "a grid needs finite noise levels >= 0, got -1"),
    ([80.0, 1.0, 2.0], "a grid must strictly decrease, got 1 and then 2; order the levels from high to low, each once"),
    ([[2.0, 2.0], [1.0, 3.0]], "a grid must strictly decrease, got 2 and then 3"),
    ([80.0], r"a grid needs at least two noise levels, got shape \(1,\)"),
    (5.0, r"a grid needs at least two noise levels, got shape \(\)"),
    (["a", "b"], r"a grid needs noise levels as numbers, got list .*; e.g. TimeGrid\(\[80.0, 0.5\]\)"),
    ("80 0.5", "a grid needs noise levels as numbers, got str"),
    ([[1.0, 2.0], [1.0]], "a grid needs noise levels as numbers, got list"),
    ([2 + 1j, 1.0], "a grid needs noise levels as numbers, got list"),
    ([True, False], "a grid needs noise levels as numbers, got list"),
    (None, "a grid needs noise levels as numbers, got NoneType"),
    (torch.tensor([2.0, 1.0], requires_grad=True), "a grid needs noise levels as numbers, got Tensor"),
    (torch.tensor([2.0, 1.0], device="meta"), "a grid needs noise levels as numbers, got Tensor"),
]


@each(("levels", "line"), GRIDS)
def test_grids_by_hand(levels: Any, line: str) -> None:
    refused(lambda: TimeGrid(levels), line)


def test_a_long_grid_that_rises_is_still_one_short_line() -> None:
    with pytest.raises(UsageError) as raised:
        TimeGrid(np.ones(10_000))
    assert len(str(raised.value)) < 120


@each("schedule", [EDM(), VP(), Cosine(), RectifiedFlow(), TrigFlow()])
def test_levels_and_times_that_are_none(schedule: NoiseSchedule) -> None:
    """And the ends of what a schedule has are still levels and times."""
    for sigma, shown in ((-1.0, "-1"), (NAN, "nan"), (INF, "inf"), ([1.0, -2.0], "-2")):
        refused(lambda s=sigma: schedule.t(s), f"sigma is {shown}; noise levels are finite and >= 0")
    for t in (-1.0, NAN, INF, [0.5, -1.0]):
        refused(lambda t=t: schedule.sigma(t), "no finite noise level >= 0; t is in|noise levels are finite and >= 0")
    refused(lambda: schedule.t("a"), "a schedule takes times and levels as numbers, got 'a'")
    assert schedule.t(0.0) <= 0
    assert schedule.sigma(schedule.t(80.0)) == pytest.approx(80.0)


def test_the_time_that_stands_for_no_signal_is_none() -> None:
    refused(lambda: RectifiedFlow().sigma(1.0), r"time t = 1 has no finite noise level >= 0; t is in \[0, 1\)")
    refused(lambda: TrigFlow().sigma(2.0), r"time t = 2 has no finite noise level >= 0; t is in \[0, pi/2\)")
    refused(lambda: Cosine().sigma([0.5, 2.0]), r"time t = 2 has no finite noise level >= 0; t is in \[0, 1\]")
    refused(lambda: VP.fitted(NAN, 80.0), "no VP schedule rises from sigma nan")


@each("value", [0.0, -0.5, NAN, INF, "0.5"])
def test_sigma_data(value: Any) -> None:
    for make in (EDMPrecond, lambda v: ConsistencyPrecond(v, 0.002), TrigFlow):
        refused(lambda make=make: make(value), "sigma_data is a finite number above 0, got .*; it is the standard deviation of the data")


def test_forms() -> None:
    refused(lambda: ProcessPrecond(VP(), "epsilon"), "unknown form 'epsilon' of a network; did you mean eps")


SEEDS: list[tuple[Any, str]] = [
    (torch.tensor([3, -1]), "seed -1 is below 0; seeds are integers >= 0"),
    (torch.tensor([0.5]), r"seeds are torch.float32 \[1\]; give int64 \[B\], one for each sample, e.g. torch.arange\(16\)"),
    (torch.tensor([True]), r"seeds are torch.bool \[1\]"),
    (torch.tensor([[1]]), r"seeds are torch.int64 \[1, 1\]"),
    (torch.tensor(3), r"seeds are torch.int64 \[\]"),
    ([0, 1], r"seeds are a list; give a tensor with one for each sample, e.g. torch.arange\(16\)"),
]


@each("kind", [PhiloxNoise, EDMNoise])
@each(("seeds", "line"), SEEDS)
def test_seeds(kind: type, seeds: Any, line: str) -> None:
    refused(lambda: kind(seeds), line)


def test_classes_of_the_published_noise() -> None:
    for classes in (-1, 2.5, True, None):
        refused(lambda c=classes: EDMNoise(torch.arange(3), c), "the number of classes is an integer >= 0, got .*; pass the model's")


@pytest.mark.parametrize("kind", [PhiloxNoise, EDMNoise])
def test_shapes_of_noise(kind: type) -> None:
    for shape in ((-2,), (2.5,), 4):
        refused(lambda s=shape: kind(torch.arange(3)).normal(LATENT, s), "noise has the shape of one sample, integers >= 0, got")
    empty = kind(torch.arange(0))
    assert empty.normal(LATENT, (2, 3)).shape == (0, 2, 3)


def test_noised() -> None:
    x = torch.zeros(3, 2)
    for noise, sigma in ((x[:2], torch.ones(3)), (x, torch.ones(2)), (x, torch.ones(3, 1))):
        refused(lambda n=noise, s=sigma: noised(x, n, s), r"do not fit; noise is like x0, and sigma \[B\] has a level for each sample")


NETWORKS: list[tuple[dict[str, Any], str]] = [
    ({"shape": (1, 7, 7)}, "a unet with 2 levels halves 7 x 7 images 1 times; use multiples of 2"),
    ({"shape": (8, 8)}, r"a unet makes images of shape \(C, H, W\), got \(8, 8\); e.g. \(1, 8, 8\)"),
    ({"shape": (0, 8, 8)}, r"each number in shape \(0, 8, 8\) of a unet is an integer >= 1, got 0"),
    ({"shape": (1.0, 8, 8)}, r"each number in shape \(1.0, 8, 8\) of a unet is an integer >= 1, got 1.0"),
    ({"shape": None}, "shape of a unet are integers, got None"),
    ({"classes": -1}, "the number of classes of a unet is an integer >= 0, got -1"),
    ({"classes": 2.5}, "the number of classes of a unet is an integer >= 0, got 2.5"),
    ({"channels": (3, 6)}, r"a unet of channels \(3, 6\) has a norm over 3 channels that has no groups of equal size; use multiples of 8"),
    ({"channels": (7,)}, "a norm over 14 channels that has no groups of equal size"),
    ({"channels": (104,)}, r"3 heads over its last 104 channels; let the last be a multiple of 32, or below 64"),
    ({"channels": ()}, r"channels of a unet are integers, got \(\); e.g. \(32, 64\)"),
    ({"channels": 32}, "channels of a unet are integers, got 32"),
    ({"emb": 31}, "emb, a sine and a cosine for each frequency, is an even integer >= 2, got 31; e.g. 128"),
    ({"emb": 0}, "an even integer >= 2, got 0"),
    ({"blocks": -1}, "the number of blocks of a unet is an integer >= 0, got -1"),
    ({"blocks": 1.5}, "the number of blocks of a unet is an integer >= 0, got 1.5"),
    ({"outputs": 0}, "the number of outputs of a unet is an integer >= 1, got 0"),
    ({"dropout": NAN}, "dropout is a probability below 1, got nan"),
    ({"dropout": "a"}, "dropout is a probability below 1, got 'a'"),
    ({"scalars": "w"}, r"scalars are a sequence of names without dots, got 'w'; e.g. \('w',\)"),
    ({"scalars": ("a.b",)}, "scalars are a sequence of names without dots"),
]


@each(("options", "line"), NETWORKS)
def test_networks(options: dict[str, Any], line: str) -> None:
    """From Python, and of a card."""
    config = {"shape": (1, 8, 8), "classes": 3, **options}
    refused(lambda: UNet(**config), line)
    refused(lambda: build({"arch": "unet", "config": config}), f"the config of architecture 'unet' does not fit .*({line})")


@each("channels", [(4,), (8, 16), (12, 20), (16, 32, 32), (40,), (72,)])
@each("blocks", [0, 1, 2])
def test_what_divides_is_a_network(channels: tuple[int, ...], blocks: int) -> None:
    """Sizes that are unusual, but that a network has: nothing that worked is refused."""
    net = UNet([1, 8, 8], 0, channels, blocks, emb=2)
    with torch.no_grad():
        assert isinstance(found := net(torch.zeros(2, 1, 8, 8), torch.zeros(2)), torch.Tensor)
    assert found.shape == (2, 1, 8, 8)


def test_names_and_numbers_of_methods() -> None:
    """A number that is none slipped past every bound that was written with `<`."""
    refused(lambda: get("solvers", "heun"), "unknown kind 'solvers'; did you mean solver")
    for name, entry in entries("solver").items():
        for key, default in entry.fields.items():
            if isinstance(default, float):
                refused(lambda e=entry, k=key: e.make(**{k: NAN}), f"solver '{name}': {key} must be a number like .*, got nan")
    refused(
        lambda: get("solver", "heun").make().plan(make_grid("polynomial", 3, (0.002, 80.0))).nfe(UNet((1, 8, 8), 0, (8,), emb=4)), "a UNet"
    )


def test_seeds_and_batches_of_samples() -> None:
    model = Gaussian(torch.zeros(2), torch.ones(2), (2,))
    plan = get("solver", "euler").make().plan(make_grid("polynomial", 2, (0.002, 80.0)))
    refused(lambda: sample(plan, model, 80.0, [0, 1]), "seeds are a list; give a tensor")  # pyright: ignore[reportArgumentType]
    refused(lambda: sample(plan, model, 80.0, torch.arange(2), batch=0), "batch is an integer >= 1, got 0; it is how many samples")
    assert sample(plan, model, 80.0, torch.arange(0))[0].shape == (0, 2)


def test_weights_of_another_kind() -> None:
    refused(
        lambda: load_digit_classifier(name="digits_edm"), "are a unet, not a classifier; use digits_classifier, or load_denoiser for these"
    )
    refused(lambda: with_scalars(UNet((1, 8, 8), 0, (8,), emb=4), "w"), r"scalars are a sequence of names without dots, got 'w'")


def test_other_networks() -> None:
    refused(lambda: X0Eps((1, 8, 8), 3, {"chanels": (8,)}), "unet holds options of a UNet by name .*, got {'chanels'")
    refused(lambda: build({"arch": "x0_eps", "config": {"shape": [1, 8, 8], "classes": 2, "unet": 3}}), "unet holds options of a UNet")
    refused(lambda: build({"arch": "digit_classifier", "config": {"dropout": "x"}}), "the config of architecture")
    refused(lambda: DigitClassifier()(torch.zeros(2, 3, 8, 8)), r"the digit classifier takes images \[B, 1, 8, 8\], got \[2, 3, 8, 8\]")
    refused(lambda: GuidanceAdapter(2)(torch.ones(1)), "sines and cosines of two frequencies or more, so even in number, not 2; e.g. 128")


CARDS: list[tuple[dict[str, Any], str]] = [
    ({"sigma_range": [80.0, 0.002]}, r"has 0 < sigma_min < sigma_max, got \(80, 0.002\)"),
    ({"sigma_range": [1.0, 2.0, 3.0]}, "sigma_range is two levels"),
    ({"sigma_data": NAN}, "sigma_data is a finite number above 0, got nan"),
    ({"shape": [1, -8, 8]}, r"shape is the model's without the batch, integers above 0, got \(1, -8, 8\)"),
    ({"shape": []}, "shape is the model's without the batch"),
    ({"classes": -3}, "the number of classes is an integer >= 0, got -3; use 0 for a model without any"),
    ({"classes": True}, "the number of classes is an integer >= 0, got True"),
]


@each(("change", "line"), CARDS)
def test_cards_with_absurd_values(change: dict[str, Any], line: str) -> None:
    card = {"arch": "unet", "sigma_data": 0.5, "shape": [1, 8, 8], "classes": 3, "sigma_range": [0.002, 80.0]}
    refused(lambda: as_denoiser(torch.nn.Identity(), {**card, **change}), line)


def test_closed_forms() -> None:
    ones, means = torch.ones(3), torch.zeros(3, 2)
    refused(lambda: Gaussian(ones, -ones, (3,)), "standard deviations are finite and >= 0, got -1 to -1")
    refused(lambda: Gaussian(ones, NAN * ones, (3,)), "standard deviations are finite and >= 0")
    refused(lambda: Gaussian(ones, ones, (3,), sigma_range=(1.0, 0.5)), r"has 0 < sigma_min < sigma_max, got \(1, 0.5\)")
    refused(lambda: GaussianMixture(means, torch.ones(2), ones), r"a mixture of 3 components has std \[2\]; give it one for each, \[3\]")
    refused(lambda: GaussianMixture(means, ones, torch.ones(4)), r"has logw \[4\]; give it one for each, \[3\]")
    owners = torch.tensor([0, 1, 2])
    refused(lambda: GaussianMixture(means, ones, ones, 2, component_class=owners), "component_class is int64 in 0..1, got .* 0 to 2")
    refused(lambda: walsh_basis(3), "side is a power of two, got 3; e.g. 8")
    refused(lambda: arena_mixture().sample(-1, torch.Generator()), "the number of samples is an integer >= 1, got -1")
    refused(lambda: image_set(means, [0, 1, 1], 4), "images and labels are tensors, got Tensor and list")  # pyright: ignore[reportArgumentType]
