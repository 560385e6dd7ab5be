"""Tiny teachers that train in milliseconds: shared by the tests of engine, distillers and fingerprints."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from fewstep.analytic import GaussianMixture
from fewstep.cond import NULL, Cond
from fewstep.data.images import ImageData
from fewstep.data.pairs import FIRST, PairData, pair_seeds
from fewstep.data.source import Batch, Source
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.grid import make_grid
from fewstep.nets.unet import UNet
from fewstep.noise import Rng
from fewstep.plugins import entries, get
from fewstep.precond import EDMPrecond, ProcessPrecond
from fewstep.sampling.draw import sample
from fewstep.sampling.plan import with_afs
from fewstep.schedule import VP
from fewstep.wrappers import Prior, WithScalars, picture_channels
from methods.distiller import Paired, bounded

SHAPE, CLASSES = (1, 4, 4), 2


def mixture_data(count: int = 512) -> tuple[GaussianMixture, ImageData]:
    """Four components, two classes, as a closed-form teacher and as samples of it."""
    g = torch.Generator().manual_seed(0)
    means = torch.randn(4, *SHAPE, generator=g).sign() * 0.5
    teacher = GaussianMixture(means, torch.full((4,), 0.1), torch.full((4,), -math.log(4)), CLASSES)
    x, k = teacher.sample(count, g)
    pixels, labels = x.numpy(), (k % CLASSES).numpy().astype(np.int64)
    return teacher, ImageData("mixture", CLASSES, pixels, labels, pixels[:8], labels[:8])


def network(data: ImageData, channels: tuple[int, ...] = (16, 32), seed: int = 0, dropout: float = 0.0) -> Preconditioned:
    """An untrained U-Net denoiser for the data. No layer of it is zero, so that every coefficient and condition matters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = UNet(data.shape, data.classes, channels, blocks=1, emb=32, dropout=dropout)
        for p in net.parameters():  # zeros would hide what they multiply: labels, noise levels, scalars
            if not p.any():
                torch.nn.init.normal_(p, std=0.1)
    return Preconditioned(net.eval(), EDMPrecond(data.sigma_data), data.shape, data.classes, (0.002, 80.0))


VARIANTS: dict[str, dict] = {  # of registered methods, by options that no registered name has
    "kd/released": {"released": True},
    "lcm/released": {"released": True},
    "sfd_one/l2": {"second_loss": "l2"},
    "sfd/released": {"released": True},
    "ct/released": {"released": True},
    "ctm_gan/released": {"released": True},
    "dmd/released": {"released": True},
    "dmd2/released": {"released": True},
}


def made(name: str, **options):
    """The distiller, or one of `VARIANTS`, with those of these options that it has."""
    entry = get("distiller", name.partition("/")[0])
    return entry.make(**{k: v for k, v in options.items() if k in entry.fields}, **VARIANTS.get(name, {}))


def pictured(name: str) -> bool:
    """Whether a distiller trains students that are told pictures."""
    found = entries("distiller").get(name.partition("/")[0])  # pretrainings are asked for their teachers, too
    return found is not None and "branch" in found.fields


@dataclass(frozen=True, eq=False)
class Asking:
    """Data whose conditions are pictures of half the size, enlarged."""

    data: ImageData

    def digest(self) -> str:
        return f"pictures of {self.data.digest()}"

    def draw(self, count: int, rng: Rng) -> Batch:
        batch = self.data.draw(count, rng)
        told = get("degradation", "bicubic_x2").make()(batch.x0, torch.zeros(count, dtype=torch.int64))
        return replace(batch, cond=replace(batch.cond, image=told.image, drops=("label",)))


def teacher_of(name: str, data: ImageData) -> Denoiser:
    """A network that a distiller or variant can learn from."""
    if pictured(name):
        return Prior(network(data), data.shape[0])
    teacher = network(data, dropout=0.1 if name == "sfd/released" else 0.0)  # which that student keeps
    return replace(teacher, precond=ProcessPrecond(VP(), "eps")) if name == "kd/released" else teacher


def data_of(method, teacher: Denoiser, data: ImageData) -> Source:
    """What a distiller learns from: the data, pictures of them, or pairs that the teacher makes."""
    if picture_channels(teacher):
        return Asking(data)
    if not isinstance(method, Paired):
        return data
    of = method.pairs()
    seeds = pair_seeds(0, of.count)
    grid = make_grid(of.grid, of.steps, bounded(teacher.sigma_range), of.end)
    images, labels = sample(get("solver", of.solver).make().plan(grid), teacher, grid.sigmas[0], seeds)
    return PairData(images.numpy(), lambda asked: Cond(labels[asked - FIRST]) if teacher.classes else NULL, "")


def sampled(method, student: Denoiser, steps: int, seeds: torch.Tensor) -> torch.Tensor:
    """What a student makes of seeds in so many steps, as its distiller says."""
    own = method.sampling()
    grid = make_grid(own.grid, steps, own.range_in(student.sigma_range), own.end)
    plan = get("solver", own.solver).make().plan(grid)
    told = WithScalars(student, {**({"steps": steps} if own.tells_steps else {}), **({"w": 0.0} if own.w else {})})
    return sample(with_afs(plan) if own.afs else plan, told, grid.sigmas[0], seeds)[0]
