"""Networks that are exact on Gaussian data, where every target of a distillation is known in closed form."""

from __future__ import annotations

import numpy as np
import torch

from fewstep.cond import Cond
from fewstep.data.source import Batch
from fewstep.denoiser import Preconditioned
from fewstep.noise import Rng
from fewstep.precond import EDMPrecond
from methods.training import State


class ExactNet(torch.nn.Module):
    """The network that makes D(x, sigma) = gain(sigma) x under a preconditioning: F = (gain - c_skip) x / c_out.

    It is told sigma as c_noise = log(sigma) / 4 in float32, so its sigma is off by up to 4 |c_noise| 2^-24 < 5e-7 (relative, at
    sigma_min), and D = gain x holds to about 1e-6. Its one parameter makes `Preconditioned` call it in float64.
    """

    def __init__(self, gain, precond) -> None:
        super().__init__()
        self.gain, self.precond = gain, precond
        self.dtype_tag = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: torch.Tensor, time: torch.Tensor, cond: Cond) -> torch.Tensor:
        sigma = np.exp(4 * time.double().numpy())
        c_skip, c_out, c_in, _ = self.precond.coefficients(sigma)
        rest = self.gain(sigma) - c_skip
        raw = np.divide(rest, c_out * c_in, out=np.zeros_like(rest), where=c_out != 0)  # at a boundary, where c_out = 0, F is free
        return torch.from_numpy(raw).view(-1, 1, 1, 1) * x


V = 0.25  # variance of Gaussian data, for which everything below is linear and known
EDM = EDMPrecond(0.6)  # sigma_data is not the data's standard deviation 0.5, for which F = 0


def posterior(sigma):
    """The gain of D(x, sigma) = E[x0 | x] for Gaussian data."""
    return V / (V + sigma**2)


def linear_teacher() -> Preconditioned:
    return Preconditioned(ExactNet(posterior, EDM), EDM, (1, 4, 4), 2, (0.002, 80.0))


def gaussian_batch(count: int = 1024) -> Batch:
    x0 = V**0.5 * torch.randn(count, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Batch(x0, Cond(label=torch.arange(count) % 2))


def loss_of(method, state: State) -> float:
    (loss,) = method.losses(state, gaussian_batch(), Rng((7,)))
    assert loss.net == "student"
    return loss.value.item()


def at_nodes(sigmas: np.ndarray, gains: np.ndarray):
    """A gain known at these noise levels only: that of the level nearest in log sigma."""
    return lambda sigma: gains[np.abs(np.log(sigmas)[:, None] - np.log(sigma)).argmin(0)]
