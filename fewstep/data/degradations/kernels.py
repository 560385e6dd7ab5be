"""Blur kernels of the Real-ESRGAN degradation: six kinds of Gaussian and its relatives, and the ideal low-pass of ringing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.data.degradations.draws import Draws

# gaussian exp(-q / 2), generalised exp(-q^beta / 2), plateau 1 / (q^beta + 1); each round, or stretched and turned.
KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
WEIGHTS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
GENERALIZED, PLATEAU = (0.5, 4.0), (1.0, 2.0)  # ranges of beta
RINGING = 0.1  # the probability of a sinc kernel among blurs
SMALL = 13  # kernels below cut off from pi / 3, others from pi / 5


def _grid(size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Horizontal and vertical distances from the centre, [size, size]."""
    at = torch.arange(size, dtype=torch.float64, device=like.device) - size // 2
    return at[None, :].expand(size, size), at[:, None].expand(size, size)


def _within(found: Tensor, own: Tensor) -> Tensor:
    """Kernels [B, K, K] cut to their own sizes [B] around the centre, with sum 1."""
    x, y = _grid(found.shape[-1], found)
    kept = found * (torch.maximum(x.abs(), y.abs()) <= (own // 2)[:, None, None])
    return kept / kept.sum((1, 2), keepdim=True)


def blur_kernels(kind: Tensor, spread: tuple[Tensor, Tensor], angle: Tensor, beta: Tensor, own: Tensor, size: int) -> Tensor:
    """Kernels [B, size, size] float64 of kinds (indices of `KINDS`), standard deviations (x, y), angles, shapes beta and sizes, each [B].

    q = p' S^-1 p with S = R diag(s_x^2, s_y^2) R', R turning by the angle. **Source**: arXiv 2107.10833, section 3.2.
    """
    x, y = _grid(size, angle)
    c, s = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    along, across = c * x + s * y, c * y - s * x
    q = (along / spread[0][:, None, None]) ** 2 + (across / spread[1][:, None, None]) ** 2
    b, kinds = beta[:, None, None], kind[:, None, None]
    shapes = (torch.exp(-q / 2), torch.exp(-(q**b) / 2), 1 / (q**b + 1))
    found = torch.where(kinds < 2, shapes[0], torch.where(kinds < 4, shapes[1], shapes[2]))
    return _within(found, own)


NODES = 32  # of a quarter of a circle: exact to rounding for x below 80, and torch's own J1 is to 5e-7


def bessel_j1(x: Tensor) -> Tensor:
    """J1(x) = (2 / pi) times the integral of sin(t) sin(x sin(t)) over t from 0 to pi / 2, by the midpoint rule; x from 0 to 80."""
    t = (torch.arange(NODES, dtype=torch.float64, device=x.device) + 0.5) * (math.pi / 2 / NODES)
    return (torch.sin(t) * torch.sin(x[..., None] * torch.sin(t))).mean(-1)


def sinc_kernels(cutoff: Tensor, own: Tensor, size: int) -> Tensor:
    """Low-pass kernels [B, size, size] float64 of cut-offs w and sizes [B]: w J1(w r) / (2 pi r), w^2 / (4 pi) at 0, with sum 1."""
    x, y = _grid(size, cutoff)
    squares, at = torch.unique(x**2 + y**2, return_inverse=True)
    r, w = torch.sqrt(squares), cutoff[:, None]
    away = w * bessel_j1(w * r) / (2 * math.pi * r.clamp(min=1.0))
    return _within(torch.where(r > 0, away, w**2 / (4 * math.pi))[:, at], own)


@dataclass(frozen=True)
class Kernels:
    """How kernels are drawn: odd sizes from the least to the largest, the range of standard deviations, and the share of sinc kernels."""

    least: int
    largest: int
    spread: tuple[float, float]

    def sizes(self, draws: Draws, number: int) -> Tensor:
        """Odd sizes [B]."""
        return 2 * draws.integer(number, self.least // 2, self.largest // 2) + 1

    def blurs(self, draws: Draws, first: int) -> Tensor:
        """A blur for each image [B, largest, largest]; it takes the ten draws from number `first` on.

        Beta: half of the time uniform from the least to 1, else from 1 to the most, so that of a plateau it is exactly 1 half of the time.
        """
        own = self.sizes(draws, first)
        sinc = draws.uniform(first + 1) < RINGING
        low = torch.where(own < SMALL, math.pi / 3, math.pi / 5)
        cutoff = low + (math.pi - low) * draws.uniform(first + 2)
        kind = draws.choice(first + 3, WEIGHTS)
        a, b = (draws.uniform(first + k, *self.spread) for k in (4, 5))
        stretched = kind % 2 == 1
        angle = torch.where(stretched, draws.uniform(first + 6, -math.pi, math.pi), torch.zeros_like(a))
        lower, u = draws.uniform(first + 7) < 0.5, draws.uniform(first + 8)
        beta = torch.where(kind < 4, _beta(lower, u, GENERALIZED), _beta(lower, u, PLATEAU))
        soft = blur_kernels(kind, (a, torch.where(stretched, b, a)), angle, beta, own, self.largest)
        return torch.where(sinc[:, None, None], sinc_kernels(cutoff, own, self.largest), soft)

    def final(self, draws: Draws, first: int, share: float = 0.8) -> Tensor:
        """The last filter of each image: with probability `share` a sinc kernel of a cut-off from pi / 3 on, else none. Three draws."""
        own = self.sizes(draws, first)
        ringing = sinc_kernels(draws.uniform(first + 1, math.pi / 3, math.pi), own, self.largest)
        return torch.where((draws.uniform(first + 2) < share)[:, None, None], ringing, delta(self.largest, ringing))


def _beta(lower: Tensor, u: Tensor, ends: Sequence[float]) -> Tensor:
    low, high = ends
    return torch.where(lower, low + (1 - low) * u, 1 + (high - 1) * u)


def delta(size: int, like: Tensor) -> Tensor:
    """The kernel that changes nothing, [size, size]."""
    found = torch.zeros(size, size, dtype=like.dtype, device=like.device)
    found[size // 2, size // 2] = 1
    return found
