"""Trainings that are watched from outside: TensorBoard or Weights & Biases, through accelerate's trackers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from fewstep.errors import UsageError, near_misses

NONE = "none"
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}  # what each tracker needs installed


class Tracker(Protocol):
    """What a training tells its numbers to."""

    def log(self, values: dict[str, Any], step: int | None) -> None:
        """Numbers by name, after so many batches of all phases."""
        ...


def check_tracker(name: str) -> None:
    """**Raises**: UsageError for an unknown tracker, and for one whose package is not installed."""
    if name == NONE:
        return
    if name not in PACKAGES:
        raise UsageError(f"unknown log '{name}'{near_misses(name, (NONE, *PACKAGES))}")
    if importlib.util.find_spec(PACKAGES[name]) is None:
        raise UsageError(
            f"log={name} needs the package {PACKAGES[name]}, which is not installed; pip install {PACKAGES[name]}, or log=none"
        )


@contextmanager
def tracking(name: str, folder: Path, run: str, facts: Mapping[str, Any]) -> Iterator[Tracker | None]:
    """A tracker of a run while the block runs, None for `none`; what it writes itself goes to `folder`.

    **Raises**: as `check_tracker`.
    """
    check_tracker(name)
    if name == NONE:
        yield None
        return
    from accelerate import Accelerator  # takes a second

    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=True, mixed_precision="no", log_with=name, project_dir=folder)
    accelerator.init_trackers(run, config={key: str(value) for key, value in facts.items()})
    try:
        yield accelerator
    finally:
        accelerator.end_training()
