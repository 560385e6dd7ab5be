"""A torch module of one's own as a teacher, on every schedule that the field trains on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.analytic import Gaussian
from fewstep.cond import Cond
from fewstep.discrete import ZERO_SNR, Discrete
from fewstep.errors import UsageError
from fewstep.nets.own import FORMS, as_teacher, identity_of
from fewstep.plugins import Entry, entries, get
from fewstep.sampling.api import sample
from support.each import each

SHAPE = (2, 4, 4)
MEAN, STD = 0.3, 0.4
DISCRETE = [name for name, entry in entries("schedule").items() if entry.target is Discrete]


class Exact(nn.Module):
    """What a perfect network for N(MEAN, STD^2) predicts of z at native time t."""

    def __init__(self, schedule: str, predicts: str) -> None:
        super().__init__()
        self.schedule, self.predicts = get("schedule", schedule).make(), predicts

    def forward(self, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (torch.from_numpy(v).view(-1, 1, 1, 1) for v in self.schedule.alpha_sigma(t.double().numpy()))
        z = z.double()
        x0 = MEAN + alpha * STD**2 * (z - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        eps = (z - alpha * x0) / sigma
        return {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "flow": eps - x0}[self.predicts].float()


def denoised(teacher, sigma: float) -> torch.Tensor:
    x = MEAN + sigma * torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    return teacher(x, sigma) - Gaussian(torch.tensor(MEAN), torch.tensor(STD), SHAPE)(x, sigma)


@each("name", [*DISCRETE, "vp", "cosine", "rectified_flow"])
def test_a_perfect_network_is_the_exact_denoiser(name: str) -> None:
    """Whatever it predicts: D is that of the Gaussian at every level of the schedule."""
    for predicts in FORMS:
        if (predicts == "flow") != (name == "rectified_flow") or (predicts == "eps" and "zero_snr" in name):
            continue
        teacher = as_teacher(Exact(name, predicts), predicts, name, SHAPE)
        lo, hi = teacher.sigma_range
        for sigma in (lo, 0.05, 1.0, min(hi, 20.0)):
            # eps is divided by alpha, and t is told in float32: seven digits, of which large levels cost two
            assert denoised(teacher, max(sigma, lo)).abs().max() < 2e-3 * max(1.0, sigma), (predicts, sigma)


@each("name", DISCRETE)
def test_discrete_schedules_are_the_published_ones(name: str) -> None:
    made = get("schedule", name).make()
    table = made.table
    assert table.shape == (1000,)
    assert (np.diff(table) > 0).all()
    t = np.array([0.0, 1.0, 17.25, 500.5, 998.5, 999.0])
    # interpolation in float64 and back
    np.testing.assert_allclose(made.t(made.sigma(t)), t, rtol=1e-10, atol=1e-9)
    alpha, sigma = made.alpha_sigma(t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)  # variance preserving, to rounding
    assert (table[-1] == ZERO_SNR) == name.endswith("zero_snr")


def test_published_levels() -> None:
    """Products of 1 - beta by hand: the last level of the linear schedule, and of Stable Diffusion's."""
    for name, betas in (("linear", np.linspace(1e-4, 0.02, 1000)), ("scaled_linear", np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)):
        a = np.prod(1 - betas)
        # a thousand roundings
        assert get("schedule", name).make().table[-1] == pytest.approx(((1 - a) / a) ** 0.5, rel=1e-9)
    assert get("schedule", "scaled_linear").make().table[-1] == pytest.approx(14.6146, rel=1e-4)  # as the field's tools print it
    made = get("schedule", "linear_zero_snr").make()
    assert made.table[0] == pytest.approx(get("schedule", "linear").make().table[0], rel=1e-6)  # the first level stays


def test_it_samples_through_the_public_api() -> None:
    teacher = as_teacher(Exact("linear", "eps"), "eps", "linear", SHAPE)
    images, labels = sample(teacher, "dpmpp_2m", 20, torch.arange(64))
    assert images.shape == (64, *SHAPE)
    assert not labels.any()
    # 64 images of 32 pixels: the mean of 2,048 draws, and a solver's error of a few percent of STD
    assert abs(float(images.mean()) - MEAN) < 0.05
    assert abs(float(images.std()) - STD) < 0.05
    assert torch.equal(images[:3], sample(teacher, "dpmpp_2m", 20, torch.arange(3))[0])


class Labelled(nn.Module):
    """z plus its label."""

    def forward(self, z: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return z + label.view(-1, 1, 1, 1)


def test_labels_and_whole_steps_reach_the_module() -> None:
    teacher = as_teacher(Labelled(), "x0", "linear", SHAPE, classes=3)
    x = torch.zeros(2, *SHAPE)
    assert teacher(x, 1.0, Cond(label=torch.tensor([1, 2])))[:, 0, 0, 0].tolist() == [1.0, 2.0]
    assert teacher(x, 1.0)[0, 0, 0, 0] == 3.0  # no label is the null label
    told = []

    def call(net: nn.Module, z: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        told.append((t, label))
        return z

    as_teacher(nn.Identity(), "x0", "linear", SHAPE, call=call, whole_steps=True)
    assert all(t.dtype == torch.int64 and label is None for t, label in told)
    assert told[0][0].tolist() == [0, 0]
    assert told[-1][0].tolist() == [999, 999]


def test_its_identity_is_its_weights_and_how_it_is_read() -> None:
    def teacher(seed: int, predicts: str = "v", schedule: str = "linear"):
        torch.manual_seed(seed)
        return as_teacher(nn.Conv2d(2, 2, 3, padding=1), predicts, schedule, SHAPE, call=lambda net, z, t, y: net(z))

    first, second = (Entry("teacher", "mine", "", teacher, {}, version) for version in (1, 2))
    whole = as_teacher(teacher(0).net.module, "v", "linear", SHAPE, call=lambda net, z, t, y: net(z), whole_steps=True)  # pyright: ignore
    made = [(teacher(0), first), (teacher(1), first), (teacher(0, "x0"), first), (teacher(0), second), (whole, first)]
    found = [identity_of(*one) for one in (*made, (teacher(0, schedule="scaled_linear"), first))]
    assert len(set(found)) == 6
    assert found[0] == identity_of(teacher(0), first)


def test_its_identity_is_its_source_too(tmp_path, monkeypatch) -> None:
    """Whoever edits the network gets other samples, not those of before."""
    monkeypatch.syspath_prepend(tmp_path)
    source = "import torch\nclass Net(torch.nn.Module):\n    def forward(self, z, t):\n        return {} * z\n"
    source += "def mine():\n    from fewstep import as_teacher\n    return as_teacher(Net(), 'eps', 'linear', (1, 4, 4))\n"
    found = []
    for i, factor in enumerate((0.5, 0.25)):
        (tmp_path / f"own_net_{i}.py").write_text(source.format(factor))
        function = __import__(f"own_net_{i}").mine
        found.append(identity_of(function(), Entry("teacher", "mine", "", function, {})))
    assert found[0] != found[1]


class Embedded(nn.Module):
    """Has no row for the null label."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 1)

    def forward(self, z: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return z + self.table(label).view(-1, 1, 1, 1)


class Wrong(nn.Module):
    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def forward(self, z: torch.Tensor, t: torch.Tensor):
        return self.make(z)


def test_an_output_that_does_not_fit_is_one_line() -> None:
    for make, told in (
        (
            lambda z: z[:, :1],
            r"returned shape \[2, 1, 4, 4\] for an input \[2, 2, 4, 4\]; both must agree; pass call= that keeps the channels",
        ),
        (lambda z: torch.cat([z, z], 1), "keeps the channels of the prediction"),
        (lambda z: (z, z), "returned a tuple, not a tensor; pass call="),
        (lambda z: z.long(), "returned torch.int64, and a prediction is floating-point"),
        (lambda z: z * float("nan"), "gives NaN or infinity at sigma"),
        (lambda z: z @ torch.zeros(3, 3), "cannot be called at sigma .*RuntimeError"),
    ):
        with pytest.raises(UsageError, match=told) as caught:
            as_teacher(Wrong(make), "eps", "linear", SHAPE)
        assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class NoInverse:
    def sigma(self, t):
        return np.asarray(t, float) + 1

    def t(self, sigma):
        return np.asarray(sigma, float)

    def alpha_sigma(self, t):
        return np.ones_like(t), self.sigma(t)


def test_a_schedule_or_a_form_that_does_not_fit_is_one_line() -> None:
    net = Wrong(lambda z: z)
    for predicts, schedule, told in (
        ("epsilon", "linear", "a network predicts eps, v, x0, flow, got 'epsilon'; did you mean eps"),
        ("eps", "lineal", "unknown schedule 'lineal'; did you mean"),
        ("eps", "linear_zero_snr", "eps says nothing of the image at zero SNR"),
        ("eps", NoInverse(), "NoInverse has no inverse"),
        ("eps", object(), "a schedule has alpha_sigma"),
        ("v", "rectified_flow", "v = .* is of variance-preserving schedules"),
        ("flow", "linear", "a flow velocity n - x0 is of z = "),
    ):
        with pytest.raises(UsageError, match=told):
            as_teacher(net, predicts, schedule, SHAPE)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match=r"sigma_range is two levels of the schedule, 0\.01.* to 157.*, got \(1e-05, 1\)"):
        as_teacher(net, "eps", "linear", SHAPE, sigma_range=(1e-5, 1.0))
    with pytest.raises(UsageError, match="do not rise from each timestep to the next"):
        _ = Discrete(start=0.5, end=0.9).table
    with pytest.raises(UsageError, match=r"Embedded cannot be called .*; it takes \(z, t, label\), label = classes for none"):
        as_teacher(Embedded(), "eps", "linear", SHAPE, classes=3)
    with pytest.raises(UsageError, match="timestep 1000 has no level; they run from 0 to 999"):
        Discrete().sigma(1000)
    with pytest.raises(UsageError, match="unknown family 'cosin' of betas"):
        Discrete("cosin")
    with pytest.raises(UsageError, match="betas rise from start to end"):
        Discrete(start=0.3, end=0.1)
