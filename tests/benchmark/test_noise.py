"""Counter-based normals, compiled and in torch, against torch's own generator."""

import pytest
import torch
from clock import DEVICE, wall
from rounds import repeat

from fewstep.noise import LATENT, PhiloxNoise
from kernels import philox

SHAPES = ((64, 3072), (256, 12288))


@pytest.mark.parametrize("way", ["torch.randn", "Philox, as run draws it", "Philox in torch"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.benchmark(timer=wall)
def test_normals(benchmark, shape: tuple[int, int], way: str) -> None:
    """The last is the definition, which the others of the project are equal to."""
    batch, count = shape
    noise = PhiloxNoise(torch.arange(batch, device=DEVICE))
    calls = {
        "torch.randn": lambda: torch.randn(shape, device=DEVICE),
        "Philox, as run draws it": lambda: noise.normal(LATENT, (count,)),
        "Philox in torch": lambda: philox.normals(noise.seeds, noise.key(LATENT), count),
    }
    benchmark.extra_info |= {"kind": "noise", "way": way, "shape": "x".join(map(str, shape)), "normals": batch * count}
    repeat(benchmark, calls[way], lambda: None)
