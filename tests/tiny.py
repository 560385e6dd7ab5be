"""Tiny teachers that train in milliseconds: shared by the tests of engine, distillers and fingerprints."""

from __future__ import annotations

import math

import numpy as np
import torch

from fewstep.analytic import GaussianMixture
from fewstep.data.images import ImageData
from fewstep.denoiser import EDMPrecond, Preconditioned
from fewstep.nets.unet import UNet

SHAPE, CLASSES = (1, 4, 4), 2


def mixture_data(count: int = 512) -> tuple[GaussianMixture, ImageData]:
    """Four components, two classes, as a closed-form teacher and as samples of it."""
    g = torch.Generator().manual_seed(0)
    means = torch.randn(4, *SHAPE, generator=g).sign() * 0.5
    teacher = GaussianMixture(means, torch.full((4,), 0.1), torch.full((4,), -math.log(4)), CLASSES)
    x, k = teacher.sample(count, g)
    pixels, labels = x.numpy(), (k % CLASSES).numpy().astype(np.int64)
    return teacher, ImageData("mixture", CLASSES, pixels, labels, pixels[:8], labels[:8])


def network(data: ImageData, channels: tuple[int, ...] = (16, 32), seed: int = 0) -> Preconditioned:
    """An untrained U-Net denoiser for the data. Its output layer is not zero, so that every coefficient matters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = UNet(data.shape, data.classes, channels, blocks=1, emb=32)
        torch.nn.init.normal_(net.conv_out.weight, std=0.1)
    return Preconditioned(net.eval(), EDMPrecond(data.sigma_data), data.shape, data.classes, (0.002, 80.0))
