"""Tasks: what samples and training examples are asked for, and what guidance and training drop of it."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fewstep.cond import NULL, Cond
from fewstep.data.images import ImageData
from fewstep.data.source import Batch
from fewstep.errors import UsageError
from fewstep.grid import make_grid
from fewstep.guidance import guide
from fewstep.noise import LATENT, EDMNoise, Rng
from fewstep.plugins import entries, get
from fewstep.sampling.draw import sample, start
from fewstep.tasks.generation import ClassConditional, Unconditional, task_for
from fewstep.tasks.task import Paired, origin_of
from support.tiny import mixture_data, network


@dataclass(frozen=True)
class Asked:
    classes: int = 10
    shape: tuple[int, ...] = (3, 4, 4)


SEEDS = torch.arange(2000)


def test_a_full_run_has_as_many_of_each_class() -> None:
    label = ClassConditional().conditions(SEEDS, Asked()).label
    assert label is not None
    assert torch.bincount(label).tolist() == [200] * 10


def test_the_published_rule_draws_the_class_after_the_first_noise() -> None:
    label = ClassConditional("edm").conditions(SEEDS[:5], Asked()).label
    assert label is not None
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        torch.randn(3, 4, 4, generator=g)
        assert label[seed] == torch.randint(10, (), generator=g)
    own = start("edm", SEEDS[:5], network(mixture_data()[1]), 1.0, ClassConditional("edm"))
    assert isinstance(own.source, EDMNoise)
    assert torch.equal(own.cond.label, own.source.drawn_classes)  # what its noise left out is what the task asked for


def test_another_rule_is_refused() -> None:
    with pytest.raises(UsageError, match="class_conditional draws labels balanced or edm, got 'egm'; did you mean edm"):
        ClassConditional("egm")


def scenery() -> ImageData:
    """Twelve images with labels, half of them held out."""
    x = np.random.RandomState(0).uniform(-1, 1, (12, 3, 8, 8)).astype(np.float32)
    return ImageData("scenery", 3, x[:6], np.arange(6) % 3, x[6:], np.arange(6) % 3)


@pytest.mark.parametrize("name", list(entries("task")))
def test_conditions_are_of_their_own_seed_alone(name: str) -> None:
    task, asked = get("task", name).make(), Asked(3, (3, 8, 8))
    task = task.bound(scenery()) if isinstance(task, Paired) else task
    whole, parts = task.conditions(SEEDS[:64], asked), [task.conditions(part, asked) for part in SEEDS[:64].split(7)]
    for field in whole.names():
        assert torch.equal(getattr(whole, field), torch.cat([getattr(part, field) for part in parts]))
    assert task.conditions(SEEDS[:3], replace(asked, classes=0)).label is None
    x = torch.randn(2, 3, 8, 8)
    assert_close(task.pixels(x), x)


@pytest.mark.parametrize("name", [name for name, entry in entries("task").items() if isinstance(entry.make(), Paired)])
def test_a_task_of_pictures_asks_by_what_it_measures_against(name: str) -> None:
    """Sample i by held-out image i, whose degradation it is told; training by its own images, seeds from the batch's stream."""
    data = scenery()
    task = get("task", name).make(each=2).bound(data)
    targets, cond = task.targets(SEEDS[:14]), task.conditions(SEEDS[:14], Asked(3, (3, 8, 8)))
    assert torch.equal(targets, torch.from_numpy(data.heldout_x[np.arange(14) // 2 % 6]))
    told = get("degradation", task.degradation).make()(targets, SEEDS[:14] // 2)  # the samples of an image are asked by one picture
    assert torch.equal(cond.image, told.image)
    assert (cond.mask is None) == (told.mask is None)
    assert cond.mask is None or torch.equal(cond.mask, told.mask)
    assert task.channels((3, 8, 8)) == 3 + (cond.mask is not None)
    assert (cond.label is not None) == task.labels
    assert (origin_of(task, cond) is not None) == name.startswith("edit")
    batch = Batch(targets, Cond(torch.arange(14) % 3))
    own, again = task.example(batch, Rng((1,))).cond, task.example(batch, Rng((1,))).cond
    assert torch.equal(own.image, again.image)
    assert own.image.shape == targets.shape
    with pytest.raises(UsageError, match="the task has no data; bind it to data"):
        get("task", name).make().conditions(SEEDS[:2], Asked())


def test_a_model_is_asked_for_what_it_knows() -> None:
    assert task_for(Asked()) == ClassConditional()
    assert task_for(Asked(classes=0)) == Unconditional()
    assert task_for(Asked(), "unconditional") == Unconditional()


def test_the_unconditional_task_asks_a_conditional_network_for_no_class() -> None:
    net = network(mixture_data()[1])
    plan = get("solver", "euler").make().plan(make_grid("polynomial", 3, (0.002, 80.0)))
    found, labels = sample(plan, net, 80.0, SEEDS[:4], task=Unconditional())
    expected, _ = sample(plan, replace(net, classes=0), 80.0, SEEDS[:4])
    assert labels.tolist() == [0] * 4
    assert_close(found, expected)
    batch = Batch(torch.zeros(4, 1, 4, 4), Cond(torch.arange(4)))
    assert Unconditional().example(batch, Rng((0,))).cond == NULL


def test_training_puts_the_null_label_where_it_drops() -> None:
    cond = Cond(torch.tensor([0, 1, 2]), image=torch.ones(3, 1, 2, 2), scalars={"w": torch.ones(3)}, drops=("label",))
    dropped = cond.where(torch.tensor([True, False, True]), ClassConditional().null(cond, Asked()))
    assert dropped.label is not None
    assert dropped.label.tolist() == [10, 1, 10]
    assert torch.equal(dropped.image, cond.image)  # type: ignore[arg-type]
    assert dropped.scalars["w"].tolist() == [1, 1, 1]
    assert ClassConditional().null(NULL, Asked()) == NULL


def test_guidance_drops_what_the_task_says() -> None:
    """A model that is always given an image, as in super-resolution, keeps it in the branch without a label."""
    image = torch.ones(2, 1, 4, 4)
    cond = Cond(torch.tensor([0, 1]), image=image, drops=("label",))
    free = cond.unconditional()
    assert free.label is None
    assert free.image is image

    class Seeing:
        """D = image + label, label 0 where there is none."""

        shape, classes, sigma_range = (1, 4, 4), 2, (0.01, 80.0)

        def __init__(self) -> None:
            self.calls = 0

        def cost(self, sigma: float) -> int:
            return 1

        def __call__(self, x, sigma, cond=NULL):
            self.calls += 1
            label = torch.where(cond.label == 2, 0, cond.label).view(-1, 1, 1, 1)
            return x * 0 + cond.image + label

    seeing = Seeing()
    found = guide(seeing, 3.0)(torch.zeros(2, 1, 4, 4), 1.0, cond)
    assert seeing.calls == 1  # one batch of both branches
    assert_close(found[:, 0, 0, 0], torch.tensor([1.0, 4.0]))  # 1 + 3 label: the image is in both branches


def test_the_first_noise_is_the_latent() -> None:
    net = network(mixture_data()[1])
    own = start("philox", SEEDS[:3], net, 2.0)
    assert_close(own.x, 2 * own.source.normal(LATENT, net.shape))
