"""Two-time students: one that is the exact flow map of Gaussian data, and small untrained ones."""

import numpy as np
import torch
from torch import nn

from fewstep.cond import Cond
from fewstep.denoiser import Preconditioned
from fewstep.flowmap import TO, TwoTime
from fewstep.grid import make_grid
from fewstep.nets.adapters import with_scalars
from fewstep.nets.unet import UNet
from fewstep.noise import Rng
from fewstep.precond import EDMPrecond, ProcessPrecond
from support.exactnet import EDM, V

RANGE = (0.002, 80.0)
LEVELS = make_grid("polynomial", 17, RANGE).sigmas
PRECONDS = [EDMPrecond(0.5), ProcessPrecond()]


class ExactTwoTime(nn.Module):
    """The network that makes G the exact flow of Gaussian data, times `strength` (1 is exact) in g.

    With R = sqrt((v + s^2) / (v + sigma^2)) the exact g = (R - s / sigma) / (1 - s / sigma) x is v (sigma + s) / (sigma (v + sigma^2)
    (R + s / sigma)) x, without cancellation. Levels are told in float32, which rounds them by 5e-7 (see `ExactNet`); they are those of
    `known` where it is given. What is told as sigma_min is sigma_min.
    """

    def __init__(self, strength=1.0, known=None):
        super().__init__()
        self.known = known
        self.strength = nn.Parameter(torch.full((1, 1), strength, dtype=torch.float64))

    def level(self, told):
        sigma = np.exp(4 * told.double().numpy())
        return sigma if self.known is None else self.known[np.abs(np.log(self.known)[:, None] - np.log(sigma)).argmin(0)]

    def forward(self, x, time, cond):
        sigma, s = self.level(time), self.level(cond.scalars[TO])
        ratio, moved = s / sigma, np.sqrt((V + s**2) / (V + sigma**2))
        g = V * (sigma + s) / (sigma * (V + sigma**2) * (moved + ratio))
        c_skip, c_out, c_in, _ = EDM.coefficients(sigma)
        raw, skip = (torch.from_numpy(c).view(-1, 1, 1, 1) for c in (g / (c_out * c_in), c_skip / (c_out * c_in)))
        return (self.strength * raw - skip) * x


def exact(strength=1.0, known=None, lowest=RANGE[0]):
    return TwoTime(Preconditioned(ExactTwoTime(strength, known), EDM, (1, 4, 4), 2, (lowest, RANGE[1])))


def flow(x, sigma, to):
    return x * ((V + to**2) / (V + sigma**2)) ** 0.5


def taught(precond=PRECONDS[0], scalars=(TO,), classes=2):
    """A two-time student whose network does something with everything it is told."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = with_scalars(UNet((1, 4, 4), classes, (16, 32), emb=32), scalars)
        for p in net.parameters():
            if not p.any():
                nn.init.normal_(p, std=0.1)
    return TwoTime(Preconditioned(net.eval(), precond, (1, 4, 4), classes, RANGE))


X = Rng((1,)).normal((3, 1, 4, 4))
LABEL = Cond(torch.tensor([0, 1, 2]))
FLOAT32 = {"rtol": 0, "atol": 2e-5}  # convolutions of another batch size; outputs are of order 1
