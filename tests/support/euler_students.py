"""Students of Euler steps that are exact on Gaussian data, and what their losses are; shared by the tests of the SFD family."""

from __future__ import annotations

import numpy as np
import torch

from fewstep.cond import Cond
from fewstep.denoiser import Preconditioned
from fewstep.grid import make_grid
from fewstep.noise import Rng
from fewstep.plugins import get
from fewstep.sampling.plan import afs_coefficient
from fewstep.sampling.runner import run
from methods.training import Loss, State
from support.exactnet import EDM, gaussian_batch, linear_teacher

# ExactNet misses D by some 1e-6 x, and a step from x ~ 10 or less shrinks that; losses are means of absolute differences.
EXACT = 1e-5


def method_of(name: str, **options):
    return get("distiller", name).make(**options)


def plan_of(name: str, grid):
    return get("solver", name).make().plan(grid)


def grid_of(method, steps: int, sigma_range=(0.002, 80.0)):
    """The teacher's grid for a student of so many steps."""
    return make_grid("polynomial", method.substeps * steps, method.sampling().range_in(sigma_range))


def factors(plan, teacher: Preconditioned, every: int = 1) -> np.ndarray:
    """On Gaussian data all states are multiples of the first one: by how much, at every so many nodes."""
    kept = run(plan, teacher, torch.ones(1, *teacher.shape, dtype=torch.float64), keep=plan.states)
    return np.array([kept[s].flatten()[0].item() for s in plan.states[::every]])


def afs_factor(levels: np.ndarray) -> float:
    ratio = levels[1] / levels[0]
    return ratio + (1 - ratio) * afs_coefficient(levels[0])


def step_gains(levels: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """The gains of D with which Euler steps along the levels multiply the state by `moves`."""
    ratio = levels[1:] / levels[:-1]
    return (moves - ratio) / (1 - ratio)


def gains_of(levels: np.ndarray, targets: np.ndarray, afs: bool) -> np.ndarray:
    """Gains of D at the student's nodes with which its own Euler steps lead from target to target; free at an analytical first."""
    own = targets.copy()
    own[1] = afs_factor(levels) if afs else own[1]
    return step_gains(levels, targets[1:] / own[:-1])


class Learner(torch.nn.Module):
    """A network with one gain to learn at each node; it keeps what it is asked: levels, states, labels and scalars."""

    def __init__(self, sigmas: np.ndarray, gains: np.ndarray) -> None:
        super().__init__()
        self.sigmas, self.gains = sigmas, torch.nn.Parameter(torch.tensor(gains))
        self.asked: list[tuple[int, torch.Tensor]] = []
        self.conds: list[Cond] = []

    def forward(self, x: torch.Tensor, time: torch.Tensor, cond: Cond) -> torch.Tensor:
        sigma = np.exp(4 * time.double().numpy())
        nodes = np.abs(np.log(self.sigmas)[:, None] - np.log(sigma)).argmin(0)
        level = self.sigmas[nodes]
        c_skip, c_out, c_in, _ = (torch.from_numpy(c).view(-1, 1, 1, 1) for c in EDM.coefficients(level))
        self.asked.extend((int(n), (x / c_in)[i : i + 1].detach().clone()) for i, n in enumerate(nodes))
        self.conds.append(cond)
        return (self.gains[torch.from_numpy(nodes)].view(-1, 1, 1, 1) - c_skip) * x / (c_out * c_in)

    def states_at(self, node: int) -> torch.Tensor:
        return torch.cat([x for n, x in self.asked if n == node])


def losses_of(method, student, teacher=None, phase: int = 0, count: int = 64, **state) -> list[Loss]:
    teacher = teacher or linear_teacher()
    nets = {"student": student, **state.pop("nets", {})}
    found = list(method.losses(State(teacher, nets, {}, method.phases()[phase], **state), gaussian_batch(count), Rng((7,))))
    assert {loss.net for loss in found} <= {"student"}
    return found


def learner(method, steps: int) -> tuple[Learner, np.ndarray, np.ndarray]:
    """An exact student for SFD, the student's levels, and the factors of the teacher's states there."""
    grid = grid_of(method, steps)
    levels = grid.sigmas[:: method.substeps]
    targets = factors(plan_of(method.teacher_solver, grid), linear_teacher(), method.substeps)
    return Learner(levels[:-1], gains_of(levels, targets, method.afs)), levels, targets
