"""Pinned noise: layout and pinned values, independence of the batch, and no side effects."""

import math

import pytest
import torch
from torch.testing import assert_close

from fewstep.analytic import GaussianMixture
from fewstep.cond import Cond
from fewstep.errors import UsageError
from fewstep.grid import make_grid
from fewstep.noise import LATENT, EDMNoise, PhiloxNoise, Rng, Slot, make_noise
from fewstep.plugins import entries
from fewstep.sampling.runner import run
from kernels.philox import philox4x32
from methods.solver import draft
from support.each import each

ONES = 0xFFFFFFFF


def teacher() -> GaussianMixture:
    means = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    return GaussianMixture(means, torch.tensor([0.3, 0.4, 0.5]), torch.log(torch.tensor([0.2, 0.3, 0.5])), classes=3)


def _words(values):
    return [torch.tensor([v]) for v in values]


def _box_muller(a: int, b: int) -> list[float]:
    radius, angle = math.sqrt(-2 * math.log((a + 0.5) / 2**32)), 2 * math.pi * b / 2**32
    return [radius * math.cos(angle), radius * math.sin(angle)]


def test_normals_are_box_muller_of_the_known_words():
    # Seed 0, slot 0, block 0 is counter 0 and key 0: the first known answer of Philox4x32-10 in the Random123 distribution.
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    expected = _box_muller(*words[:2]) + _box_muller(*words[2:])
    found = PhiloxNoise(torch.tensor([0])).normal(LATENT, (4,))[0]
    assert_close(found, torch.tensor(expected))


def _word_of(seed: int, slot: Slot, element: int) -> float:
    """One normal from the documented layout: key (low seed word, slot), counter (block, high seed word, 0, 0), lane = element mod 4."""
    block, lane = divmod(element, 4)
    words = philox4x32(_words([block, seed >> 32, 0, 0]), _words([seed & ONES, slot.step << 8 | slot.role]))
    a, b = (int(w) for w in words[lane // 2 * 2 : lane // 2 * 2 + 2])
    return _box_muller(a, b)[lane % 2]


@pytest.mark.parametrize(("seed", "slot"), [(5, LATENT), (2**40 + 17, Slot(3, 1)), (2**62 - 1, Slot(999, 255))])
def test_the_layout_of_seed_slot_and_element(seed, slot):
    found = PhiloxNoise(torch.tensor([seed])).normal(slot, (1, 3, 3))[0].flatten()
    assert_close(found, torch.tensor([_word_of(seed, slot, e) for e in range(9)]))


def test_pinned_values():
    # Fixed by the layout above; a change here changes every sample that was ever recorded.
    found = PhiloxNoise(torch.tensor([12345])).normal(Slot(2, 1), (2, 2))
    assert_close(found, torch.tensor([[[-0.51448143, 0.77104557], [0.33842731, 0.56687737]]]))


@pytest.mark.parametrize("slot", [LATENT, Slot(4, 2)])
def test_noise_is_bit_equal_for_any_batch(slot):
    seeds = torch.arange(1000, 1064)
    whole = PhiloxNoise(seeds)
    for size in (1, 7, 64):
        parts = [PhiloxNoise(s) for s in seeds.split(size)]
        assert torch.equal(torch.cat([p.normal(slot, (1, 8, 8)) for p in parts]), whole.normal(slot, (1, 8, 8)))


def test_philox_noise_is_unit_normal_and_uncorrelated():
    # 200 x 1024 draws: the mean's standard error is 0.0022, the variance's 0.0031, a correlation's 0.0022; four to five of them.
    a = PhiloxNoise(torch.arange(200)).normal(LATENT, (1024,)).double()
    b = PhiloxNoise(torch.arange(200)).normal(Slot(1), (1024,)).double()
    assert abs(float(a.mean())) < 0.01
    assert abs(float(a.var()) - 1) < 0.015
    assert abs(float((a**3).mean())) < 0.04  # sqrt(15 / 204800) = 0.0086
    assert abs(float((a**4).mean()) - 3) < 0.1  # sqrt(96 / 204800) = 0.022
    for pair in ((a, b), (a[:, :-1], a[:, 1:]), (a[:-1], a[1:])):  # slots, elements, seeds
        assert abs(float((pair[0] * pair[1]).mean())) < 0.01


def test_edm_noise_is_the_published_protocol():
    # Per image: one generator seeded with the seed; latent first, then the class, then the sampler's draws.
    seeds, shape = [3, 2**32 + 3, 7], (3, 4, 4)
    noise = EDMNoise(torch.tensor(seeds), 10)
    latent, labels, churn = noise.normal(LATENT, shape), noise.drawn_classes, noise.normal(Slot(1), shape)
    for i, seed in enumerate(seeds):
        g = torch.Generator().manual_seed(seed % 2**32)
        assert torch.equal(latent[i], torch.randn(shape, generator=g))
        assert labels[i] == torch.randint(10, (), generator=g)
        assert torch.equal(churn[i], torch.randn(shape, generator=g))
    assert torch.equal(latent[0], latent[1])  # seeds are taken modulo 2^32


def test_edm_noise_refuses_draws_out_of_order():
    noise = EDMNoise(torch.tensor([0]))
    noise.normal(Slot(1), (2,))
    with pytest.raises(UsageError, match="in order"):
        noise.normal(LATENT, (2,))
    with pytest.raises(UsageError, match="in order"):
        noise.normal(Slot(1), (2,))


def test_unknown_noise_names_the_near_misses():
    with pytest.raises(UsageError, match="unknown noise 'philix'; did you mean philox"):
        make_noise("philix", torch.tensor([0]))
    assert isinstance(make_noise("edm", torch.tensor([0])), EDMNoise)


@each("kind", ["philox", "edm"])
@pytest.mark.parametrize("name", list(entries("solver")))
def test_sampling_leaves_the_global_generator_alone(name, kind):
    grid = make_grid("polynomial", 3, (0.002, 80.0))
    before = torch.random.get_rng_state()
    noise = make_noise(kind, torch.arange(3))
    run(draft(entries("solver")[name].make()).plan(grid), teacher(), 80 * noise.normal(LATENT, (2,)).double(), noise)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "consistency"])
def test_images_do_not_depend_on_the_batch_size(name):
    plan = entries("solver")[name].make().plan(make_grid("polynomial", 4, (0.002, 80.0)))

    def sample(seeds):
        noise = PhiloxNoise(seeds)
        return run(plan, teacher(), 80 * noise.normal(LATENT, (2,)).double(), noise, Cond(seeds % 3))[plan.states[-1]]

    seeds = torch.arange(64)
    whole = sample(seeds)
    for size in (1, 7):
        parts = torch.cat([sample(s) for s in seeds.split(size)])
        assert_close(parts, whole, atol=1e-10, rtol=0)  # the stated bar; matrix products may round differently per shape


def test_training_randomness_is_a_function_of_its_names():
    a, b, other = Rng((0, 1, 2)), Rng((0, 1, 2)), Rng((0, 1, 3))
    first = a.normal((4,))
    assert torch.equal(first, b.normal((4,)))
    assert not torch.equal(first, a.normal((4,)))  # the next call is a fresh draw
    assert not torch.equal(first, other.normal((4,)))
    assert torch.equal(a.integers(10, (8,)), _third(Rng((0, 1, 2))))
    drawn = Rng((5,)).uniform((1000,))
    assert 0 <= float(drawn.min()) <= float(drawn.max()) < 1


def _third(rng: Rng) -> torch.Tensor:
    rng.normal((4,))
    rng.normal((4,))
    return rng.integers(10, (8,))


@pytest.mark.parametrize("slot", [Slot(0, 256), Slot(1 << 24), Slot(-1)])
def test_slots_that_would_share_their_noise_are_refused(slot):
    with pytest.raises(UsageError, match="does not fit the noise key"):
        PhiloxNoise(torch.arange(2)).normal(slot, (4,))
