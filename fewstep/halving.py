"""As many images at once as a device has room for: where it has none, half as many, and half of that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from fewstep.errors import UsageError

T = TypeVar("T")


@dataclass(eq=False)
class Halving:
    """Work on images, at most `size` of them at once, and from then on fewer where that was too much for `device`.

    Whoever waits is told by `say` when fewer have worked: `work` names it ("the samples of ..."), `hint` what spares the try (`batch={}`).
    Results of other batches differ by rounding.
    """

    size: int
    device: str
    work: str
    say: Callable[[str], None]
    hint: str = ""
    asked: int = field(init=False)

    def __post_init__(self) -> None:
        self.asked = self.size

    def of(self, count: int, run: Callable[[int], T]) -> T:
        """`run(size)` for `count` images, from the start again with half as many at once while there is no room for them.

        **Raises**: UsageError where there is none for a single one.
        """
        import torch

        size = tried = min(self.size, count)
        while True:
            try:
                found = run(size)
                break
            except torch.OutOfMemoryError as err:
                if size <= 1:
                    raise UsageError(f"{self.device} has no room for one image of {self.work}; free some of it, or use device=cpu") from err
                size //= 2
        if size < tried:
            self.size = size
            spared = f": {self.hint.format(size)} spares the try" if self.hint else ""
            self.say(f"{self.device} has no room for {tried} images of {self.work} at once; going on with {size}{spared}")
        return found

    @property
    def notes(self) -> dict[str, int]:
        """What a part's notes and a record say: nothing where all went as it was asked for."""
        return {} if self.size == self.asked else {"batch": self.size}


def fewest(notes: Iterable[Mapping[str, float]]) -> dict[str, int]:
    """What a record says of the notes of its parts: the smallest batch, where one had to be smaller than was asked for."""
    shrunk = [int(note["batch"]) for note in notes if "batch" in note]
    return {"batch": min(shrunk)} if shrunk else {}
