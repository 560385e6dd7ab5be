"""Processes share the steps of a training: the examples of a batch, each with the numbers that it has in the whole one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.jobs.fits import costs
from bench.jobs.fits.pairs import probe_pairs
from bench.store.world import World
from bench.training.engine import Engine, Settings
from bench.training.sharing import Wish, agreed, parts_of, why_alone
from bench.training.signals import ENDING
from fewstep.denoiser import leaf
from fewstep.errors import UsageError
from fewstep.noise import Rng
from fewstep.plugins import entries, get
from methods.distiller import Paired
from methods.recipe import Recipe
from methods.start import WarmStarted
from methods.training import State, Undivided
from support.each import each
from support.tiny import VARIANTS, data_of, made, mixture_data, network, teacher_of

COUNT = 7  # which two processes cannot share evenly
TRAININGS = [("distiller", name) for name in (*entries("distiller"), *VARIANTS)] + [("pretrain", name) for name in entries("pretrain")]


def gradients(kind: str, name: str, part: tuple[int, int, int] | None) -> list[list[Tensor]]:
    """Of each loss of the first batch of each phase, in float64."""
    form, data = mixture_data()
    teacher = teacher_of(name, data)
    leaf(teacher).net.double()
    teacher = WarmStarted(form, teacher) if name == "warm_start" else teacher
    method = made(name) if kind == "distiller" else get(kind, name).make()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = {key: net.double().eval() for key, net in method.build(teacher).items()}
    source = probe_pairs(data) if isinstance(method, Paired) else data_of(method, teacher, data)
    count = COUNT if part is None else part[1] - part[0]
    found = []
    for phase in method.phases():
        emas = {key: nets[ema.net] for key, ema in phase.emas.items()}
        batch = source.draw(count, Rng((1,), part=part))
        for loss in method.losses(State(teacher, nets, emas, phase), batch, Rng((2,), part=part)):
            own = list(nets[loss.net].parameters())
            found.append([g for g in torch.autograd.grad(loss.value, own, retain_graph=True, allow_unused=True) if g is not None])
    return found


@each("kind, name", [(kind, name) for kind, name in TRAININGS if name != "classifier"])  # whose network takes 8x8 images
def test_the_parts_of_a_batch_have_the_gradient_of_the_whole(kind: str, name: str) -> None:
    """Or the method says what it takes of the whole batch."""
    method = made(name) if kind == "distiller" else get(kind, name).make()
    if isinstance(method, Undivided):
        assert method.undivided in why_alone(method, Recipe(), 2)
        pytest.skip(method.undivided)
    whole, (first, second) = gradients(kind, name, None), (gradients(kind, name, part) for part in ((0, 3, COUNT), (3, COUNT, COUNT)))
    assert len(whole) == len(first) == len(second) > 0
    for of, a, b in zip(whole, first, second, strict=True):
        for mine, one, two in zip(of, a, b, strict=True):
            # Networks in float64; their noise, levels and losses pass through float32.
            torch.testing.assert_close((3 * one + 4 * two) / COUNT, mine, rtol=2e-4, atol=1e-6 * float(mine.abs().max() + 1e-3))


def test_a_part_has_the_numbers_that_it_has_in_the_whole() -> None:
    draws = (lambda rng, n: rng.normal((n, 2)), lambda rng, n: rng.uniform((n,)), lambda rng, n: rng.integers(9, (n, 1)))
    for draw in draws:
        whole, parts = draw(Rng((5,)), COUNT), [draw(Rng((5,), part=(a, b, COUNT)), b - a) for a, b in ((0, 3), (3, 7))]
        assert torch.equal(torch.cat(parts), whole)
    for shape in ((), (2,), (COUNT,)):
        with pytest.raises(UsageError, match="are no rows of 3 examples"):
            Rng((5,), part=(0, 3, COUNT)).normal(shape)


def test_every_example_is_somebodys() -> None:
    for size in (1, 2, 3, 8):
        for count in (8, 9, 31):
            rows = [World(rank, size).rows(count) for rank in range(size)]
            assert rows[0][0] == 0
            assert rows[-1][1] == count
            assert all(a[1] == b[0] and a[1] > a[0] for a, b in itertools.pairwise(rows))
    whole, shared = parts_of(World(1, 2), 4, 8), parts_of(World(1, 2), 3, 9)
    assert [(p.micro, p.size, p.rows, p.share) for p in whole] == [(1, 8, None, 1.0), (3, 8, None, 1.0)]
    assert [(p.micro, p.size, p.rows) for p in shared] == [(micro, 5, (4, 9, 9)) for micro in range(3)]
    assert sum(parts_of(World(rank, 2), 3, 9)[0].share for rank in range(2)) == pytest.approx(1)


def test_what_cannot_be_shared_is_said(tmp_path: Path) -> None:
    _, data = mixture_data()
    assert not why_alone(made("cd"), Recipe(), 8)
    assert "a microbatch has 2 examples" in why_alone(made("cd", batch_size=8), Recipe(accumulate=4), 3)
    assert "gradients of the whole batch; accumulate=8 or a multiple" in why_alone(made("ctm_gan"), Recipe(), 8)
    assert not why_alone(made("ctm_gan"), Recipe(accumulate=8), 8)
    with pytest.raises(UsageError, match="2 processes cannot share the steps of a training: its losses have weights"):
        Engine(made("ctm"), network(data), data, tmp_path, Settings(world=World(0, 2)))


def test_what_one_process_wishes_all_of_them_do() -> None:
    wishes = [Wish(), Wish(checkpoint=True), Wish(ENDING[1])]
    sums = [sum(numbers) for numbers in zip(*(wish.numbers() for wish in wishes), strict=True)]
    assert agreed(sums) == Wish(ENDING[1], True)
    assert agreed(Wish().numbers()) == Wish()


def test_a_cost_is_that_of_a_process_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the whole batch might not even have the memory for."""
    seen = []

    def seconds(of: Any, teacher: object, data: object, how: Settings) -> float:
        seen.append((of.phases()[0].batch_size, how.recipe.accumulate))
        return 1.0

    monkeypatch.setattr(costs, "_seconds", seconds)
    _, data = mixture_data()
    for recipe, wanted in ((Recipe(), (16, 1)), (Recipe(accumulate=8), (16, 1)), (Recipe(accumulate=2), (16, 2))):
        costs.probe_seconds(made("cd", batch_size=128), network(data), data, Settings(recipe=recipe, world=World(3, 8)))
        assert seen[-1] == wanted
