"""How several processes share the steps of a training: whole microbatches where they come out even, else the examples of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.store.world import World
from bench.training.signals import ENDING
from methods.recipe import Recipe
from methods.training import Trainable, Undivided


def why_alone(method: Trainable, recipe: Recipe, size: int) -> str:
    """Why so many processes cannot share a training's steps; empty where they can."""
    if recipe.accumulate % size == 0:
        return ""
    if isinstance(method, Undivided):
        return f"its losses have {method.undivided}; accumulate={size} or a multiple gives each whole microbatches, and another student"
    least = min(phase.batch_size for phase in method.phases()) // recipe.accumulate
    return f"a microbatch has {least} examples" if least < size else ""


@dataclass(frozen=True)
class Part:
    """What a process computes of a microbatch: `rows` (first, last, whole) of its examples, all of them where that is None."""

    micro: int
    size: int
    rows: tuple[int, int, int] | None = None

    @property
    def share(self) -> float:
        """The weight of its mean in the microbatch's."""
        return 1.0 if self.rows is None else self.size / self.rows[2]


def parts_of(world: World, microbatches: int, size: int) -> list[Part]:
    """The parts of a step of so many microbatches that are this process's."""
    if microbatches % world.size == 0:
        return [Part(micro, size) for micro in world.share(range(microbatches))]
    first, last = world.rows(size)
    return [Part(micro, last - first, (first, last, size)) for micro in range(microbatches)]


@dataclass(frozen=True)
class Wish:
    """What a process wants after the step at hand, as numbers that are summed along with the gradients: to end, for a signal that it has
    noted, or (the first alone) to write a checkpoint."""

    signal: int = 0
    checkpoint: bool = False

    def numbers(self) -> list[float]:
        return [*(float(self.signal == signal) for signal in ENDING), float(self.checkpoint)]


def agreed(sums: Sequence[float]) -> Wish:
    """What all of them do then."""
    return Wish(next((signal for signal, count in zip(ENDING, sums) if count), 0), bool(sums[-1]))
