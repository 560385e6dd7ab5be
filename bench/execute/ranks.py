"""Processes that `torchrun` started: the first goes through the graph, the others do their share of its large jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bench.jobs.session import Session
from bench.jobs.work import help_first
from bench.store.world import Lost, World, alone_heard


@contextmanager
def _leading(world: World) -> Iterator[None]:
    """Let the others go when the block ends, with an error or without."""
    try:
        yield
    except Lost:
        raise
    except Exception:
        world.told(lambda: "")
        raise
    world.told(lambda: "")


def led(session: Session, first: Callable[[], int]) -> int:
    """The exit code of what the first process does, in all; the others say nothing, and end when it has no more jobs to share."""
    world = session.world
    if world.first:
        with _leading(world):
            code = first()
        return world.told(lambda: code)
    with alone_heard(world):
        help_first(session)
    return world.told(lambda: 0)
