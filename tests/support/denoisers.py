"""Small denoisers of every kind, and the comparison of the runner with the definition: shared by its tests."""

import torch
from torch import nn

from fewstep.cond import NULL, Cond
from fewstep.denoiser import Around, Preconditioned
from fewstep.guidance import guide
from fewstep.noise import PhiloxNoise
from fewstep.precond import EDMPrecond, ProcessPrecond
from fewstep.sampling.plan import interpret
from fewstep.sampling.runner import run
from fewstep.schedule import VP
from fewstep.wrappers import Mapped, clip

RANGE, SHAPE = (0.02, 20.0), (3, 6, 6)


SEEDS = torch.tensor([0, 1 << 35, 7])


COND = Cond(label=torch.tensor([0, 2, 1]))


class Small(nn.Module):
    """A smooth network that reads everything it is given."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv, self.label, self.time = nn.Conv2d(3, 3, 3, padding=1), nn.Embedding(4, 3), nn.Linear(1, 3)

    def forward(self, x, c_noise, cond=NULL):
        label = cond.label if cond.label is not None else torch.full((len(x),), 3, device=x.device)
        shift = self.label(label) + self.time(c_noise[:, None].to(x.dtype) / 10)
        text = 0 if cond.text is None else cond.text.to(x.dtype).mean((1, 2))[:, None]
        return torch.tanh(self.conv(x) + (shift + text)[:, :, None, None])


class Plain(Around):
    """A denoiser that can only be called."""

    def __init__(self, base):
        self.base = base

    def __call__(self, x, sigma, cond=NULL):
        return self.base(x, sigma, cond)


class Returns(nn.Module):
    """A network that returns what `of` makes of its input."""

    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self, x, c_noise, cond):
        return self.of(x)


def network(precond=None, seed=0, dtype=torch.float32, net=None):
    made = Small(seed).to(dtype) if net is None else net
    return Preconditioned(made, precond or EDMPrecond(0.5), SHAPE, 3, (0.01, 40.0))  # churn rises above the grid


VP_EPS = ProcessPrecond(VP(), "eps")


DENOISERS = {
    "edm": network(),
    "vp": network(VP_EPS),
    "bfloat16": network(dtype=torch.bfloat16),
    "guided": guide(network(), 2.5),
    "guided bfloat16": guide(network(dtype=torch.bfloat16), 2.5),
    "guided inside": guide(network(), 2.5, interval=(0.1, 3.0)),
    "guided per sample": guide(network(), torch.tensor([1.0, 2.0, 4.0])),
    "autoguided": guide(network(), 2.0, ref=network(VP_EPS, seed=1)),
    "guided twice": guide(guide(network(), 1.5), 1.5),
    "clipped": Mapped(guide(network(), 2.0), clip),
    "guided clipped": guide(Mapped(network(), clip), 2.0),
    "called only": Plain(network()),
}


def state(seed=0, dtype=torch.float32, batch=3):
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype) * RANGE[1]


def worst(found, expected):
    return float(torch.stack([(found[k].double() - expected[k].double()).abs().max() for k in expected]).max())  # NaN if any is


def assert_same(plan, denoiser, cond=COND, make_noise=PhiloxNoise):
    """With and without buffers, every state or only the last: as near to float64 as the definition in float32 is, within a factor."""
    x, keep = state(), plan.states
    wide = x.double() if all(p.dtype is torch.float32 for p in parameters(denoiser)) else x
    with torch.no_grad():
        expected = interpret(plan, denoiser, wide, make_noise(SEEDS), cond, keep)
        own = worst(interpret(plan, denoiser, x, make_noise(SEEDS), cond, keep), expected)
        # Roundings of two orders of summation; of bfloat16 inputs, judged where the states are small.
        size = max(1.0, float(expected[keep[-1]].abs().max()))
        budget, judged = (4 * own + 2e-6 * RANGE[1], keep) if wide is not x else (1e-2 * size, keep[-1:])
        for backend in ("cpu", "reference"):
            found = run(plan, denoiser, x, make_noise(SEEDS), cond, keep, backend=backend)
            assert found.keys() == expected.keys()
            assert worst(found, {name: expected[name] for name in judged}) <= budget
            last = run(plan, denoiser, x, make_noise(SEEDS), cond, backend=backend)
            assert worst(last, {plan.states[-1]: expected[plan.states[-1]]}) <= budget


def parameters(denoiser):
    """Of the network inside."""
    return list(denoiser.net.parameters()) if isinstance(denoiser, Preconditioned) else parameters(denoiser.base)
