"""Work whose images have no room at once is done in halves."""

import pytest
import torch

from bench.training.accounting import no_room
from fewstep.errors import UsageError
from fewstep.halving import Halving, fewest
from methods.training import Phase


def test_halves_until_there_is_room_and_says_so_once() -> None:
    said, asked = list[str](), list[int]()

    def run(size: int) -> int:
        asked.append(size)
        if size > 7:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return size

    halving = Halving(250, "cuda", "the samples", said.append, "batch={}")
    assert halving.of(3, run) == 3  # fewer images than the batch, with room
    assert not said
    assert halving.notes == {}
    assert halving.of(100, run) == 6
    assert asked == [3, 100, 50, 25, 12, 6]
    assert said == ["cuda has no room for 100 images of the samples at once; going on with 6: batch=6 spares the try"]
    assert halving.of(100, run) == 6  # and is not tried again
    assert len(said) == 1
    assert halving.notes == {"batch": 6}
    assert fewest([{"passes": 3.0}, {"batch": 6}, {"batch": 12}]) == {"batch": 6}
    assert fewest([{"passes": 3.0}]) == {}


def test_one_image_without_room_is_refused_and_other_errors_are_left_alone() -> None:
    def full(size: int) -> int:
        raise torch.OutOfMemoryError

    with pytest.raises(UsageError, match="cuda has no room for one image of the samples; free some of it, or use device=cpu"):
        Halving(4, "cuda", "the samples", print).of(4, full)
    with pytest.raises(ZeroDivisionError):
        Halving(4, "cuda", "the samples", print).of(4, lambda size: 1 // 0)


def test_a_training_without_room_is_told_the_next_accumulate() -> None:
    def told(accumulate: int, processes: int = 1) -> str:
        return no_room(Phase("main", 10, 12, {}), accumulate, processes, "cuda")

    assert told(1) == (
        "cuda has no room for 12 training images at once (phase main, batches of 12); "
        "train with accumulate=2 (in a suite suite.options.NAME.accumulate=2)"
    )
    assert "for 3 training images at once" in told(4)
    assert "accumulate=6" in told(4)
    assert "accumulate=12" in told(4, 4)
    assert told(12).endswith("take a smaller network")
