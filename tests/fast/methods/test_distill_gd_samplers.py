"""The two samplers of guided distillation, exactly: jumps on Gaussian data, and the variances that steps leave."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch.testing import assert_close

from fewstep.analytic import Gaussian
from fewstep.cond import Cond
from fewstep.data.source import Batch
from fewstep.grid import make_grid
from fewstep.noise import PhiloxNoise, Rng
from fewstep.plugins import get
from fewstep.sampling.plan import prediction
from fewstep.sampling.runner import run
from fewstep.schedule import Cosine
from methods.training import State
from support.each import each
from support.exactnet import V, at_nodes
from support.guided import COSINE, RANGE, SHAPE, denoiser, loss_of


def ddim(sigmas: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """What each Euler step multiplies x by."""
    r = sigmas[1:] / sigmas[:-1]
    return r + (1 - r) * gains


class Gain(torch.nn.Module):
    """D = gain(sigma) x on the cosine schedule, whatever the label and w."""

    def __init__(self, gain) -> None:
        super().__init__()
        self.gain, self.dtype_tag = gain, torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, z, time, cond):
        sigma = Cosine().sigma(time.double().numpy())
        c_skip, c_out, c_in, _ = COSINE.coefficients(sigma)
        return torch.from_numpy((self.gain(sigma) - c_skip) / (c_out * c_in)).view(-1, 1, 1, 1) * z


def levels_of(steps: int) -> np.ndarray:
    return make_grid("cosine", steps, RANGE, "zero_last").sigmas


def gaussian_batch(count: int = 1024) -> Batch:
    x0 = V**0.5 * Rng((5,)).normal((count, *SHAPE)).double()
    return Batch(x0, Cond(label=torch.zeros(count, dtype=torch.int64)))


def jumps(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The nodes of the N-step grid above 0, and the gain of D that makes an exact jump over two intervals (one from the last)."""
    s = levels_of(steps)
    to = np.append(s[2:], 0.0)
    flow = np.sqrt((V + to**2) / (V + s[:-1] ** 2))
    r = to / s[:-1]
    return s[:-1], (flow - r) / (1 - r)


def exact_jumps(steps: int):
    return at_nodes(*jumps(steps))


def test_stochastic_stages_keep_exact_jumps():
    """A teacher that jumps exactly over two of its intervals is halved to a student that does: loss 0, also on the last interval."""
    method = get("distiller", "gd_stochastic").make(start=8, grid="cosine", loss="l2+uniform")
    for steps in (4, 2):
        phase = next(p for p in method.phases() if p.name == str(steps))
        nets = {"teacher": Gain(exact_jumps(2 * steps)), "student": Gain(exact_jumps(steps))}
        state = State(denoiser(nets["teacher"], COSINE, RANGE), nets, {}, phase)
        assert loss_of(method, state, gaussian_batch()) < 1e-18  # float64
        # A student for the deterministic sampler, which jumps over one interval, is another one; so is the teacher.
        s = levels_of(steps)
        r = s[1:] / s[:-1]
        one = at_nodes(s[:-1], (np.sqrt((V + s[1:] ** 2) / (V + s[:-1] ** 2)) - r) / (1 - r))
        for wrong in (one, exact_jumps(2 * steps)):
            assert loss_of(method, replace(state, nets={**nets, "student": Gain(wrong)}), gaussian_batch()) > 1e-5
        # Two half steps on the last interval (algorithm 3 in every phase) are not exact for such a teacher.
        last = levels_of(2 * steps)[-3:]
        two = np.prod(ddim(last, exact_jumps(2 * steps)(last[:-1])))
        assert abs(two - np.sqrt(V / (V + last[0] ** 2))) > 1e-3


def test_the_first_stochastic_stage_takes_eulers_steps():
    """From the guided network, whose D is the posterior mean: two Euler steps of one interval each, and two half ones at the end."""
    method = get("distiller", "gd_stochastic").make(start=4, grid="cosine", loss="l2+uniform")
    phase = method.phases()[1]
    s, fine = levels_of(4), levels_of(8)
    gains = []
    for i in range(4):
        nodes = s[i : i + 3] if i < 3 else fine[-3:]
        total, r = np.prod(ddim(nodes, V / (V + nodes[:-1] ** 2))), nodes[-1] / nodes[0]
        gains.append((total - r) / (1 - r))
    nets = {"teacher": Gain(lambda sigma: V / (V + sigma**2)), "student": Gain(at_nodes(s[:-1], np.array(gains)))}
    state = State(denoiser(nets["teacher"], COSINE, RANGE), nets, {}, phase)
    # The teacher is told its level as float32 of t: at sigma = e^10 that is 1e-3 of sigma, and 2e-6 of 1e-5 x / sigma... below all else.
    assert loss_of(method, state, gaussian_batch()) < 1e-10
    assert loss_of(method, replace(state, nets={**nets, "student": nets["teacher"]}), gaussian_batch()) > 1e-4


def test_deterministic_stages_are_progressive_distillation():
    """With w read by nobody, a halving of gd is one of pd: loss 0 at the student whose Euler step is two of its teacher's."""
    sigmas, fine = levels_of(2), levels_of(4)
    posterior = Gain(lambda sigma: V / (V + sigma**2))
    totals = [np.prod(ddim(fine[i : i + 3], V / (V + fine[i : i + 2] ** 2))) for i in (0, 2)]
    r = sigmas[1:] / sigmas[:-1]
    nets = {"teacher": posterior, "student": Gain(at_nodes(sigmas[:-1], (np.array(totals) - r) / (1 - r)))}
    method = get("distiller", "gd").make(start=2, grid="cosine", loss="l2+uniform")
    state = State(denoiser(posterior, COSINE, RANGE), nets, {}, method.phases()[1])
    assert loss_of(method, state, gaussian_batch()) < 1e-10
    assert loss_of(method, replace(state, nets={**nets, "student": posterior}), gaussian_batch()) > 1e-4


# Variances of N = 1, 2, 4, 8, 16 steps on N(0, 1/4), from the closed form, computed independently.
STOCHASTIC = {1: 1.29e-10, 2: 0.04, 4: 0.07546295, 8: 0.11168995, 16: 0.15917059}
DETERMINISTIC = {1: 1.29e-10, 2: 0.04000091, 4: 0.11118118, 8: 0.16922804, 16: 0.20604933}


def variance_of(plan, gains, slot: str) -> float:
    """The variance of a slot, from z_1 of variance 1, by linearity: the sum over all noises of the squared response to each."""
    d = denoiser(Gain(gains), COSINE, RANGE)
    labels = Cond(label=torch.zeros(1, dtype=torch.int64))

    class Impulse:
        def __init__(self, at: int) -> None:
            self.at = at

        def normal(self, slot, shape):
            return torch.full((1, *shape), float(slot.step == self.at), dtype=torch.float64)

        def labels(self, classes: int):
            return labels.label

    steps = len(plan.states) - 1
    # z_1 has variance 1: x = z_1 / alpha_1.
    starts = [(-1, math.sqrt(1 + RANGE[1] ** 2))] + [(i, 0.0) for i in range(1, steps + 1)]
    total = 0.0
    for at, x in starts:
        out = run(plan, d, torch.full((1, *SHAPE), x, dtype=torch.float64), Impulse(at), labels, [slot])[slot]
        total += float(out.mean()) ** 2
    return total


@each("steps", STOCHASTIC)
def test_variances_of_both_samplers_are_the_tabulated_ones(steps: int):
    """With the exact D: the stochastic sampler jumps over 2 / N, the deterministic over 1 / N. With exact jumps: 1/4 for every N."""
    grid = make_grid("cosine", steps, RANGE)  # the table's jumps end at the clipped level, sigma = e^-10, and its result is the last D
    nodes = grid.sigmas[:-1]
    exact, last = at_nodes(nodes, V / (V + nodes**2)), prediction(steps - 1)
    digits = {"rtol": 5e-3, "atol": 0} if steps == 1 else {"rtol": 0, "atol": 5.1e-9}
    assert_close(variance_of(get("solver", "nstep_stochastic").make().plan(grid), exact, last), STOCHASTIC[steps], **digits)
    assert_close(variance_of(get("solver", "euler").make().plan(grid), exact, last), DETERMINISTIC[steps], **digits)
    # Ours end at 0. The exact flow starts from the marginal at t = 1, of variance a^2 / 4 + s^2 = 1 - 1.5e-9.
    ours = get("solver", "nstep_stochastic").make().plan(make_grid("cosine", steps, RANGE, "zero_last"))
    # Ending at 0 and not at e^-10 changes the last jump by 1e-4; three printed digits for one step.
    assert_close(variance_of(ours, exact, ours.states[-1]), STOCHASTIC[steps], rtol=5e-3 if steps == 1 else 2e-4, atol=0)
    assert_close(variance_of(ours, exact_jumps(steps), ours.states[-1]), V, rtol=1e-8, atol=0)  # the 1.5e-9 above


def test_one_step_of_both_samplers_is_the_same():
    grid, x = make_grid("cosine", 1, RANGE, "zero_last"), torch.full((2, *SHAPE), RANGE[1], dtype=torch.float64)
    teacher = Gaussian(torch.zeros(()), torch.tensor(V**0.5, dtype=torch.float64), SHAPE, sigma_range=RANGE)
    both = [
        run(p, teacher, x, PhiloxNoise(torch.arange(2)))[p.states[-1]]
        for p in (get("solver", n).make().plan(grid) for n in ("euler", "nstep_stochastic"))
    ]
    assert_close(both[0], both[1], rtol=1e-12, atol=0)  # a few roundings of float64


def test_a_two_step_stochastic_student_is_the_one_step_student():
    """What it learns at the top is the jump from there to 0, which the 1-step grid has alone."""
    method, of, teacher = get("distiller", "gd_stochastic").make(start=8, grid="cosine"), gaussian_batch(), Gain(exact_jumps(4))
    state = State(denoiser(teacher, COSINE, RANGE), {"teacher": teacher}, {}, method.phases()[-1])  # that of two steps
    x, sigma, target = method._halved(state, of.x0, of.cond, Rng((7,)))
    (highest, gain), top = np.concatenate(jumps(1)), sigma == sigma.max()
    assert sigma.max() == highest
    assert_close(target[top], gain * x[top], rtol=1e-9, atol=0)  # 22026 float64 roundings of x at the top
