"""A training's recipe: what is dropped, and what of it is part of an address."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.jobs.fits.fit import changed
from bench.training.engine import Engine, Settings
from fewstep.cond import Cond
from fewstep.data.source import Batch
from fewstep.errors import UsageError
from methods.recipe import DEFAULT, Recipe, split
from methods.training import Loss, Optim, Phase, State
from support.each import each
from support.tiny import mixture_data, network


@dataclass(frozen=True)
class Sees:
    """Trains nothing, and keeps what it is told."""

    told: list[Batch]
    drops: bool = True
    version: int = 1

    def build(self, teacher) -> dict[str, nn.Module]:
        return {"student": nn.Linear(1, 1)}

    def phases(self):
        return [Phase("one", 20, 50, {"student": Optim("adam", 1e-3)}, drops=self.drops)]

    def losses(self, state: State, batch: Batch, rng) -> Iterator[Loss]:
        self.told.append(batch)
        yield Loss(state.nets["student"](torch.ones(1, 1)).sum(), "student")


def told(tmp_path: Path, recipe: Recipe, drops: bool = True) -> list[Batch]:
    seen: list[Batch] = []
    data = mixture_data()[1]
    Engine(Sees(seen, drops), network(data), data, tmp_path, Settings(recipe=recipe, progress=False)).run()
    return seen


def test_a_share_of_the_labels_is_dropped(tmp_path: Path) -> None:
    batches = told(tmp_path, Recipe(condition_dropout=0.25))
    labels = torch.cat([b.cond.label for b in batches if b.cond.label is not None])
    whole = torch.cat([b.undropped.label for b in batches if b.undropped.label is not None])
    classes = mixture_data()[1].classes
    dropped = labels == classes
    assert abs(float(dropped.float().mean()) - 0.25) < 0.06  # 1,000 labels: four standard errors
    assert torch.equal(labels[~dropped], whole[~dropped])
    assert int((whole == classes).sum()) == 0
    assert len({tuple((b.cond.label == classes).tolist()) for b in batches}) > 15  # drawn anew for every batch


@each(("recipe", "drops"), [(Recipe(condition_dropout=0.0), True), (DEFAULT, False)])
def test_nothing_is_dropped_where_it_must_not_be(recipe: Recipe, drops: bool, tmp_path: Path) -> None:
    for batch in told(tmp_path / str(drops), recipe, drops):
        assert int((batch.cond.label == mixture_data()[1].classes).sum()) == 0


def test_dropping_everything_leaves_the_null_label(tmp_path: Path) -> None:
    for batch in told(tmp_path, Recipe(condition_dropout=1.0)):
        assert set(batch.cond.label.tolist()) == {mixture_data()[1].classes}
        assert isinstance(batch.undropped, Cond)


def test_options_are_parted_into_the_methods_and_the_recipes() -> None:
    own, recipe = split({"lr": 1e-3, "condition_dropout": 0, "accumulate": 2})
    assert own == {"lr": 1e-3}
    assert recipe == Recipe(condition_dropout=0, accumulate=2)
    assert changed("distiller", "cd", {"batches": 1000, "lr": 1e-3, "condition_dropout": 0.1}) == {"lr": 1e-3}
    assert changed("distiller", "cd", {"condition_dropout": 0.0, "precision": "bf16"}) == {"condition_dropout": 0.0, "precision": "bf16"}


@each(
    ("options", "line"),
    [
        ({"condition_dropout": 1.5}, "condition_dropout is a probability, got 1.5; use e.g. 0.1"),
        ({"condition_dropout": "half"}, "a training's condition_dropout must be like 0.1, got 'half'"),
        ({"accumulate": True}, "a training's accumulate must be like 1, got True"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
    ],
)
def test_what_is_no_recipe_is_refused(options: dict, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        split(options)
