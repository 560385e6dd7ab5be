"""Samples that pictures of a user's own are the condition of: told to a model that reads them, or put into one that never saw any."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.calls import check_seeds
from fewstep.checks import check_count
from fewstep.denoiser import Denoiser, Preconditioned, knows_null, leaf
from fewstep.errors import UsageError
from fewstep.plugins import get
from fewstep.replacement import Replaced
from fewstep.sampling.draw import sample
from fewstep.sampling.plan import Plan
from fewstep.strength import check_strength, grid_at
from fewstep.tasks.generation import Unconditional, task_for
from fewstep.tasks.given import Given
from fewstep.tasks.task import Paired, Task


def given(
    denoiser: Denoiser,
    task: Task,
    condition: Tensor,
    mask: Tensor | None = None,
    strength: float | None = None,
    label: int | None = None,
    reads: bool = False,
) -> tuple[Denoiser, Given]:
    """The denoiser and the task that pictures [N, *shape] make of a model's own.

    A model that `reads` pictures is told them, with a mask where its task has one; any other needs a mask, whose known part is put into
    every D (`Replaced`), or a strength, and starts from the pictures. They are of the class `label`, by default of none where a network
    knows that. **Raises**: UsageError where neither is given, for a mask that the task lacks or has no use for, for a strength outside of
    0 to 1, and for no class of the model.
    """
    if strength is not None:
        check_strength(strength)
    if label is not None and not 0 <= label < denoiser.classes:
        raise UsageError(f"label {label} is no class of this model, which has {denoiser.classes}; leave it out, or use one of them")
    asked: Task = Unconditional() if knows_null(denoiser) else task_for(denoiser)
    if not reads:
        if mask is None and strength is None:
            raise UsageError("this model was not trained on pictures: give a mask, to fill it in, or a strength, to start from them")
        return (denoiser if mask is None else Replaced(denoiser)), Given(asked, condition, mask, True, label)
    wants = isinstance(task, Paired) and task.channels(denoiser.shape) > denoiser.shape[0]
    if wants != (mask is not None):
        lacks = "is told a mask, 1 where the picture is hidden, and there is none; give one" if wants else "is told no mask; leave it out"
        raise UsageError(f"this model {lacks}")
    return denoiser, Given(asked, condition, mask, strength is not None, label)


def check_guided(scale: float, label: int | None, denoiser: Denoiser) -> None:
    """**Raises**: UsageError for guidance of pictures of no class, which would change nothing."""
    if scale != 1 and label is None and knows_null(denoiser):
        raise UsageError(f"guidance {scale:g} is towards a class, and nobody said which the pictures are of; give a label, or guidance 1")


def sample_given(
    plan: Plan, denoiser: Denoiser, sigma_max: float, seeds: Tensor, asked: Given, noise: str = "philox", batch: int = 250
) -> tuple[Tensor, Tensor]:
    """Samples and labels of seeds [N], each asked by its row of the pictures; they do not depend on `batch`."""
    check_seeds(seeds)
    check_count("batch", batch, 1, "it is how many samples are made at once, e.g. 250")
    asked.check(len(seeds), denoiser)
    found = list[tuple[Tensor, Tensor]]()
    for first in range(0, len(seeds), batch):
        rows = slice(first, first + batch)
        found.append(sample(plan, denoiser, sigma_max, seeds[rows], noise, batch, task=asked[rows]))
    images, labels = zip(*found, strict=True)
    return torch.cat(images), torch.cat(labels)


def edit(
    denoiser: Denoiser,
    solver: str,
    steps: int,
    seeds: Tensor,
    condition: Tensor,
    mask: Tensor | None = None,
    strength: float | None = None,
    label: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Images [N, *shape] and labels [N] that a denoiser makes of pictures [N, *shape] in [-1, 1] without training, on the polynomial grid.

    With a mask [N, 1, H, W], 1 where a picture is hidden, it fills that in, and the rest stays as it is (the solver `repaint` makes the two
    fit). With a strength from 0 to 1 it starts from the picture under noise of that level. `label` is the class of all pictures.
    **Raises**: UsageError for what does not fit.
    """
    around, asked = given(denoiser, task_for(denoiser), condition, mask, strength, label)
    grid = grid_at("polynomial", steps, denoiser.sigma_range, 1.0 if strength is None else strength)
    net = leaf(denoiser)
    device = next(net.net.parameters(), seeds).device if isinstance(net, Preconditioned) else seeds.device
    return sample_given(get("solver", solver).make().plan(grid), around, float(grid.sigmas[0]), seeds.to(device), asked)
