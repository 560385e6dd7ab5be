"""Consistency training in its three forms, latent consistency distillation, their distances, and the search of sampling levels."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from exactnet import EDM, ExactNet, V, gaussian_batch, linear_teacher, loss_of
from tiny import mixture_data, network
from torch.testing import assert_close
from torchvision.models.vgg import cfgs as vgg_configs
from torchvision.models.vgg import make_layers as vgg_layers

from bench.cli import group_config
from bench.generate import ensure_samples, plan_of, resolve, sample
from bench.learned import SolverFit
from bench.models import load_model
from bench.store import Store
from bench.suite import Cell, Suite
from fewstep.cond import NULL, Cond
from fewstep.data.images import Batch
from fewstep.denoiser import Preconditioned
from fewstep.errors import Unavailable, Unreachable, UsageError
from fewstep.grid import TimeGrid, make_grid
from fewstep.guidance import guide
from fewstep.nets import perceptual
from fewstep.nets.published import WeightsFile
from fewstep.noise import Rng
from fewstep.precond import BoundedPrecond, ConsistencyPrecond, ProcessPrecond
from fewstep.wrappers import WithScalars
from methods.distill.ct import Curriculum
from methods.distill.ect import tuned_level
from methods.distill.ict import doubled, lognormal_shares
from methods.distiller import Ema, State
from methods.losses import DISTANCES, digits_features, distance, huber, lpips_vgg, norm
from methods.registry import get
from methods.solver import Task
from methods.solvers.consistency_search import energy_distance, searched

EPS = 0.002
BOUNDARY = ConsistencyPrecond(EDM.sigma_data, EPS)
PUBLISHED = perceptual.VGG16
NAMES = ("ct", "ict", "ect", "lcm")


def exact(sigma):
    """The gain of the exact consistency function of Gaussian data."""
    return np.sqrt((V + EPS**2) / (V + sigma**2))


class Recorded(torch.nn.Module):
    """A network that gives zero, and keeps what it was called with."""

    def __init__(self, form: str = "edm") -> None:
        super().__init__()
        self.tag, self.calls = torch.nn.Parameter(torch.zeros((), dtype=torch.float64)), []

    def forward(self, x: torch.Tensor, time: torch.Tensor, cond: Cond) -> torch.Tensor:
        self.calls.append((x, np.exp(4 * time.double().numpy()), cond))
        return 0 * x * self.tag


def first_loss(method, state: State, batch: Batch, seed: int = 7) -> torch.Tensor:
    (loss,) = method.losses(state, batch, Rng((seed,)))
    assert loss.net == "student"
    return loss.value


def state_of(method, teacher, student, batch: int = 0, **emas) -> State:
    (phase,) = method.phases()
    return State(teacher, {"student": student}, {"target": student} | emas, phase, batch)


# --- schedules ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "nodes", "mu"), [(0, 2, 0.900000), (1000, 6, 0.965489), (400_000, 107, 0.998033), (799_999, 151, 0.998605)]
)
def test_levels_and_decay_of_consistency_training_are_the_published_ones(batch: int, nodes: int, mu: float) -> None:
    """s1 150, mu0 0.9, 800k batches; the paper's mu, not its code's (0.81 at the start)."""
    curriculum = Curriculum(2, 150, 0.9, 800_000)
    assert curriculum.nodes(batch) == nodes
    assert abs(curriculum.at(batch) - mu) < 5.1e-7  # six printed decimals
    assert Ema("student", curriculum, ramp=False).decay_at(batch) == curriculum.at(batch)


def test_an_ema_of_a_schedule_ramps_like_any_other() -> None:
    curriculum = Curriculum(2, 2, 0.5, 1000)
    assert [Ema("student", curriculum).decay_at(k) for k in (0, 999)] == [0.1, curriculum.at(999)]
    assert curriculum.at(999) == pytest.approx(0.5 ** (2 / 3))
    assert repr(Ema("student", curriculum)) == "Ema(net='student', decay=Curriculum(s0=2, s1=2, mu0=0.5, batches=1000), ramp=True)"


def test_levels_of_improved_training_double() -> None:
    """s0 10, s1 1280, 400k batches: every 50k. K' is one batch where there are fewer batches than doublings."""
    starts = [doubled(50_000 * n, 400_000, 10, 1280) for n in range(8)]
    assert starts == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert [doubled(50_000 * n - 1, 400_000, 10, 1280) for n in range(1, 9)] == starts
    assert [doubled(k, 3, 10, 1280) for k in range(3)] == [11, 21, 41]
    assert doubled(399, 400, 10, 10) == 11


def test_shares_of_the_levels_are_the_published_ones() -> None:
    levels = make_grid("polynomial", 10, (0.002, 80.0)).sigmas
    shares = lognormal_shares(levels, -1.1, 2.0)
    published = [0.0626, 0.1817, 0.2455, 0.2135, 0.1424, 0.0806, 0.0411, 0.0196, 0.0089, 0.0040]
    np.testing.assert_allclose(shares[::-1], published, atol=5.1e-5)  # four printed decimals
    assert abs(shares.sum() - 1) < 1e-12


@pytest.mark.parametrize(
    ("stage", "sigma", "level"),
    [
        *((0, s, r) for s, r in ((5.0, 2.366), (80.0, 40.0), (1.0, 0.0), (0.1, 0.0))),
        *((3, s, r) for s, r in ((0.05, 0.03469), (0.5, 0.37436), (1.0, 0.80303), (5.0, 4.67077))),
        (7, 1.0, 0.98769),
    ],
)
def test_target_levels_of_easy_tuning_are_the_published_ones(stage: int, sigma: float, level: float) -> None:
    found = tuned_level(torch.tensor([sigma], dtype=torch.float64), stage, 2.0, 8.0, 1.0)
    digits = 4 if stage == 0 else 6
    assert float(found) == pytest.approx(level, abs=0.51 * 10 ** -(digits - 1))  # as many printed decimals


# --- losses on Gaussian data ----------------------------------------------------------------------------------------------------


def trained(name: str, gain, batch: int, **options) -> float:
    """A method's loss where the student is gain(sigma) x, also as its own target, with levels as at `batch` of 1000."""
    method = get("distiller", name).make(batches=1000, **options)
    precond = EDM if name == "ect" else BOUNDARY
    return loss_of(method, state_of(method, linear_teacher(), ExactNet(gain, precond), batch))


def test_consistency_training_approves_the_exact_function_on_fine_levels_only() -> None:
    """With one noise for both levels the pair differs from the flow by (x0 - D) / sigma per unit of sigma: d = O(1 / N), l2 O(1 / N^2)."""
    coarse, fine = trained("ct", exact, 0, s0=20, s1=20), trained("ct", exact, 0, s0=320, s1=320)
    assert coarse / fine > 100  # (319 / 19)^2 = 282 but for the highest level's share
    assert fine < 1e-4
    # Twice the function is no consistency function: it misses the boundary that its target has at sigma_min, and elsewhere just scales.
    wrong = trained("ct", lambda sigma: exact(sigma) * (1 + 0.3 * np.log(sigma / EPS)), 0, s0=320, s1=320)
    assert wrong > 5 * fine


def test_the_pair_shares_noise_and_labels() -> None:
    """x - x_to = (sigma - sigma_to) n with one n, whose variance is 1, and the same labels, for every method without a teacher."""
    for name in ("ct", "ict", "ect"):
        method = get("distiller", name).make(batches=1000, label_dropout=0.5)
        net = Recorded()
        first_loss(method, state_of(method, linear_teacher(), net, 999), gaussian_batch(64))
        (z_to, sigma_to, cond_to), (z, sigma, cond) = net.calls
        assert torch.equal(cond.label, cond_to.label)
        assert 10 < int((cond.label == 2).sum()) < 54  # half of 64 labels are dropped; 10 is 5 standard deviations off
        x, x_to = (c / EDM.coefficients(s)[2][:, None, None, None] for c, s in ((z.numpy(), sigma), (z_to.numpy(), sigma_to)))
        assert ((sigma > sigma_to) | (sigma < 0.002001)).all()  # ect also draws sigma_min, whose target is x0 itself
        x0 = gaussian_batch(64).x0.numpy()
        # sigma is told as float32 ln(sigma) / 4, off by up to 5e-7 (see ExactNet), of x0 / sigma up to 1e3: noise to 1e-3 for large sigma
        noise, noise_to = ((y - x0) / s[:, None, None, None] for y, s in ((x, sigma), (x_to, sigma_to)))
        far = sigma_to > 0.05
        assert far.sum() > 10
        np.testing.assert_allclose(noise[far], noise_to[far], atol=1e-3)  # see above
        assert abs(noise[far].std() - 1) < 0.2


def test_improved_training_weighs_by_the_gap_and_has_no_ema_in_its_target() -> None:
    """With f = x at every level each pair counts d((sigma - sigma_to) n, 0) / (sigma - sigma_to), which for l1 is mean |n| = 0.7979."""
    value = trained("ict", lambda sigma: np.ones_like(sigma), 999, loss="l1")
    assert abs(value - math.sqrt(2 / math.pi)) < 0.02  # the mean of 1024 * 16 |n|, each of standard deviation 0.6: 5e-3
    method = get("distiller", "ict").make()
    assert set(method.phases()[0].emas) == {"ema"}
    student = ExactNet(exact, BOUNDARY)
    other = ExactNet(lambda sigma: 0 * sigma, BOUNDARY)
    with_target = loss_of(method, state_of(method, linear_teacher(), student, target=other))
    assert with_target == loss_of(method, state_of(method, linear_teacher(), student))


def test_improved_training_draws_the_levels_by_their_shares() -> None:
    method = get("distiller", "ict").make(label_dropout=0.0)
    net = Recorded()
    first_loss(method, state_of(method, linear_teacher(), net), gaussian_batch(4096))
    levels = make_grid("polynomial", 10, (0.002, 80.0)).sigmas
    drawn = np.abs(np.log(levels)[:, None] - np.log(net.calls[1][1])).argmin(0)
    shares = np.bincount(drawn, minlength=11)[:10] / 4096
    np.testing.assert_allclose(shares, lognormal_shares(levels, -1.1, 2.0), atol=0.03)  # sqrt(p (1 - p) / 4096) < 0.007
    assert (np.bincount(drawn, minlength=11)[10:] == 0).all()  # sigma_min is a target only


def test_easy_tuning_starts_as_diffusion_training_and_ends_at_the_consistency_condition() -> None:
    """Stage 0: below sigma = 1 the target is x0, whose best student is D; the last stage: the target is f itself, one small step on."""
    small = {"p_mean": -3.0, "p_std": 0.3, "loss": "l2", "stages": 8}  # sigma from 0.02 to 0.13
    net = ExactNet(lambda sigma: V / (V + sigma**2), EDM)
    # With r = 0 the value is E (D - x0)^2 / sigma = V sigma / (V + sigma^2), whose mean over these sigma is 0.0515.
    sigma = np.exp(-3 + 0.3 * np.linspace(-4, 4, 2001))
    density = np.exp(-(np.linspace(-4, 4, 2001) ** 2) / 2)
    expected = float((V * sigma / (V + sigma**2) * density).sum() / density.sum())
    method = get("distiller", "ect").make(batches=8, **small)
    value = loss_of(method, state_of(method, linear_teacher(), net))
    assert abs(value - expected) < 0.05 * expected  # 1024 * 16 squares, and sigma of 1024 samples: 1 to 2%
    late = loss_of(method, state_of(method, linear_teacher(), ExactNet(lambda s: 1 / np.sqrt(1 + s**2 / V), EDM), 7))
    assert late < expected / 50


def test_easy_tuning_cuts_levels_to_the_teachers_range() -> None:
    """Levels beyond 80 and below 0.002 are drawn with these moments; what is told to the network is not."""
    method = get("distiller", "ect").make(p_mean=0.0, p_std=8.0)
    net = Recorded()
    assert torch.isfinite(first_loss(method, state_of(method, linear_teacher(), net, 999), gaussian_batch(256)))
    for _, told, _ in net.calls:
        assert told.min() >= 0.002 * (1 - 1e-6)
        assert told.max() <= 80 * (1 + 1e-6)
    assert np.isclose(net.calls[1][1], 80, rtol=1e-5).sum() > 50  # Phi(-ln 80 / 8) = 0.29 of 256; float32 times, see ExactNet


@pytest.mark.parametrize("name", ["ct", "ict", "ect"])
def test_a_student_trained_without_a_teacher_still_has_its_boundary(name: str) -> None:
    teacher = network(mixture_data()[1])
    method = get("distiller", name).make()
    student = method.student(method.build(teacher)["student"], teacher)
    assert isinstance(student.precond, ConsistencyPrecond)
    x = torch.randn(3, *teacher.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(student(x, 0.002), x)


@pytest.mark.parametrize("name", NAMES)
def test_teachers_of_other_forms_and_unconditional_ones_are_taken(name: str) -> None:
    """A u-prediction network (which only `BoundedPrecond` gives a boundary), and data without labels (not for lcm, which guides)."""
    _, data = mixture_data()
    teacher = replace(network(data), precond=ProcessPrecond(form="eps"))
    method = get("distiller", name).make(batch_size=4)
    net = method.build(teacher)["student"]
    assert isinstance(method.student(net, teacher).precond, BoundedPrecond)
    assert torch.isfinite(first_loss(method, state_of(method, teacher, net), data.draw(4, Rng((1,)))))
    if name != "lcm":
        bare = replace(teacher, classes=0)
        assert torch.isfinite(first_loss(method, state_of(method, bare, net), Batch(data.draw(4, Rng((1,))).x0, Cond())))


@pytest.mark.parametrize("name", ["ct", "ict"])
def test_a_student_from_scratch_has_no_weight_of_its_teacher(name: str) -> None:
    teacher = network(mixture_data()[1])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        scratch = get("distiller", name).make(init="scratch").build(teacher)["student"]
    same = get("distiller", name).make().build(teacher)["student"]
    own = teacher.net.state_dict()
    kept = {k for k, v in scratch.state_dict().items() if torch.equal(v, own[k])}
    assert all("norm" in k for k in kept)  # group norms are drawn as 1 and 0, as they were in the untrained teacher
    assert all(torch.equal(v, own[k]) for k, v in same.state_dict().items())


def test_a_network_that_cannot_be_drawn_anew_is_named() -> None:
    teacher = linear_teacher()  # its one parameter belongs to no layer of torch's
    with pytest.raises(UsageError, match=r"^ct cannot draw the weights of a ExactNet anew; use init=teacher$"):
        get("distiller", "ct").make(init="scratch").build(teacher)


# --- latent consistency distillation --------------------------------------------------------------------------------------------


def lcm_parts(seed: int = 7, **options):
    """An untrained student of a small network, the batch, and the first loss."""
    _, data = mixture_data()
    teacher, g = network(data), torch.Generator().manual_seed(5)
    for p in teacher.net.parameters():  # an untrained network has branches of zeros, and would not see its labels
        p.data += 0.1 * torch.randn(p.shape, generator=g)
    method = get("distiller", "lcm").make(**options)
    net = method.build(teacher)["student"].eval()
    batch = data.draw(32, Rng((1,)))
    return method, teacher, net, batch, first_loss(method, state_of(method, teacher, net), batch, seed)


@pytest.mark.parametrize(("skip", "nodes"), [(1, 18), (5, 20)])
def test_the_first_loss_of_lcm_is_its_teachers_guided_step(skip: int, nodes: int) -> None:
    """All from the definition: levels by index, w in [0, 3], x' = x + (sigma' - sigma) (x - D) / sigma with D = D_c + w (D_c - D_u)."""
    method, teacher, net, batch, value = lcm_parts(skip=skip, nodes=nodes, w_max=3.0)
    rng, last = Rng((7,)), nodes - 1
    i = rng.integers(last, (32,))
    w, noise = 3 * rng.uniform((32,)), rng.normal(batch.x0.shape)
    levels = torch.tensor(make_grid("polynomial", last, (0.002, 80.0)).sigmas)
    sigma, to = levels[i], levels[torch.clamp(i + skip, max=last)]
    column = (-1, 1, 1, 1)
    x = batch.x0 + sigma.float().view(column) * noise
    with torch.no_grad():
        d_c, d_u = teacher(x, sigma, batch.cond), teacher(x, sigma, Cond(torch.full((32,), teacher.classes)))
        d = d_c + w.view(column) * (d_c - d_u)
        x_to = x + ((to - sigma) / sigma).float().view(column) * (x - d)
        plain = method.student(net, teacher)  # its adapters of w are zero
        expected = huber(plain(x, sigma, batch.cond), plain(x_to, to, batch.cond)).mean()
    assert float((d_c - d_u).abs().mean()) > 0.01
    assert_close(value.detach(), expected, rtol=1e-4, atol=1e-6)  # float32: x up to 200 cancels to D of order 1
    assert_close(guide(teacher, 1 + w)(x, sigma, batch.cond), d, rtol=1e-4, atol=1e-5)  # as above


def test_lcm_reads_w_in_its_range_and_its_teacher_reads_none() -> None:
    teacher, method = linear_teacher(), get("distiller", "lcm").make(w_max=2.5)
    asked, net = Recorded(), Recorded()
    first_loss(method, state_of(method, replace(teacher, net=asked), net), gaussian_batch(512))
    (_, sigma_to, cond_to), (_, sigma, cond) = net.calls
    w = cond.scalars["w"]
    assert torch.equal(w, cond_to.scalars["w"])
    assert 0 <= w.min() < 0.05
    assert 2.45 < w.max() < 2.5  # the extremes of 512 draws are within 1% of the ends
    assert all("w" not in c.scalars for _, _, c in asked.calls)
    assert method.sampling().w == (0.0, 2.5)
    assert (sigma_to < sigma).all()
    levels = make_grid("polynomial", method.nodes - 1, (0.002, 80.0)).sigmas
    index = [np.abs(np.log(levels)[:, None] - np.log(s)).argmin(0) for s in (sigma, sigma_to)]
    assert set(index[0]) == set(range(method.nodes - 1))  # every level but the last is learned: 512 draws of 79
    assert ((index[1] - index[0] == method.skip) | (index[1] == method.nodes - 1)).all()


def test_lcm_reaches_the_guided_consistency_function() -> None:
    """On Gaussian data both branches of the teacher agree, so guidance does nothing and the exact function solves lcm for any w."""
    teacher = linear_teacher()
    values = []
    for nodes in (50, 400):
        method = get("distiller", "lcm").make(nodes=nodes, skip=1, loss="l2")
        values.append(loss_of(method, state_of(method, teacher, ExactNet(exact, BOUNDARY))))
    assert values[0] > 20 * values[1]  # Euler's error of a step is O(1 / N^2): its square falls by 8^4 but for rounding
    assert values[1] < 1e-6
    method = get("distiller", "lcm").make(nodes=400, skip=1, loss="l2")
    target = ExactNet(exact, BOUNDARY)
    off = loss_of(method, state_of(method, teacher, ExactNet(lambda s: 1.1 * exact(s), BOUNDARY), target=target))
    assert off > 1e-3  # (0.1 f)^2 with f of variance 1/4


def test_lcm_learns_w_when_its_adapters_do() -> None:
    """A gradient reaches the adapter's last layer in the first batch, so that w gets an effect."""
    _, _, net, _, value = lcm_parts()
    value.backward()
    assert net.embed_scalars["w"][-1].weight.grad.abs().max() > 0


# --- distances ------------------------------------------------------------------------------------------------------------------


def test_huber_and_norm_by_hand() -> None:
    a = torch.tensor([[[[0.0, 0.003]]], [[[1.0, -1.0]]]], dtype=torch.float64)
    b = torch.zeros_like(a)
    expected = [(math.hypot(0.003, 0.001) - 0.001) / 2, math.hypot(1, 0.001) - 0.001]
    assert_close(huber(a, b), torch.tensor(expected, dtype=torch.float64))
    assert_close(norm(a, b), torch.tensor([0.003, math.sqrt(2)], dtype=torch.float64))


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
    assert message.startswith(f"vgg16-397923af.pth is not in {tmp_path}/hub/checkpoints; get it from https://download.pytorch.org/")
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


@pytest.mark.parametrize("name", sorted(set(DISTANCES) - {"lpips"}))
def test_every_distance_is_zero_on_equals_with_a_finite_gradient(name: str) -> None:
    a, b = pictures(3, 1, 8, 0).requires_grad_(), pictures(3, 1, 8, 0)
    value = distance(name)(a, b)
    assert_close(value, torch.zeros(3), rtol=0, atol=1e-7)  # pseudo_huber: sqrt(c^2) - c in float32
    value.sum().backward()
    assert a.grad.isfinite().all()


# --- searched levels ------------------------------------------------------------------------------------------------------------


def search_task(steps: int, teacher, data, afs: bool = False, end: str = "sigma_min") -> Task:
    def no_training(method):
        raise AssertionError("a search trains nothing")

    return Task(teacher, lambda n: make_grid("polynomial", n, (0.002, 80.0), end), steps, afs, 0, "cpu", no_training, data)


def test_a_search_finds_minima_between_its_points() -> None:
    level, value = searched(lambda s: (math.log(s) - math.log(0.37)) ** 2, 0.002, 80.0, 10, 12)
    assert level == pytest.approx(0.37, rel=0.02)  # two gaps of 0.96 in log sigma times (2/3)^12
    assert value < 1e-3
    two = {round(math.log(s), 9): s for s in (0.05, 5.0)}  # two minima; the deeper one is at 5
    level, _ = searched(lambda s: min(0.5 + abs(math.log(s / 0.05)), abs(math.log(s / two[round(math.log(5.0), 9)]))), 0.002, 80.0, 10, 12)
    assert level == pytest.approx(5.0, rel=0.02)  # as above


def test_energy_distance_of_two_gaussians() -> None:
    """N(0, 1) and N(m, 1) in one dimension: 2 E|x - y| - 2 E|x - x'| with E|x - x'| = 2 / sqrt(pi)."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(1500, 1, generator=g), torch.randn(1500, 1, generator=g)
    m = 1.0
    far = 2 * math.exp(-(m**2) / 4) / math.sqrt(math.pi) + m * math.erf(m / 2)
    assert energy_distance(x, y + m) == pytest.approx(2 * far - 4 / math.sqrt(math.pi), abs=0.1)  # sampling error 3e-2
    assert abs(energy_distance(x, y)) < 1e-2  # of order 1 / 1500 around 0


class Drifting:
    """A student of Gaussian data whose jump is exact from the level `best`, and too long by up to 60% from others."""

    shape, classes, sigma_range, best = (1, 4, 4), 0, (0.002, 80.0), 3.0

    def cost(self, sigma: float) -> int:
        return 1

    def __call__(self, x: torch.Tensor, sigma: float, cond: Cond = NULL) -> torch.Tensor:
        return exact(sigma) * x * (1 + 0.6 * abs(math.log(sigma / self.best)) / math.log(80 / self.best))


def test_levels_are_searched_where_the_samples_are_nearest_to_the_data() -> None:
    """Two steps from s have variance g(s)^2 (1.6^2 V + s^2) / (V + s^2) V with g the factor of the jump: least at 3, where it is 1.04 V."""
    _, data = mixture_data()
    x = V**0.5 * torch.randn(4000, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    gaussian = replace(data, classes=0, train_x=x.numpy(), train_y=np.zeros(4000, np.int64))
    solver = get("solver", "consistency_search").make(samples=600)
    two, three = (solver.fit(search_task(steps, Drifting(), gaussian)) for steps in (2, 3))
    levels = three["levels"].numpy()
    assert (levels[0], levels[-1]) == (80, 0.002)
    assert 2 < two["levels"][1] < 4.5  # 10% more or less variance (g = 1.05) than at 3, which 600 * 16 numbers resolve to 1.4%
    assert float(two["levels"][1]) in levels  # greedy
    assert three["distances"][0] == two["distances"][0]
    assert torch.equal(solver.fit(search_task(3, Drifting(), gaussian))["levels"], three["levels"])
    plan = solver.bound(three).plan(make_grid("polynomial", 3, (0.002, 80.0)))
    assert [e.sigma for e in plan.evals] == list(levels[:-1])
    with pytest.raises(UsageError, match=r"^these levels are for 3 steps from 80 to 0.002, not 2 from 80 to 0.002; fit consistency_search"):
        solver.bound(three).plan(make_grid("polynomial", 2, (0.002, 80.0)))


@pytest.mark.parametrize(
    ("steps", "afs", "end"), [(1, False, "sigma_min"), (3, False, "zero"), (3, True, "sigma_min"), (4, False, "zero_last")]
)
def test_a_search_takes_the_passes_that_it_says_and_stays_in_range(steps: int, afs: bool, end: str) -> None:
    _, data = mixture_data()
    solver = get("solver", "consistency_search").make(samples=16, points=3, rounds=2)
    seen = []

    class Counted(Drifting):
        classes = 2

        def __call__(self, x, sigma, cond=NULL):
            assert torch.equal(cond.label, torch.arange(16) % 2)
            seen.append(len(x))
            return super().__call__(x, sigma)

    levels = solver.fit(search_task(steps, Counted(), data, afs, end))["levels"].numpy()
    most = solver.passes(steps, afs)
    assert most * 0.9 <= sum(seen) <= most  # a level that is there already is not tried
    assert len(levels) == steps + 1
    grid = make_grid("polynomial", 1, (0.002, 80.0), end).sigmas
    assert (levels[0], levels[-1]) == (grid[0], grid[-1])
    assert (levels[1:-1] > 0.002).all()


def test_what_cannot_be_searched_is_refused() -> None:
    solver = get("solver", "consistency_search").make()
    with pytest.raises(UsageError, match=r"^consistency_search compares samples with data, and this task has none; fit it with"):
        solver.fit(search_task(2, Drifting(), None))
    with pytest.raises(Unreachable, match=r"^AFS on a one-step grid leaves nothing to the network; use at least two steps"):
        solver.fit(search_task(1, Drifting(), None, True))
    with pytest.raises(UsageError, match=r"^consistency_search plans with searched levels only: use bound\(fit\(task\)\), or bound\(stub"):
        solver.plan(TimeGrid([80.0, 1.0, 0.1]))


@pytest.mark.parametrize("name", ["cd", "lcm"])
def test_a_cell_searches_the_levels_of_its_own_student(name: str, tmp_path) -> None:
    """The search is a fit of its own, keyed by the student's; the cell is sampled on what it found, guided as the search was."""
    model, solver = load_model(group_config("model", "digits"), "cpu"), {"samples": 8, "points": 2, "rounds": 0}
    options = {name: {"batches": 2, "batch_size": 4}, "consistency_search": solver}
    suite, store = Suite("tiny", 4, 0, "philox", "dpmpp_2m", 1, options, ()), Store(tmp_path)
    cell = Cell(name, solver="consistency_search", nfe=2 if name == "lcm" else 4, guidance=2.0)
    job = resolve(cell, suite, model)
    assert (job.steps, job.learned.student) == (2, job.student)
    plain = SolverFit("consistency_search", solver, guidance=2.0, steps=2)
    other = replace(job.student, seed=1)
    assert len({fit.key(model) for fit in (job.learned, plain, replace(plain, student=other))}) == 3
    assert "student" not in plain.spec(model)  # the addresses of fits to a teacher stay what they were
    for fit in job.fits:
        fit.ensure(model, store, "cpu", lambda text: None)
    images = ensure_samples(job, model, store, "cpu", 4, lambda text: None)["images"]
    levels = [e.sigma for e in plan_of(job, model, store).evals]
    assert len(levels) == 2
    assert levels[1] != job.grid.sigmas[1]
    student = job.student.load(model, store, 2)
    guided = WithScalars(student, {"w": 1.0}) if name == "lcm" else guide(student, 2.0)
    plan = get("solver", "consistency").make().plan(TimeGrid([*levels, job.grid.sigmas[-1]]))
    assert_close(torch.from_numpy(images), sample(plan, guided, 80.0, torch.arange(4))[0])


# --- what is refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "options", "line"),
    [
        ("distiller", "ct", {"loss": "lpip"}, r"unknown loss 'lpip'; did you mean lpips\?"),
        ("distiller", "ct", {"init": "teachr"}, r"ct's student starts from teacher or scratch, got init 'teachr'; did you mean teacher\?"),
        ("distiller", "ct", {"s0": 1}, "ct's levels grow from s0 >= 2 to s1 \\+ 1, got s0=1 and s1=150; use e.g. s0=2 s1=150"),
        ("distiller", "ct", {"s0": 20, "s1": 10}, "got s0=20 and s1=10"),
        ("distiller", "ct", {"mu0": 0.0}, "ct's target decays by 0 < mu0 <= 1, got 0; use e.g. mu0=0.9"),
        ("distiller", "ict", {"init": "none"}, "ict's student starts from teacher or scratch, got init 'none'"),
        ("distiller", "ict", {"s0": 0}, "ict's levels double from s0 >= 1 to s1, got s0=0"),
        ("distiller", "ict", {"p_std": 0.0}, "ict's p_std is the standard deviation of ln sigma and above 0, got 0; use e.g. 2.0"),
        ("distiller", "ect", {"q": 1.0}, "ect needs q > 1 and stages >= 1, got q=1 and stages=8; use q=2 stages=8 or q=256 stages=1"),
        ("distiller", "ect", {"stages": 0}, "got q=2 and stages=0"),
        ("distiller", "ect", {"b": -1.0}, "ect needs k >= 0, b >= 0 and p_std > 0, got 8, -1 and 2; use 8, 1 and 2"),
        ("distiller", "lcm", {"skip": 0}, "lcm skips 1 to nodes - 1 intervals, got skip=0 of nodes=80; use e.g. skip=4 nodes=80"),
        ("distiller", "lcm", {"skip": 9, "nodes": 9}, "got skip=9 of nodes=9"),
        ("distiller", "lcm", {"w_max": 0.0}, "lcm draws w from 0 to w_max > 0, got w_max=0; use e.g. 4, or cd for a student without"),
        ("distiller", "cd", {"nodes": 1}, "cd needs the two ends of an interval, got nodes=1; use nodes >= 2, e.g. 18"),
        ("distiller", "cd", {"teacher_solver": "gits"}, "cd runs on a solver that needs no fit, got 'gits'"),
        ("distiller", "cd", {"teacher_solver": "ddpm"}, "cd runs on a solver that draws no noise, got 'ddpm'"),
        (
            "solver",
            "consistency_search",
            {"samples": 1},
            "consistency_search needs samples >= 2, points >= 1 and rounds >= 0, got samples=1",
        ),
    ],
)
def test_wrong_options_are_refused_in_one_line(kind: str, name: str, options: dict, line: str) -> None:
    with pytest.raises(UsageError, match=line) as raised:
        get(kind, name).make(**options)
    assert "\n" not in str(raised.value)


def test_lcm_needs_classes() -> None:
    teacher = replace(network(mixture_data()[1]), classes=0)
    assert isinstance(teacher, Preconditioned)
    with pytest.raises(UsageError, match=r"^lcm distils guidance, and this teacher has no classes to be guided by; use cd$"):
        get("distiller", "lcm").make().build(teacher)
