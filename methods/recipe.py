"""How a training is run, whatever its method: part of its address where it is not the default."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.assets import asking
from fewstep.errors import UsageError, near_misses
from fewstep.nets.readers.card import here, resolve
from methods.initial import digest_of, digest_of_file, file_of
from methods.training import described, later

PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class Recipe:
    """`condition_dropout`: how often what guidance drops (a label) is dropped from a training example, so that the branch stays which
    guidance needs; phases whose networks are told the guidance weight drop nothing. `precision` is `no` (float32), `bf16` or `fp16`
    (autocast, the latter with scaled losses); `accumulate` microbatches, each drawn from a stream of its own, share one optimiser step.
    `compile`: the trained networks' forward passes are compiled. `init_from`: where the weights are that the student starts from (see
    `methods.initial`) in place of its method's own; some methods have an option `init`, which is another. `weights`: the file of a student
    that is there already, published or exported: it is read, and nothing is trained. Without `ramp` averages have their decay from the
    first batch on (see `Ema`): in long trainings, as in the published codes. `freeze`: a part of the student's network, by its name in the
    network (`branch` of one that is told pictures), that keeps its weights.

    **Raises**: UsageError for a share that is none, an unknown precision, and weights that are not there.
    """

    condition_dropout: float = 0.1
    precision: str = "no"
    accumulate: int = 1
    compile: bool = later(False)
    init_from: str = later("")
    weights: str = later("")
    ramp: bool = later(True)
    freeze: str = later("")

    def __post_init__(self) -> None:
        if not 0 <= self.condition_dropout <= 1:
            raise UsageError(f"condition_dropout is a probability, got {self.condition_dropout:g}; use e.g. 0.1")
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision '{self.precision}'{near_misses(self.precision, PRECISIONS)}")
        if self.init_from:
            file_of(self.init_from)
        if self.weights and not asking(Path(self.weights).name):  # those that can be fetched may still come
            resolve(self.weights)

    def given(self) -> dict[str, Any]:
        """The fields that are not the default."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}

    def changed(self) -> dict[str, Any]:
        """What an address holds: the fields that are not the default, and of weights what they are, not where; of a student that can be
        fetched and is not here, whose rows have no number, nothing."""
        files = {"init_from": digest_of(self.init_from)} if self.init_from else {}
        given = {"weights": digest_of_file(self.weights) if here(self.weights) else ""} if self.weights else {}
        return self.given() | files | given

    def identity(self) -> str:
        """What a checkpoint must share with the training that goes on with it."""
        return described(dataclasses.replace(self, init_from="")) + (f" init_from={self.changed()['init_from']}" if self.init_from else "")


DEFAULT = Recipe()
FIELDS = tuple(f.name for f in dataclasses.fields(Recipe))


def split(options: Mapping[str, Any]) -> tuple[dict[str, Any], Recipe]:
    """A method's own options, and the recipe that the others describe. **Raises**: UsageError for values that a recipe refuses."""
    for name in FIELDS:
        default = getattr(DEFAULT, name)
        value = options.get(name, default)
        allowed = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, allowed) or (isinstance(value, bool) and not isinstance(default, bool)):
            raise UsageError(f"a training's {name} must be like {default!r}, got {value!r}")
    own = {name: value for name, value in options.items() if name not in FIELDS}
    return own, Recipe(**{name: value for name, value in options.items() if name in FIELDS})
