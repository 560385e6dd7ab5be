"""Sampling in one call: a denoiser, a solver's name, and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fewstep.denoiser import Denoiser, Preconditioned, leaf
from fewstep.grid import make_grid
from fewstep.guidance import guide
from fewstep.plugins import get
from fewstep.sampling.draw import sample as draw


def sample(
    denoiser: Denoiser,
    solver: str,
    steps: int,
    seeds: Tensor,
    grid: str = "polynomial",
    end: str = "sigma_min",
    guidance: float = 1.0,
    options: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Images [N, *shape] float32 and class labels [N] of seeds [N] int64, by a registered solver that needs no fit.

    Image i depends on seed i alone. `options` are the solver's fields.
    **Raises**: UsageError for unknown names and options; Unreachable for a number of steps that the solver does not have.
    """
    plan = get("solver", solver).make(**(options or {})).plan(make_grid(grid, steps, denoiser.sigma_range, end))
    net = leaf(denoiser)
    device = next(net.net.parameters(), seeds).device if isinstance(net, Preconditioned) else seeds.device
    return draw(plan, guide(denoiser, guidance), denoiser.sigma_range[1], seeds.to(device))
