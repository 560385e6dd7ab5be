"""What guided distillation is tested on: Gaussian data, and its loss from a state made by hand."""

from __future__ import annotations

import math

import torch

from fewstep.cond import Cond
from fewstep.data.source import Batch
from fewstep.denoiser import Preconditioned
from fewstep.noise import Rng
from fewstep.precond import EDMPrecond, ProcessPrecond
from fewstep.schedule import Cosine
from methods.training import State

RANGE = (math.exp(-10), math.exp(10))
SHAPE = (1, 4, 4)
COSINE, EDM = ProcessPrecond(Cosine(), "v"), EDMPrecond(0.6)


def denoiser(net, precond=EDM, sigma_range=(0.002, 80.0)) -> Preconditioned:
    return Preconditioned(net, precond, SHAPE, 1, sigma_range)


def batch(count: int = 512) -> Batch:
    x0 = 0.5 + 0.1**0.5 * Rng((1,)).normal((count, *SHAPE)).double()
    return Batch(x0, Cond(label=torch.zeros(count, dtype=torch.int64)))


def loss_of(method, state: State, of: Batch, seed: int = 7) -> float:
    (loss,) = method.losses(state, of, Rng((seed,)))
    assert loss.net == "student"
    return loss.value.item()
