"""Consistency trajectory models, exactly: jumps, soft consistency matching, denoising, adaptive weights, the GAN phase, samplers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fewstep.cond import NULL, Cond
from fewstep.data.source import Batch
from fewstep.denoiser import Preconditioned
from fewstep.errors import UsageError
from fewstep.flowmap import TO
from fewstep.grid import make_grid
from fewstep.nets.adapters import with_scalars
from fewstep.nets.unet import UNet
from fewstep.noise import PhiloxNoise, Rng
from fewstep.plugins import get
from fewstep.precond import EDMPrecond, ProcessPrecond
from fewstep.sampling.runner import run
from methods.distill.ctm import LAMBDA_GAN, adaptive, deepest_map, denoising_levels, drawn_steps, gradient_norm, last_layer
from methods.training import State
from support.each import each
from support.exactnet import EDM, ExactNet, V, gaussian_batch, linear_teacher, posterior
from support.tiny import mixture_data, network
from support.twotime import LABEL, RANGE, X, exact, taught

# Soft consistency matching


def matching(strength=1.0, outer=1.0, nodes=400, loss="l2", **options):
    method = get("distiller", "ctm").make(nodes=nodes, loss=loss, **options)
    nets = {"student": exact(strength).base.net}
    state = State(linear_teacher(), nets, {"target": exact(outer).base.net}, method.phases()[0])
    (loss,) = method.losses(state, gaussian_batch(), Rng((7,)))
    assert loss.net == "student"
    return loss


def test_matching_vanishes_on_the_exact_flow_map():
    """What is left is the teacher's discretisation: less with Heun than with Euler, less on a finer grid."""
    found = matching().logs["matching"]
    assert found < 1e-11  # (1e-6 x)^2 with x of order 1 at sigma_min, see ExactTwoTime; Heun's error is 400^-3 a step
    assert matching(teacher_solver="euler").logs["matching"] > 100 * found
    assert matching(nodes=18).logs["matching"] > 100 * found
    assert matching(1.05).logs["matching"] > 1e4 * found
    # Any outer net maps equal states to equal ones: it is the average, and the inner target net is the student itself.
    assert matching(outer=1.2).logs["matching"] < 1e-11


def test_the_other_losses_are_distances_too():
    for loss in ("l1", "pseudo_huber"):
        found = matching(loss=loss).logs["matching"]
        assert found < 1e-5
        assert matching(1.05, loss=loss).logs["matching"] > 100 * found


def test_the_gradient_passes_the_outer_net_and_stops_at_the_target():
    method, student, outer = get("distiller", "ctm").make(), exact(1.1), exact(0.9)
    outer.base.net.requires_grad_(False)
    batch = gaussian_batch(256)

    def sides():
        return method._sides(student, outer, linear_teacher(), batch.x0, batch.cond, Rng((7,)))

    estimate, target = sides()
    assert not target.requires_grad
    strength, h = student.base.net.strength, 1e-4
    (slope,) = torch.autograd.grad(estimate.square().sum(), strength)
    with torch.no_grad():
        values = []
        for step in (h, -2 * h):
            strength += step
            values.append(float(sides()[0].square().sum()))
            moved = sides()[1]
    assert_close(float(slope), (values[0] - values[1]) / (2 * h), rtol=1e-6, atol=0)  # the sum is quadratic in strength
    assert not torch.allclose(moved, target, atol=1e-6)  # the target's inner net is the student's own, at its present weights


class Spy:
    """A flow map that stays where it is and notes where it was to go."""

    def __init__(self):
        self.jumps = []

    def jump(self, x, sigma, to, cond):
        self.jumps.append((sigma, to))
        return x


def test_nodes_are_drawn_as_published():
    """t > u >= s, u `teacher_steps` nodes below t at most, one M a batch; on four nodes with M = 1 the joint law of (t, s) is known."""
    batch, teacher = gaussian_batch(20000), linear_teacher()

    def index(levels, nodes):
        return np.abs(np.log(make_grid("polynomial", nodes - 1, RANGE).sigmas)[:, None] - np.log(levels.numpy())).argmin(0)

    def drawn(nodes, teacher_steps, seed):
        student, outer = Spy(), Spy()
        method = get("distiller", "ctm").make(nodes=nodes, teacher_steps=teacher_steps, teacher_solver="euler")
        method._sides(student, outer, teacher, batch.x0, batch.cond, Rng((seed,)))
        ((u, s), (t, s_again)), ends = student.jumps, outer.jumps
        assert torch.equal(s, s_again)
        assert all(torch.equal(sigma, s) and (to == 0.002).all() for sigma, to in ends)
        return index(t, nodes), index(u, nodes), index(s, nodes)

    i, _, j = drawn(4, 1, 0)
    for a, b, p in ((0, 1, 1 / 9), (0, 2, 1 / 9), (0, 3, 1 / 9), (1, 2, 1 / 6), (1, 3, 1 / 6), (2, 3, 1 / 3)):
        assert abs(((i == a) & (j == b)).mean() - p) < 4 * (p * (1 - p) / 20000) ** 0.5  # four standard errors
    seen = set()
    for seed in range(12):
        i, between, j = drawn(18, 17, seed)
        (steps,) = set(between - i)
        assert (j >= between).all()
        assert set(i) == set(range(18 - steps))
        assert set(j[i == 0]) == set(range(steps, 18))
        seen.add(int(steps))
    assert len(seen) > 4
    assert max(seen) <= 17


def test_the_number_of_teacher_steps_is_likely_in_proportion_to_itself():
    middles = (np.arange(153) + 0.5) / 153  # of 1 + 2 + ... + 17 equal parts
    assert np.bincount([drawn_steps(17, u) for u in middles]).tolist() == list(range(18))
    assert (drawn_steps(3, 0.0), drawn_steps(3, 1 - 2**-24), drawn_steps(1, 0.7)) == (1, 3, 1)


# Denoising and the weights


def test_denoising_levels_are_half_log_normal_and_half_of_the_upper_grid():
    levels = denoising_levels(40001, RANGE, Rng((3,)))
    low, high = levels[:20000].log(), levels[20000:]
    assert abs(low.mean() + 1.2) < 4 * 1.2 / 20000**0.5  # four standard errors
    assert abs(low.std() / 1.2 - 1) < 4 / 40000**0.5
    ramp = (high ** (1 / 7) - 80 ** (1 / 7)) / (0.002 ** (1 / 7) - 80 ** (1 / 7))
    assert ramp.min() >= -1e-12  # rounding of the seventh root
    assert 0.69 < ramp.max() < 0.7
    assert abs(ramp.mean() - 0.35) < 4 * 0.7 / (12 * 20001) ** 0.5
    narrow = denoising_levels(4000, (0.1, 1.0), Rng((3,)))
    assert (narrow.min(), narrow.max()) == (0.1, 1.0)


def test_denoising_is_edms_own_loss_of_g_told_its_own_level():
    """E weight |D - x0|^2 over the exact posterior is E (sigma^2 + sd^2) / (sigma sd)^2 v sigma^2 / (v + sigma^2), which D minimises."""
    found = matching().logs["denoising"]
    sigma = denoising_levels(200_000, RANGE, Rng((11,))).numpy()
    values = (sigma**2 + EDM.sigma_data**2) / (sigma * EDM.sigma_data) ** 2 * V * sigma**2 / (V + sigma**2)
    # 1024 levels and 16384 squared normals: their relative errors
    assert abs(found / values.mean() - 1) < 4 * (values.std() / values.mean() / 1024**0.5 + (2 / 16384) ** 0.5)
    assert matching(1.05).logs["denoising"] > found


def test_the_denoising_weight_gives_any_raw_output_unit_weight():
    """Of a process teacher that predicts eps, c_out = -sigma: the weight is 1 / sigma^2, and |D - x0|^2 / sigma^2 the error of eps."""
    student = taught(ProcessPrecond())
    method = get("distiller", "ctm").make(batch_size=8)
    x0 = torch.zeros(1024, 1, 4, 4)

    class Zero(UNet):
        def forward(self, x, *args, **kwargs):
            return super().forward(x, *args, **kwargs) * 0

    with torch.random.fork_rng():
        net = with_scalars(Zero((1, 4, 4), 2, (16, 32), emb=32), (TO,))
    teacher = replace(student.base, net=net)
    state = State(teacher, {"student": net}, {"target": net}, method.phases()[0])
    (loss,) = method.losses(state, Batch(x0, Cond(torch.zeros(1024, dtype=torch.int64))), Rng((7,)))
    assert abs(loss.logs["denoising"] - 1) < 4 * (2 / 16384) ** 0.5  # eps is 0 where it should be n: E n^2 = 1


def test_the_adaptive_weight_is_the_ratio_of_gradient_norms():
    net = nn.Linear(2, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, -2.0]]))
    five, two = (net.weight * torch.tensor([3.0, 4.0])).sum(), 0.5 * (net.weight[0, 1] ** 2)  # gradients (3, 4) and (0, -2)
    norms = gradient_norm(five, net), gradient_norm(two, net)
    assert_close(adaptive(*norms), torch.tensor(5 / 2.0001))
    assert_close(adaptive(norms[0], torch.tensor(0.0)), torch.tensor(1e4))  # 5e4 without the clamp
    assert adaptive(torch.tensor(0.0), norms[1]) == 0
    assert not adaptive(*norms).requires_grad
    loss = matching(1.05)
    logs = loss.logs
    assert_close(float(loss.value.detach()), logs["matching"] + logs["lambda/denoising"] * logs["denoising"])
    assert 0 < logs["lambda/denoising"] < 1e4


def test_the_last_layer_is_the_output_convolution():
    net = with_scalars(UNet((1, 4, 4), 2, (16, 32), emb=32), (TO, "w"))
    assert last_layer(net) is net.conv_out.weight


# The GAN phase


def gan_state(teacher, **nets):
    method = get("distiller", "ctm_gan").make()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = {k: v.requires_grad_(True) for k, v in method.build(teacher).items()} | nets
    return method, State(teacher, built, {"target": built["student"]}, method.phases()[1])


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x):
        return self.value + 0 * x[:, 0]


def test_the_gan_phase_follows_the_other_and_starts_from_its_average():
    method = get("distiller", "ctm_gan").make()
    first, second = method.phases()
    assert (first.name, second.name, second.copies, second.export) == ("ctm", "gan", {"student": "ema"}, "ema")
    assert (set(first.optims), set(second.optims)) == ({"student"}, {"student", "discriminator"})
    assert {method.phase_for(n) for n in (1, 2, 7)} == {"gan"}
    plain = get("distiller", "ctm").make()
    assert [p.name for p in plain.phases()] == [plain.phase_for(1)] == ["ctm"]
    teacher = network(mixture_data()[1])
    assert set(plain.build(teacher)) == {"student"}
    assert set(method.build(teacher)) == {"student", "discriminator"}


@pytest.mark.parametrize(("logit", "hinge"), [(0.0, 2.0), (0.5, 2.0), (3.0, 4.0), (-3.0, 4.0)])
def test_the_hinge_loss_and_its_generator(logit, hinge):
    """relu(1 - c) + relu(1 + c), and -c, of a discriminator that says c; its gradient does not reach the student, so lambda is clamped."""
    _, data = mixture_data()
    method, state = gan_state(network(data), discriminator=Constant(logit))
    student, discriminator = method.losses(state, data.draw(32, Rng((5,))), Rng((7,)))
    assert (student.net, discriminator.net) == ("student", "discriminator")
    assert float(discriminator.value.detach()) == hinge
    assert student.logs["gan"] == -logit
    assert student.logs["lambda/gan"] == LAMBDA_GAN[1]


def test_the_discriminator_is_told_which_images_are_real():
    """One that knows the map of the only real image there is has no loss; the same with the opposite sign has all of it."""
    teacher = network(mixture_data()[1])
    image, label = torch.full((64, 1, 4, 4), 0.7), torch.zeros(64, dtype=torch.int64)

    class Knowing(nn.Module):
        def __init__(self, sign):
            super().__init__()
            self.sign = nn.Parameter(torch.tensor(sign))
            self.real = deepest_map(teacher, image[:1], Cond(label[:1])).detach()

        def forward(self, x):
            near = (x - self.real).abs().mean((1, 2, 3)) < 0.02  # images at sigma_min are 0.002 off
            return self.sign * torch.where(near, 5.0, -5.0)

    for sign, expected in ((1.0, 0.0), (-1.0, 12.0)):
        method, state = gan_state(teacher, discriminator=Knowing(sign))
        spied = list(method.losses(replace(state, phase=method.phases()[0]), Batch(image, Cond(label)), Rng((7,))))
        assert [loss.net for loss in spied] == ["student"]  # none in the first phase
        student = state.nets["student"]
        student.conv_out.weight.data.normal_(generator=torch.Generator().manual_seed(0))  # estimates far from the image
        opposed = _second(method, state, Batch(image, Cond(label)))
        assert float(opposed) == expected


def _second(method, state, batch):
    """The discriminator's loss, where the generator's gradient at the output layer may be missing."""
    target = state.nets["discriminator"]

    class Joined(nn.Module):
        def forward(self, x):
            return target(x) + 0 * x.mean()

    _, loss = method.losses(replace(state, nets={**state.nets, "discriminator": Joined()}), batch, Rng((7,)))
    return loss.value.detach()


def test_the_generators_gradient_passes_the_teachers_features():
    _, data = mixture_data()
    method, state = gan_state(network(data))
    before = {k: v.clone() for k, v in state.nets["discriminator"].state_dict().items()}
    student, discriminator = method.losses(state, data.draw(32, Rng((5,))), Rng((7,)))
    assert LAMBDA_GAN[0] <= student.logs["lambda/gan"] <= LAMBDA_GAN[1]
    logs, parts = student.logs, ("denoising", "gan")
    assert_close(float(student.value.detach()), logs["matching"] + sum(logs[f"lambda/{k}"] * logs[k] for k in parts))
    assert gradient_norm(student.value, state.nets["student"]) > 0
    discriminator.value.backward(inputs=list(state.nets["discriminator"].parameters()))
    assert all(p.grad is not None for p in state.nets["discriminator"].parameters())
    assert all(torch.equal(v, before[k]) for k, v in state.nets["discriminator"].state_dict().items())


def test_a_teacher_without_a_feature_map_is_refused():
    with pytest.raises(UsageError, match="ctm_gan: a ExactNet teacher has no feature map for a discriminator; use ctm, or a unet teacher"):
        deepest_map(linear_teacher(), torch.zeros(1, 1, 4, 4), NULL)
    assert isinstance(linear_teacher().net, ExactNet)
    assert posterior(0.0) == 1


# Use


@pytest.mark.parametrize("name", ["ctm", "ctm_gan"])
def test_without_classes(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet((3, 8, 8), 0, (16, 32), emb=32)
        nn.init.normal_(net.conv_out.weight, std=0.1)
    teacher = Preconditioned(net.eval(), EDMPrecond(0.5), (3, 8, 8), 0, (0.02, 20.0))
    method = get("distiller", name).make()
    nets = method.build(teacher)
    for phase in method.phases():
        state = State(teacher, nets, {"target": nets["student"]}, phase)
        losses = list(method.losses(state, Batch(torch.rand(5, 3, 8, 8), NULL), Rng((1,))))
        assert [loss.net for loss in losses] == list(phase.optims)
        assert all(torch.isfinite(loss.value) for loss in losses)


def test_every_solver_it_names_samples_it():
    own, student, grid = get("distiller", "ctm").make().sampling(), taught(), make_grid("polynomial", 2, RANGE)
    for name in (own.solver, *own.solvers):
        plan = get("solver", name).make().plan(grid)
        with torch.no_grad():
            assert torch.isfinite(run(plan, student, 80 * X, PhiloxNoise(torch.arange(3)), LABEL)[plan.states[-1]]).all()
    assert own.solver == "ctm_gamma_0"


@each(
    ("options", "message"),
    [
        ({"loss": "l3"}, "unknown loss 'l3'"),
        ({"teacher_solver": "huen"}, "unknown solver 'huen'; did you mean heun"),
        ({"nodes": 1}, "nodes must be at least 2, got 1"),
        ({"teacher_steps": 0}, "on 9 nodes teacher_steps must lie in 1 to 8, got 0"),
        ({"nodes": 5, "teacher_steps": 5}, "on 5 nodes teacher_steps must lie in 1 to 4, got 5"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(UsageError, match=message):
        get("distiller", "ctm").make(**options)
