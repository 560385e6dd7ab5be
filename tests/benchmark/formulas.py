"""One multistep trajectory, computed four ways around one zero-cost network: `run`, torch, torch.compile of that, and diffusers."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from clock import CLOCK, DEVICE, rotation
from torch import Tensor, nn

from fewstep.cond import NULL, Cond
from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.grid import TimeGrid, make_grid
from fewstep.guidance import guide
from fewstep.plugins import get
from fewstep.precond import ProcessPrecond
from fewstep.sampling.lower import lower
from fewstep.sampling.plan import Combine, Plan, prediction, state
from fewstep.sampling.program import Forward, Update
from fewstep.sampling.runner import run
from fewstep.schedule import VP

STEPS, SCALE, RANGE, CLASSES = 20, 3.0, (0.01, 80.0), 10
POOL = 4  # outputs of the network in turn: two that a history holds, the newest, and one more
# solver -> options that match diffusers' defaults on twenty steps, its history in predictions beside the newest, and diffusers' scheduler
SOLVERS: dict[str, tuple[dict[str, Any], int, str, dict[str, Any]]] = {
    "euler": ({}, 0, "EulerDiscreteScheduler", {}),
    "dpmpp_2m": ({"lower_order_final": False}, 1, "DPMSolverMultistepScheduler", {"solver_order": 2, "final_sigmas_type": "sigma_min"}),
    "dpmpp_3m": ({"lower_order_final": False}, 2, "DPMSolverMultistepScheduler", {"solver_order": 3, "final_sigmas_type": "sigma_min"}),
    "unipc_bh2_2": ({}, 2, "UniPCMultistepScheduler", {"solver_order": 2, "solver_type": "bh2"}),
}


class Case(NamedTuple):
    """An update that is timed. `dtype` is the network's; the state is float32."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    solver: str
    guided: bool

    def __str__(self) -> str:
        guidance = "guided" if self.guided else "plain"
        return f"{'x'.join(map(str, self.shape))}-{str(self.dtype).removeprefix('torch.')}-{self.solver}-{guidance}"


class Free(nn.Module):
    """A network whose time is not counted. Every output is one of a few tensors in turn: none that the caller still reads."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.zeros(1, dtype=case.dtype, device=DEVICE))
        source = torch.Generator().manual_seed(0)
        batch, *rest = case.shape
        shape = ((1 + case.guided) * batch, *rest)
        size = torch.Size(shape).numel() * case.dtype.itemsize
        self.pool = torch.randn((max(POOL, rotation(size)), *shape), generator=source).to(DEVICE, case.dtype).unbind()
        self.calls, self.turn = 0, POOL

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond = NULL) -> Tensor:
        CLOCK.enter()
        assert x.shape == self.pool[0].shape
        assert x.dtype is self.own.dtype
        self.calls += 1
        out = self.pool[self.calls % self.turn]
        CLOCK.leave()
        return out


@dataclass(frozen=True)
class Step:
    """Numbers of the gap after an evaluation: D = x + out raw; a correction of the state, if any; the next state; its scale as input.

    `correct` and `predict` are the weights of a state and of D, newest first.
    """

    out: float
    correct: tuple[float, ...] | None
    predict: tuple[float, ...]
    c_in: float
    time: Tensor


Numbers = tuple[Any, Any, Any, Any]  # out, correct, predict, c_in: floats, or tensors


def _sum(x: Tensor, terms: Sequence[Tensor], weights: Sequence[Any]) -> Tensor:
    """weights[0] x + sum of weights[k + 1] terms[k]: in one pass for each term, in place, where the weights are floats."""
    y = weights[0] * x
    for term, weight in zip(terms, weights[1:]):
        if type(weight) is not float:
            y = y + weight * term
        elif weight:
            y.add_(term, alpha=weight)
    return y


def gap(raw: Tensor, at: Tensor, base: Tensor, history: tuple[Tensor, ...], c: Numbers, guided: bool) -> tuple[Tensor, ...]:
    """From a raw output at a state to the next network input: D, the state (corrected from `base`), the next state, its input."""
    out, correct, predict, c_in = c
    dtype, raw = raw.dtype, raw.to(at.dtype)
    if guided:
        raw = torch.lerp(*reversed(raw.chunk(2)), SCALE)
    d = torch.add(at, raw, alpha=out) if type(out) is float else at + out * raw
    x = at if correct is None else _sum(base, (d, *history), correct)
    y = _sum(x, (d, *history), predict)
    z = (c_in * y).to(dtype)
    return d, x, y, torch.cat([z, z]) if guided else z


@functools.cache
def compiler_problem() -> str | None:
    """Why torch.compile cannot be used on this machine; None where it can."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(lambda x: 2 * x + 1, dynamic=False)(torch.ones(4, device=DEVICE))
    except Exception as err:  # whatever a missing or broken tool chain raises
        return f"{type(err).__name__}: {(str(err).splitlines() or [''])[0]}"
    return None


def diffusers_problem() -> str | None:
    """Why diffusers cannot be used; None where it can."""
    try:
        import diffusers  # noqa: F401
    except ImportError as err:
        return str(err)
    return None


class Bench:
    """A case with its plan, network and start. Its methods return the final state; `ways` are those that can run here."""

    def __init__(self, case: Case) -> None:
        self.case, self.net = case, Free(case)
        options, self.depth, self.theirs, self.settings = SOLVERS[case.solver]
        self.grid: TimeGrid = make_grid("polynomial", STEPS, RANGE)
        self.plan: Plan = get("solver", case.solver).make(**options).plan(self.grid)
        self.precond = ProcessPrecond(VP(), "eps")
        plain = Preconditioned(self.net, self.precond, case.shape[1:], CLASSES, RANGE)
        self.denoiser: Denoiser = guide(plain, SCALE) if case.guided else plain
        normal = torch.randn(case.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        self.x = self.grid.sigmas[0] * normal
        self.steps = self._steps()
        self.zeros = torch.zeros_like(self.x)
        self.tables = [torch.tensor(np.hstack(self._padded(step)), dtype=torch.float32, device=DEVICE) for step in self.steps]
        self.ways: dict[str, Callable[[], Tensor]] = {"run": self.run, "eager": self.eager}
        if compiler_problem() is None:
            torch.compiler.reset()
            self.compiled_gap = torch.compile(self._gap_of_table, dynamic=False)
            self.ways["compiled"] = self.compiled
        if diffusers_problem() is None:
            self.scheduler = self._scheduler()
            self.ways["diffusers"] = self.diffusers
        self._agree()

    def start(self, cold: bool) -> None:
        """Set everything back to the first step, untimed."""
        if cold:  # go on with what the last round did not touch
            self.net.turn = len(self.net.pool)
        else:
            self.net.calls, self.net.turn = 0, POOL
        if "diffusers" in self.ways:
            self._levels(self.scheduler)

    def _steps(self) -> list[Step]:
        """The numbers of every step, from the plan's own ops."""
        steps, programs, rows = [], [], list[Combine]()
        for op in (*self.plan.ops, None):
            if isinstance(op, Combine):
                rows.append(op)
            elif rows:
                programs.append(rows)
                rows = []
        levels = [float(e.sigma) for e in self.plan.evals]
        for k, (rows, sigma, following) in enumerate(zip(programs, levels, (*levels[1:], levels[-1]), strict=True)):
            _, out, _, time = self.precond.coefficients(np.asarray(sigma))
            _, _, c_in, _ = self.precond.coefficients(np.asarray(following))
            correct = self._row(rows[0], state(k - 1), k) if len(rows) > 1 else None
            predict = self._row(rows[-1], state(k), k)
            steps.append(Step(float(out), correct, predict, float(c_in), torch.full((self.case.shape[0],), float(time), device=DEVICE)))
        return steps

    def _row(self, op: Combine, base: str, k: int) -> tuple[float, ...]:
        weights = {ref: float(c) for ref, c in op.terms}
        row = tuple(weights.pop(name, 0.0) for name in (base, *(prediction(k - j) for j in range(self.depth + 1))))
        assert not weights, f"{op} reads more than the formula knows"
        return row

    def _padded(self, step: Step) -> tuple[float | tuple[float, ...], ...]:
        """The step's numbers with a correction in every step where one step corrects: the same function serves all."""
        unit = (1.0, *[0.0] * (self.depth + 1))
        corrects = any(s.correct is not None for s in self.steps)
        return step.out, step.correct or (unit if corrects else ()), step.predict, step.c_in

    def _gap_of_table(self, raw: Tensor, at: Tensor, base: Tensor, history: tuple[Tensor, ...], table: Tensor) -> tuple[Tensor, ...]:
        out, *rows, c_in = table.unbind()
        size = self.depth + 2
        return gap(raw, at, base, history, (out, rows[:-size] or None, rows[-size:], c_in), self.case.guided)

    def _input(self, x: Tensor) -> Tensor:
        z = (float(self.precond.coefficients(np.asarray(RANGE[1]))[2]) * x).to(self.case.dtype)
        return torch.cat([z, z]) if self.case.guided else z

    def run(self) -> Tensor:
        """Ours."""
        return run(self.plan, self.denoiser, self.x)[self.plan.states[-1]]

    def eager(self) -> Tensor:
        """Torch operations, one pass over memory for each term."""
        at = base = self.x
        history, z = (), self._input(at)
        for step in self.steps:
            numbers = step.out, step.correct, step.predict, step.c_in
            d, base, at, z = gap(self.net(z, step.time), at, base, history, numbers, self.case.guided)
            history = (d, *history)[: self.depth]
        return at

    def compiled(self) -> Tensor:
        """One compiled function for every step: numbers from a tensor, a history of zeros before the first."""
        at = base = self.x
        history, z = (self.zeros,) * self.depth, self._input(at)
        for step, table in zip(self.steps, self.tables):
            d, base, at, z = self.compiled_gap(self.net(z, step.time), at, base, history, table)
            history = (d, *history)[: self.depth]
        return at

    def diffusers(self) -> Tensor:
        """The loop of a pipeline, from and to their coordinates."""
        scheduler, guided, dtype = self.scheduler, self.case.guided, self.case.dtype
        z = self.z
        for t in scheduler.timesteps:
            both = torch.cat([z] * 2) if guided else z
            output = self.net(scheduler.scale_model_input(both, t).to(dtype), t)
            if guided:
                conditional, unconditional = output.chunk(2)
                output = unconditional + SCALE * (conditional - unconditional)
            z = scheduler.step(output, t, z, return_dict=False)[0]
        return z

    def _scheduler(self) -> Any:
        import diffusers

        made = getattr(diffusers, self.theirs)(use_karras_sigmas=True, prediction_type="epsilon", **self.settings)
        self.preserving = self.theirs != "EulerDiscreteScheduler"  # the others keep z = x / sqrt(1 + sigma^2)
        self.z = self.x / self._scale(0)
        self._levels(made)
        return made

    def _levels(self, scheduler: Any) -> None:
        """Our grid in place of theirs, and everything set back."""
        scheduler.set_timesteps(STEPS)
        scheduler.sigmas = torch.tensor(self.grid.sigmas, dtype=torch.float32)
        scheduler.timesteps = scheduler.timesteps.to(DEVICE)

    def _scale(self, node: int) -> float:
        return float(np.sqrt(1 + self.grid.sigmas[node] ** 2)) if self.preserving else 1.0

    def _agree(self) -> None:
        """All ways compute the same: rounding apart, which is relative to states of size 80 in the first of 20 steps."""
        found = {}
        for name, way in self.ways.items():
            self.start(cold=False)
            found[name] = way().float() * (self._scale(STEPS) if name == "diffusers" else 1.0)
        for name, value in found.items():
            coarse = name == "diffusers" and self.case.dtype is not torch.float32  # guides, and keeps the state, in the network's dtype
            error = float((value - found["run"]).norm() / found["run"].norm())
            assert error < (0.1 if coarse else 1e-4), f"{self.case}: {name} differs from run by {error:.1e}"

    def bytes_moved(self) -> int:
        """Bytes that the lowered update in the middle of the run reads and writes."""
        program = lower(self.plan, self.denoiser, self.x.dtype, NULL)
        passes, moved = 0, 0
        for op in program.instructions:
            passes += isinstance(op, Forward)
            if isinstance(op, Update) and passes == STEPS // 2:
                kinds = [program.types[r] for r in op.inputs if isinstance(r, int)]
                buffers = [program.buffers[program.places[r]] for r in op.outputs]
                sizes = [kind.itemsize for kind in kinds if kind is not None] + [b.dtype.itemsize * b.repeats for b in buffers]
                moved += sum(sizes) * self.x.numel()
        return moved


@functools.lru_cache(1)
def bench_of(case: Case) -> Bench:
    """The case set up, compiled and checked: kept for all its timings in a row."""
    return Bench(case)
