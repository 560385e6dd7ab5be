"""Editing without training: what is known put into every D, starts at a strength, and what a user's pictures are asked with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor
from torch.testing import assert_close

import fewstep
from fewstep.analytic import Counting, Gaussian
from fewstep.cond import NULL, Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import TimeGrid, make_grid
from fewstep.guidance import guide
from fewstep.noise import LATENT, PhiloxNoise
from fewstep.plugins import get
from fewstep.replacement import Replaced
from fewstep.sampling.draw import sample, start
from fewstep.sampling.editing import check_guided, given, sample_given
from fewstep.sampling.plan import Plan, interpret, jump
from fewstep.sampling.runner import run
from fewstep.strength import grid_at, level_at, strengths_of
from fewstep.tasks.generation import ClassConditional, Unconditional
from fewstep.tasks.given import Given
from fewstep.tasks.pictures import Pictured
from fewstep.wrappers import Prior
from support.tiny import mixture_data, network

RANGE = (0.01, 40.0)
SHAPE = (1, 1, 4)
BASIS, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
CORRELATED = Gaussian(
    torch.tensor([0.5, -0.3, 0.1, -0.2], dtype=torch.float64).view(SHAPE),
    torch.tensor([2.0, 1.0, 0.5, 0.2], dtype=torch.float64),
    SHAPE,
    sigma_range=RANGE,
    basis=BASIS,
)
HIDDEN = torch.tensor([False, True, False, True])
KNOWN = torch.tensor([0.8, 0.0, -0.6, 0.0], dtype=torch.float64)


def told(count: int) -> Cond:
    image, mask = KNOWN.view(SHAPE).expand(count, *SHAPE), HIDDEN.double().view(1, 1, 4).expand(count, 1, 1, 4)
    return Cond(image=image, mask=mask)


def conditional() -> tuple[Tensor, Tensor]:
    """Mean and covariance of the hidden elements given the known ones."""
    mean, cov = CORRELATED.moments()
    gain = cov[HIDDEN][:, ~HIDDEN] @ torch.linalg.inv(cov[~HIDDEN][:, ~HIDDEN])
    return mean[HIDDEN] + gain @ (KNOWN - mean)[~HIDDEN], cov[HIDDEN][:, HIDDEN] - gain @ cov[~HIDDEN][:, HIDDEN]


@dataclass(frozen=True)
class Axes:
    """Noise that is a unit vector in one element of one draw for each row: on a linear denoiser a plan shows all of its gains."""

    plan: Plan

    def normal(self, slot, shape):
        d = int(np.prod(shape))
        found = torch.zeros(1 + d * (1 + len(self.plan.noises)), *shape, dtype=torch.float64)
        at = 1 + d * (1 + self.plan.noises.index(slot))
        found[at : at + d] = torch.eye(d, dtype=torch.float64).view(d, *shape)
        return found


def moments(plan: Plan, denoiser: Denoiser) -> tuple[Tensor, Tensor]:
    """Mean and covariance [4, 4] of what a plan makes of noise at 40: exact, nothing is sampled."""
    rows = 1 + 4 * (1 + len(plan.noises))
    x = torch.zeros(rows, *SHAPE, dtype=torch.float64)
    x[1:5] = 40 * torch.eye(4, dtype=torch.float64).view(4, *SHAPE)
    out = interpret(plan, denoiser, x, Axes(plan), told(rows))[plan.states[-1]].flatten(1)
    gains = out[1:] - out[0]
    return out[0], gains.T @ gains


def errors(steps: int, resample: int, jump: int = 1) -> tuple[float, float]:
    """How far mean and covariance of the hidden part are from the conditional ones, relatively."""
    plan = get("solver", "repaint").make(resample=resample, jump=jump).plan(make_grid("polynomial", steps, RANGE, "zero"))
    mean, cov = moments(plan, Replaced(CORRELATED))
    assert_close(mean[~HIDDEN], KNOWN[~HIDDEN])
    assert_close(cov[~HIDDEN], torch.zeros(2, 4, dtype=torch.float64))
    exact_mean, exact_cov = conditional()
    off = mean[HIDDEN] - exact_mean, cov[HIDDEN][:, HIDDEN] - exact_cov
    return float(off[0].norm() / exact_mean.norm()), float(off[1].norm() / exact_cov.norm())


def test_resampling_approaches_the_conditional_mean_and_covariance() -> None:
    """Replacement alone leaves the hidden part off; every doubling of the resampling brings its mean nearer, and its covariance down to
    the steps' own error, which is of the other sign (of `ddpm`'s small variance) and falls with their length."""
    found = [errors(60, resample) for resample in (1, 2, 4, 8, 16)]
    means = [mean for mean, _ in found]
    assert all(after < 0.8 * before for before, after in pairwise(means))
    assert means[0] > 0.1
    assert means[-1] < 0.2 * means[0]
    covariances = [errors(160, resample)[1] for resample in (1, 2, 4)]
    assert all(after < 0.5 * before for before, after in pairwise(covariances))
    assert covariances[-1] < 0.05 * covariances[0]
    assert errors(60, 4, jump=5)[0] < 0.6 * means[0]  # longer stretches do it, too


def test_repaint_without_resampling_is_ddpm() -> None:
    grid = make_grid("polynomial", 5, RANGE)
    own, ddpm = (get("solver", name).make(**options).plan(grid) for name, options in (("repaint", {"resample": 1}), ("ddpm", {})))
    assert own == ddpm
    assert [len(get("solver", "repaint").make(jump=j, resample=3).plan(grid).evals) for j in (1, 2, 4, 9)] == [13] * 4
    for options, words in (({"jump": 0}, "jump, the steps"), ({"resample": 0}, "resample, how often")):
        with pytest.raises(UsageError, match=words):
            get("solver", "repaint").make(**options)


def test_the_noise_that_leads_back_restores_the_level() -> None:
    """On data at one point every state has the variance of its level, those in between too."""
    point = Gaussian(torch.zeros(2), torch.zeros(2), (2,))
    plan = get("solver", "repaint").make(jump=2, resample=3).plan(TimeGrid([8.0, 4.0, 2.0, 1.0]))
    seeds = torch.arange(20000)
    noise, levels = PhiloxNoise(seeds), {"x[0]": 8.0, "up[0]~0": 8.0, "x[1]~1": 4.0, "x[1]": 4.0, "x[2]~0": 2.0, "x[2]": 2.0, "x[3]": 1.0}
    out = run(plan, point, 8 * noise.normal(LATENT, (2,)), noise, keep=list(levels))
    for name, sigma in levels.items():
        assert float(out[name].std()) == pytest.approx(sigma, rel=0.02), name


def test_the_known_part_is_put_into_every_d_and_nothing_is_told_of_it() -> None:
    counting = Counting(CORRELATED)
    around, x, cond = Replaced(counting), torch.randn(3, *SHAPE, dtype=torch.float64), told(3)
    d = around(x, 2.0, replace(cond, label=torch.zeros(3, dtype=torch.int64)))
    assert torch.equal(d.flatten(1)[:, ~HIDDEN], KNOWN[~HIDDEN].expand(3, 2))
    assert torch.equal(d.flatten(1)[:, HIDDEN], CORRELATED(x, 2.0).flatten(1)[:, HIDDEN])
    assert counting.conds[0].image is None
    assert counting.conds[0].mask is None
    assert counting.conds[0].label is not None
    assert around.cost(2.0) == 1
    plan = get("solver", "heun").make().plan(make_grid("polynomial", 4, RANGE))
    out = run(plan, around, 40 * x, cond=cond)[plan.states[-1]]
    assert_close(out, interpret(plan, around, 40 * x, cond=cond)[plan.states[-1]])


def test_replacement_goes_around_guidance_and_priors() -> None:
    net = network(mixture_data()[1])
    image, mask = torch.rand(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    mask[..., 2:] = 1
    cond = Cond(torch.tensor([0, 1]), image=image, mask=mask, drops=("label", "text"))
    plan = get("solver", "ddpm").make().plan(make_grid("polynomial", 4, (0.002, 80.0), "zero"))
    for inside in (net, guide(net, 2.0), Prior(net, 2), guide(Prior(net, 2), 2.0)):
        with torch.inference_mode():
            out = run(plan, Replaced(inside), 80 * torch.randn(2, 1, 4, 4), PhiloxNoise(torch.arange(2)), cond)[plan.states[-1]]
        assert_close(out[..., :2], image[..., :2])
        assert torch.isfinite(out).all()


def test_a_jump_moves_the_known_part_along_its_own_noise() -> None:
    @dataclass(frozen=True)
    class Flow:
        shape = SHAPE
        classes = 0
        sigma_range = RANGE

        def cost(self, sigma):
            return 1

        def __call__(self, x, sigma, cond=NULL):
            return CORRELATED(x, sigma)

        def jump(self, x, sigma, sigma_to, cond=NULL):
            return CORRELATED.flow(x, sigma, sigma_to)

    noise = torch.randn(2, *SHAPE, dtype=torch.float64)
    x = KNOWN.view(SHAPE) + 5 * noise
    out = jump(Replaced(Flow()), x, 5.0, 2.0, told(2)).flatten(1)
    assert_close(out[:, ~HIDDEN], (KNOWN.view(SHAPE) + 2 * noise).flatten(1)[:, ~HIDDEN])
    assert_close(out[:, HIDDEN], CORRELATED.flow(x, 5.0, 2.0).flatten(1)[:, HIDDEN])


def test_consistency_sampling_with_replacement_is_algorithm_four() -> None:
    """x <- f(x, sigma) with the known part put in, then noise of sqrt(sigma_i^2 - sigma_end^2) (arXiv 2303.01469)."""
    levels, noise = [40.0, 3.0, 0.5, 0.01], PhiloxNoise(torch.arange(3))
    plan = get("solver", "consistency").make().plan(TimeGrid(levels))
    x = KNOWN.view(SHAPE) * (~HIDDEN).view(1, 1, 4) + 40 * noise.normal(LATENT, SHAPE).double()
    found = run(plan, Replaced(CORRELATED), x, noise, told(3))[plan.states[-1]]
    for i, slot in enumerate((None, *plan.noises)):
        if slot is not None:
            x = x + (levels[i] ** 2 - levels[-1] ** 2) ** 0.5 * noise.normal(slot, SHAPE).double()
        x = torch.where(HIDDEN, CORRELATED(x, levels[i]), KNOWN.view(SHAPE))
    assert_close(found, x)


def test_replacement_without_a_picture_is_one_line() -> None:
    x = torch.zeros(2, *SHAPE, dtype=torch.float64)
    image = torch.zeros(2, *SHAPE)
    for cond, words in [
        (NULL, "the condition has no image and no mask"),
        (Cond(image=image), "the condition has no mask"),
        (Cond(image=image, mask=torch.zeros(2, 1, 4, 4)), "a mask of one channel"),
    ]:
        with pytest.raises(UsageError, match=words):
            Replaced(CORRELATED)(x, 1.0, cond)


def test_the_level_of_a_strength() -> None:
    own = (0.002, 80.0)
    for schedule in ("vp", "cosine", "rectified_flow"):
        levels = [level_at(s, own, schedule) for s in (0.0, 0.1, 0.5, 0.9, 1.0)]
        assert levels == sorted(levels)
        assert levels[0] == pytest.approx(0, abs=1e-9)
        assert levels[-1] == 80.0
    assert_allclose(level_at(0.5, own, "cosine"), np.tan(0.5 * np.arctan(80)))
    t = 0.5 * 80 / 81
    assert_allclose(level_at(0.5, own, "rectified_flow"), t / (1 - t))
    grid = make_grid("time_uniform", 4, own)
    for schedule in ("vp", "cosine", "rectified_flow"):
        assert_allclose([level_at(float(s), own, schedule) for s in strengths_of(grid, own, schedule)], grid.sigmas)
    assert_allclose(strengths_of(grid, own), [1, 0.75025, 0.5005, 0.25075, 0.001])


def test_grids_at_a_strength() -> None:
    own = (0.002, 80.0)
    whole = make_grid("polynomial", 6, own, "zero")
    assert_allclose(grid_at("polynomial", 6, own, 1.0, "zero").sigmas, whole.sigmas)
    half = grid_at("polynomial", 6, own, 0.5)
    assert (half.steps, half.sigmas[0], half.sigmas[-1]) == (6, level_at(0.5, own), 0.002)
    student = make_grid("time_uniform", 4, own)
    for strength, steps in ((1.0, 4), (0.88, 4), (0.87, 3), (0.75, 3), (0.6, 2), (0.5, 2), (0.375, 1), (0.25, 1), (0.13, 1)):
        cut = grid_at(student, steps, own, strength)
        assert_allclose(cut.sigmas, student.sigmas[4 - steps :])
        assert grid_at(student, 0, own, strength).steps == steps
    assert_allclose(grid_at("at 5 0.821", 2, own, 0.6).sigmas, [5.0, 0.821, 0.002])
    assert grid_at(make_grid("polynomial", 4, own, "zero"), 0, own, 0.6).sigmas[-1] == 0


def test_strengths_that_cannot_be_are_one_line() -> None:
    own, student = (0.002, 80.0), TimeGrid([80.0, 5.0, 0.002])
    for strength in (-0.1, 1.2, float("nan"), "much", True, None):
        with pytest.raises(UsageError, match=r"strength is a number from 0.* got"):
            grid_at("polynomial", 4, own, strength)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"below the last level 0\.002; use a larger one"):
        grid_at("polynomial", 4, own, 0.0)
    with pytest.raises(UsageError, match=r"nearest to the end of a student with levels at strengths 1\.00, 0\.61, 0\.00.*; use 0\.61 or"):
        grid_at(student, 0, own, 0.2)
    with pytest.raises(Unreachable, match=r"strength 1 leaves 2 of 2 steps of these levels, not 1; 1 are left at strength 0\.61"):
        grid_at(student, 1, own, 1.0)
    with pytest.raises(Unreachable, match="3 are left at no strength"):
        grid_at(student, 3, own, 1.0)
    with pytest.raises(UsageError, match="strengths are times of vp, cosine, rectified_flow, got 'vpp'; did you mean vp"):
        level_at(0.5, own, "vpp")
    with pytest.raises(UsageError, match="a grid of one trajectory"):
        grid_at(TimeGrid([[2.0, 3.0], [1.0, 1.0]]), 0, own, 0.5)


def test_a_task_says_where_sampling_starts() -> None:
    _, data = mixture_data()
    net, seeds = network(data), torch.arange(5)
    for name, starts in (("edit_strokes", True), ("superres_x2", False)):
        task = get("task", name).make().bound(data)
        own = start("philox", seeds, net, 3.0, task)
        noise = 3.0 * PhiloxNoise(seeds).normal(LATENT, net.shape)
        assert own.cond.image is not None
        assert_close(own.x, own.cond.image + noise if starts else noise)


def pictures(count: int) -> Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_edited_pictures_are_functions_of_their_seed_and_picture() -> None:
    net, seeds, images = network(mixture_data()[1]), torch.arange(10, 15), pictures(5)
    mask = torch.zeros(5, 1, 4, 4)
    mask[:, :, :2] = 1
    filled, labels = fewstep.edit(net, "repaint", 3, seeds, images, mask=mask)
    assert labels.tolist() == [0] * 5
    assert_close(filled[:, :, 2:], images[:, :, 2:], rtol=0, atol=0.02)  # the last level is 0.002
    alone, _ = fewstep.edit(net, "repaint", 3, seeds[2:3], images[2:3], mask=mask[2:3])
    assert_close(alone, filled[2:3])
    weak, strong = (fewstep.edit(net, "euler", 4, seeds, images, strength=s)[0] for s in (0.15, 0.9))
    assert (weak - images).norm() < 0.7 * (strong - images).norm()
    assert not torch.equal(fewstep.edit(net, "euler", 4, seeds, images, strength=0.9, label=1)[0], strong)


def test_batches_of_given_pictures_do_not_change_samples() -> None:
    net, seeds, images = network(mixture_data()[1]), torch.tensor([3, 3, 8]), pictures(3)
    plan = get("solver", "ddpm").make().plan(make_grid("polynomial", 3, (0.002, 5.0)))
    asked = Given(Unconditional(), images, starts=True)
    whole = sample_given(plan, net, 5.0, seeds, asked)[0]
    assert_close(sample_given(plan, net, 5.0, seeds, asked, batch=2)[0], whole)
    assert not torch.equal(whole[0], whole[1])  # one seed, two pictures
    x = images + 5 * PhiloxNoise(seeds).normal(LATENT, net.shape)
    with torch.inference_mode():
        assert_close(whole, run(plan, net, x, PhiloxNoise(seeds), Cond(image=images))[plan.states[-1]])


def test_a_model_that_reads_pictures_is_told_them() -> None:
    net, images = network(mixture_data()[1]), pictures(2)
    superres, inpaint = Pictured("bicubic_x2"), Pictured("hidden_centre")
    mask = torch.zeros(2, 1, 4, 4)
    mask[..., 0] = 1
    around, asked = given(net, superres, images, reads=True)
    assert around is net
    cond = asked.conditions(torch.arange(2), net)
    assert cond.label is None
    assert torch.equal(cond.image, images)  # type: ignore[arg-type]
    assert asked.origin(cond) is None
    _, asked = given(net, inpaint, images, mask, reads=True)
    cond = asked.conditions(torch.arange(2), net)
    assert torch.equal(cond.image, images * (1 - mask))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is told a mask, 1 where the picture is hidden, and there is none"):
        given(net, inpaint, images, reads=True)
    with pytest.raises(UsageError, match="is told no mask; leave it out"):
        given(net, superres, images, mask, reads=True)
    assert given(replace(net, null=False), ClassConditional(), images, mask)[1].base == ClassConditional()


def test_pictures_that_do_not_fit_are_one_line() -> None:
    net, seeds, good = network(mixture_data()[1]), torch.arange(2), pictures(2)
    part = torch.zeros(2, 1, 4, 4)
    part[..., 0] = 1
    bad = [
        ({"condition": good}, "give a mask, to fill it in, or a strength, to start from them"),
        ({"condition": pictures(3), "strength": 0.5}, r"shape \[3, 1, 4, 4\], and 2 samples of this model are asked by \[2, 1, 4, 4\]"),
        ({"condition": good[:, :, :3], "strength": 0.5}, "resize it"),
        ({"condition": good.numpy(), "strength": 0.5}, "the condition is a ndarray"),
        ({"condition": (good * 127).byte(), "strength": 0.5}, r"uint8, and pictures are floats in \[-1, 1\]"),
        ({"condition": good + 1.5, "strength": 0.5}, "use images / 127.5 - 1 of uint8"),
        ({"condition": good * torch.nan, "strength": 0.5}, r"pictures are in \[-1, 1\]"),
        ({"condition": good, "strength": 1.5}, "strength is a number from 0"),
        ({"condition": good, "mask": torch.ones(2, 1, 4, 4)}, "hides everything"),
        ({"condition": good, "mask": part[:1]}, "images need"),
        ({"condition": good, "strength": 0.5, "label": 9}, "label 9 is no class of this model, which has 2"),
    ]
    for how, words in bad:
        with pytest.raises(UsageError, match=words) as caught:
            fewstep.edit(net, "euler", 2, seeds, **how)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="guidance 2 is towards a class, and nobody said which"):
        check_guided(2.0, None, net)
    with pytest.raises(UsageError, match="train on a task of a degradation"):
        Given(Unconditional(), good).example(None, None)  # type: ignore[arg-type]


def test_given_pictures_leave_generation_as_it_is() -> None:
    """Started from nothing, a picture of zeros changes no sample."""
    net, seeds = network(mixture_data()[1]), torch.arange(3)
    plan = get("solver", "euler").make().plan(make_grid("polynomial", 3, (0.002, 80.0)))
    asked = Given(ClassConditional(), torch.zeros(3, 1, 4, 4), starts=True)
    found, labels = sample_given(plan, net, 80.0, seeds, asked)
    expected, own = sample(plan, net, 80.0, seeds)
    assert_close(found, expected)
    assert torch.equal(labels, own)
