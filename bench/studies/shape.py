"""The shape of a trajectory: how far it leaves the straight line between its ends, and in how many directions. Float64 throughout."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 1e-6  # of the length: a deviation below that is none


@dataclass(frozen=True, eq=False)
class Shape:
    """Trajectories x_0 ... x_N (x_0 at sigma_max), each in a frame of its own; distances are RMS over pixels, in data units.

    With u = (x_N - x_0) / |x_N - x_0| and the deviation d_i = (x_i - x_0) - ((x_i - x_0) . u) u, which is 0 at both ends: `length` [B] is
    |x_N - x_0|; `ahead` [B, nodes] the distance left along u; `away` [B, nodes] is |d_i|; `plane` [B, nodes, 2] are d_i's coordinates on
    the two leading right singular vectors of the matrix with the rows d_i; `shares` [B, k] are its squared singular values as parts of
    their sum, that is of sum_i |d_i|^2, falling (NaN for a straight line). Each vector points to where its largest coordinate is positive.
    **Source**: after arXiv 2405.11326, section 3.
    """

    length: Tensor
    ahead: Tensor
    away: Tensor
    plane: Tensor
    shares: Tensor


def shape_of(states: Tensor) -> Shape:
    """The shapes of trajectories, states [B, nodes, *shape]. The sum over nodes weighs each alike, so shares depend on the grid."""
    x = states.double().flatten(2) / math.sqrt(math.prod(states.shape[2:]))
    offset = x - x[:, :1]
    length = offset[:, -1].norm(dim=1)
    u = offset[:, -1] / length[:, None]
    along = (offset * u[:, None]).sum(2)
    deviation = offset - along[:, :, None] * u[:, None]
    deviation[:, [0, -1]] = 0.0
    away = deviation.norm(dim=2)
    _, s, v = torch.linalg.svd(deviation, full_matrices=False)
    plane = deviation @ v[:, :2].mT
    peak = plane.gather(1, plane.abs().argmax(1, keepdim=True)).sign()
    straight = away.amax(1) < ROUNDING * length
    energy = s.square()
    shares = torch.where(straight[:, None], math.nan, energy / energy.sum(1, keepdim=True))
    return Shape(length, length[:, None] - along, away, plane * peak, shares)


def likeness(plane: Tensor) -> Tensor:
    """Cosine of each curve with the mean curve, as vectors of all their coordinates. [B, nodes, 2] -> [B]."""
    flat = plane.flatten(1)
    mean = flat.mean(0)
    return (flat @ mean) / (flat.norm(dim=1) * mean.norm())
