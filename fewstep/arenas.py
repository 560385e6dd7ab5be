"""The analytic arenas: closed forms in image shape that solvers and distillers are tried on, each with exact ground truth."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fewstep.analytic import Gaussian, GaussianMixture, image_set
from fewstep.checks import check_count
from fewstep.data.digits import digits
from fewstep.errors import UsageError
from fewstep.plugins import register


def walsh_basis(side: int) -> Tensor:
    """Orthonormal Walsh functions of side x side images as columns [side^2, side^2], from few sign changes to many; exact in binary.

    **Raises**: UsageError for a side that is no power of two.
    """
    check_count("side", side, 1, "it is a power of two, e.g. 8")
    if side & (side - 1):
        raise UsageError(f"side is a power of two, got {side}; e.g. 8")
    h = np.ones((1, 1))
    while len(h) < side:
        h = np.block([[h, h], [h, -h]])
    changes = (np.diff(h, axis=1) != 0).sum(axis=1)
    order = np.argsort(np.add.outer(changes, changes).ravel(), kind="stable")
    return torch.from_numpy(np.kron(h, h)[:, order] / side)


@register("closed_form", "arena_gaussian", "this project")
def arena_gaussian() -> Gaussian:
    """A Gaussian on (1, 8, 8) whose k-th Walsh function (k = 1..64, by sign changes) has standard deviation 2 / k, about mean 0.1.

    A power spectrum like that of natural images, and a flow in closed form.
    """
    std = 2 / torch.arange(1, 65, dtype=torch.float64)
    return Gaussian(torch.full((1, 8, 8), 0.1, dtype=torch.float64), std, (1, 8, 8), basis=walsh_basis(8))


@register("closed_form", "arena_mixture", "this project")
def arena_mixture() -> GaussianMixture:
    """Ten classes of three Gaussians on (1, 8, 8): weights 1/2, 3/10, 1/5 and standard deviations 0.1, 0.15, 0.2 in each class.

    A class is a random pattern of 2x2 blocks in [-0.5, 0.5]; its components add another in [-0.3, 0.3].
    """
    rng = np.random.RandomState(0)  # its stream is frozen across NumPy versions
    classes = rng.uniform(-0.5, 0.5, (10, 1, 4, 4))
    inside = rng.uniform(-0.3, 0.3, (10, 3, 4, 4))
    blocks = (classes + inside).reshape(30, 1, 4, 4)
    return GaussianMixture(
        torch.from_numpy(blocks.repeat(2, axis=2).repeat(2, axis=3)),
        torch.tensor([0.1, 0.15, 0.2] * 10, dtype=torch.float64),
        torch.log(torch.tensor([0.05, 0.03, 0.02] * 10, dtype=torch.float64)),
        10,
        component_class=torch.arange(10).repeat_interleave(3),
    )


@register("closed_form", "arena_digits", "this project")
def arena_digits() -> GaussianMixture:
    """The exact denoiser of the 1,438 training digits: what the digit network would be if it fitted its training set perfectly."""
    data = digits()
    return image_set(torch.from_numpy(data.train_x[:]), torch.from_numpy(data.train_y), data.classes)
