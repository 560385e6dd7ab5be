"""What a training method is: hyperparameters and pure functions. The engine owns optimisers, loops and files."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from torch import Tensor, nn

from fewstep.cond import NULL, Cond
from fewstep.data.images import Batch
from fewstep.denoiser import Around, Denoiser, Preconditioned, Sigma
from fewstep.errors import UsageError
from fewstep.grid import TimeGrid, make_grid
from fewstep.guidance import Guided
from fewstep.nets.adapters import with_scalars
from fewstep.nets.unet import ScalarAdapter
from fewstep.noise import Rng
from fewstep.precond import BoundedPrecond, ConsistencyPrecond, EDMPrecond
from fewstep.sampling.plan import Plan
from fewstep.wrappers import Mapped, WithScalars

T = TypeVar("T")


@dataclass(frozen=True)
class Optim:
    """An optimiser by name (`adam`, `radam`, `adamw`) and its schedule.

    lr rises linearly over `warmup` batches and falls linearly to 0 from the fraction `anneal_from` of the phase on (1: never), or there
    at once to a tenth with `drop`. Gradients are clipped to the global norm `clip`.
    """

    name: str = "adam"
    lr: float = 1e-3
    warmup: int = 0
    anneal_from: float = 1.0
    drop: bool = False
    clip: float = 1.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise UsageError(f"a learning rate is a positive number, got lr={self.lr:g}; use e.g. 5e-4")

    def lr_at(self, batch: int, batches: int) -> float:
        """Learning rate of batch number `batch` (from 0) of `batches`."""
        rise = min(1.0, (batch + 1) / self.warmup) if self.warmup else 1.0
        if self.drop:
            return self.lr * rise * (1.0 if batch < self.anneal_from * batches else 0.1)
        left = (1 - batch / batches) / (1 - self.anneal_from) if self.anneal_from < 1 else 1.0
        return self.lr * rise * max(0.0, min(1.0, left))


class Decay(Protocol):
    """A decay that follows a schedule: a frozen dataclass, because its repr is part of a training's identity."""

    def at(self, batch: int) -> float:
        """The decay after batch number `batch` (from 0)."""
        ...


@dataclass(frozen=True)
class Ema:
    """ema <- beta ema + (1 - beta) net after each batch k (from 1), beta = min(decay, k / (k + 9)), so early averages forget fast; without
    `ramp` the decay alone. The rise is ours; a decay of 0.99 is reached after 891 batches."""

    net: str
    decay: float | Decay
    ramp: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.decay, int | float) and not 0 <= self.decay < 1:
            raise UsageError(f"an average of {self.net} decays by 0 <= decay < 1, got {self.decay:g}; use e.g. 0.99")

    def decay_at(self, batch: int) -> float:
        decay = float(self.decay) if isinstance(self.decay, int | float) else self.decay.at(batch)
        return min(decay, (batch + 1) / (batch + 10)) if self.ramp else decay


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one setting. `copies` maps net <- net at its start (after which its optimisers and EMAs are new);
    `export` names the net or EMA that is kept when it ends."""

    name: str
    batches: int
    batch_size: int
    optims: Mapping[str, Optim]
    emas: Mapping[str, Ema] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    export: str = "student"

    def __post_init__(self) -> None:
        if self.batches < 1 or self.batch_size < 1:
            raise UsageError(f"phase {self.name} needs at least one batch of one image, got {self.batches} of {self.batch_size}")


def later(default: T) -> T:
    """The default of a field that a method was given after trainings of it had begun: they are known by its repr, which leaves it out."""
    return dataclasses.field(default=default, repr=False)


def described(method: Any) -> str:
    """A method as a training is known by it: its repr, and the fields of `later` that are not at their defaults."""
    own = dataclasses.fields(method) if dataclasses.is_dataclass(method) else ()
    told = [f"{f.name}={getattr(method, f.name)!r}" for f in own if not f.repr and getattr(method, f.name) != f.default]
    return " ".join([repr(method), *told])


class Tuned(Protocol):
    """A method whose gradients are clipped to the global norm `clip` (0: not at all) and whose learning rate falls linearly to 0 from the
    fraction `anneal_from` of a phase on (1: never); with `released` both are as in the released code. Both defaults are ours."""

    @property
    def clip(self) -> float: ...
    @property
    def anneal_from(self) -> float: ...
    @property
    def released(self) -> bool: ...


NEITHER = {"clip": 0.0, "anneal_from": 1.0}  # of clipping and annealing, as in most released codes


def settle(method: Tuned, name: str, released: Mapping[str, float]) -> None:
    """Check how a method is tuned; with `released` give its fields the released code's values, whatever was asked for.

    **Raises**: UsageError for a norm or a fraction that is none.
    """
    if not 0 <= method.clip < math.inf:
        raise UsageError(f"{name} clips gradients to a norm clip >= 0 (0: not at all), got clip={method.clip:g}; use e.g. 1")
    if not 0 <= method.anneal_from <= 1:
        got = f"got anneal_from={method.anneal_from:g}; use e.g. 0.5"
        raise UsageError(f"{name}'s learning rate falls from a fraction of its batches on, 0 to 1 (1: never), {got}")
    for field_name, value in released.items() if method.released else ():
        object.__setattr__(method, field_name, value)


def tuned(method: Tuned, name: str, lr: float, *, anneals: bool = True, warmup: int = 0) -> Optim:
    """The optimiser of one of a method's nets, clipped and, where its learning rate falls at all, annealed as `Tuned` says."""
    return Optim(name, lr, warmup, method.anneal_from if anneals else 1.0, clip=method.clip or math.inf)


def one_phase(name: str, batches: int, batch_size: int, ema: float, optims: Mapping[str, Optim]) -> list[Phase]:
    """One phase that keeps the student's EMA."""
    return [Phase(name, batches, batch_size, optims, {"ema": Ema("student", ema)}, export="ema")]


@dataclass(frozen=True)
class State:
    """What a loss may read: the frozen teacher, all nets and EMAs by name, the current phase, and the batch's number in it (from 0)."""

    teacher: Denoiser
    nets: Mapping[str, nn.Module]
    emas: Mapping[str, nn.Module]
    phase: Phase
    batch: int = 0


@dataclass(frozen=True)
class Loss:
    """One scalar to minimise by stepping `net` only. `logs` are numbers for the record."""

    value: Tensor
    net: str
    logs: Mapping[str, float] = field(default_factory=dict)


ZERO_SNR, EDM_HIGHEST = 1e3, 80.0
ROUNDING = 1e-6  # of weights and, relative, of levels


def bounded(sigma_range: tuple[float, float]) -> tuple[float, float]:
    """The range of grids that are not a teacher's own: where its highest level stands for zero SNR, as e^10 of the clipped cosine schedule
    does, they start at EDM's 80, since their first steps would go through nothing but noise."""
    low, high = sigma_range
    return low, EDM_HIGHEST if high > ZERO_SNR else high


@dataclass(frozen=True)
class Sampling:
    """How a student is sampled: a registered solver, a grid family and where the grid ends (see `fewstep.grid.make_grid`).

    `afs`: the first step is the analytical one. `solvers` are others that it can be sampled with, `any_level` says that its grid may be
    another with the same ends (levels by hand). `tells_steps`: its network reads the number of steps as the scalar `steps`. `w`: its
    network reads the guidance weight as the scalar `w` itself, and this is the range it was trained in; without one, a student is guided
    from outside like its teacher. `sigma_min`: a level that its grids do not go below, where that is above the teacher's own. `nodes`: how
    many levels of its grid a flow map was trained to jump between, where it cannot be expected to know others (0: it can).
    """

    solver: str
    grid: str
    end: str
    afs: bool = False
    solvers: tuple[str, ...] = ()
    tells_steps: bool = False
    w: tuple[float, float] | None = None
    sigma_min: float = 0.0
    any_level: bool = False
    nodes: int = 0

    def range_in(self, sigma_range: tuple[float, float]) -> tuple[float, float]:
        """The range of the student's grids, given its teacher's. **Raises**: UsageError where it is empty."""
        low, high = sigma_range if self.grid == "cosine" else bounded(sigma_range)
        if self.sigma_min >= high:
            raise UsageError(f"a student's grid ends below the highest level {high:g}, got sigma_min={self.sigma_min:g}; use e.g. 0.006")
        return max(self.sigma_min, low), high

    def w_warning(self, guidance: float) -> str:
        """Why a student that reads the guidance weight should not be trusted at this guidance; empty where it may."""
        w = guidance - 1
        if self.w is None or self.w[0] - ROUNDING <= w <= self.w[1] + ROUNDING:
            return ""
        return f"w = {w:g} is outside of the range {self.w[0]:g} to {self.w[1]:g} it was trained in"

    def jump_warning(self, plan: Plan, sigma_range: tuple[float, float]) -> str:
        """Why a student that knows some levels only, of a teacher with this range, should not be trusted in this plan: jumps from or to
        others; empty where it may."""
        if not self.nodes:
            return ""
        known = make_grid(self.grid, self.nodes - 1, self.range_in(sigma_range), self.end).sigmas
        ends = {float(level) for e in plan.evals if e.to is not None for level in (e.sigma, e.to) if not isinstance(level, str)}
        others = ", ".join(f"{s:.4g}" for s in sorted(ends, reverse=True) if np.abs(known - s).min() > ROUNDING * s)
        return f"it jumps from or to {others}, not among the {self.nodes} levels it was trained to jump between" if others else ""

    def warning(self, guidance: float, plan: Plan, sigma_range: tuple[float, float]) -> str:
        """Both warnings, as far as there are any."""
        return "; ".join(filter(None, (self.w_warning(guidance), self.jump_warning(plan, sigma_range))))


class Trainable(Protocol):
    """What the engine needs: the networks of the shipped models are trained by the same four functions as students."""

    @property
    def version(self) -> int: ...

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        """Trainable nets; contains "student"."""
        ...

    def phases(self) -> Sequence[Phase]: ...

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        """Pure in its arguments. The engine steps the named net after each loss."""
        ...


class Distiller(Trainable, Protocol):
    """A Trainable whose result samples in few steps.

    One with a field `steps` is trained for that number of steps alone, a fit for each; sweeps set it to the cell's.
    """

    @property
    def loss(self) -> str: ...

    def phase_for(self, steps: int) -> str:
        """The phase whose export samples in `steps` steps. **Raises**: UsageError when there is none."""
        ...

    def student(self, net: nn.Module, teacher: Denoiser) -> Denoiser:
        """The trained net as a denoiser, with its boundary conditions and bound scalars."""
        ...

    def sampling(self) -> Sampling:
        """How this student is meant to be sampled."""
        ...


@dataclass(frozen=True)
class Pairs:
    """Stored samples that a method learns from: `count` of the teacher's own, made by a solver in so many steps."""

    solver: str
    steps: int
    grid: str
    end: str
    count: int


@runtime_checkable
class Paired(Distiller, Protocol):
    """A Distiller whose batches are pairs: `batch.noise`, and as `batch.x0` what the teacher makes of x = sigma_max noise."""

    def pairs(self) -> Pairs: ...


@dataclass(frozen=True, eq=False)
class WarmStarted(Around):
    """A closed-form teacher with `start`, the network that its students start from: one fitted to it by a warm start."""

    base: Denoiser
    start: Preconditioned

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        return self.base(x, sigma, cond)


def start_of(teacher: Denoiser, method: str) -> Preconditioned:
    """The network a student starts from (not copied), under the preconditioning that the student inherits; guidance is left outside.

    **Raises**: UsageError for a teacher without a network.
    """
    start = teacher
    while isinstance(start, WarmStarted | Guided | Mapped | WithScalars):
        start = start.start if isinstance(start, WarmStarted) else start.base
    if not isinstance(start, Preconditioned):
        hint = "distil the unguided network, or wrap a closed form as WarmStarted(teacher, network)"
        raise UsageError(f"{method}: a {type(start).__name__} teacher has no network for a student to start from; {hint}")
    return start


def refuse_guided(teacher: Denoiser, method: str) -> None:
    """**Raises**: UsageError for a teacher that a method which learns guidance cannot have: without classes, or guided already."""
    if not teacher.classes:
        raise UsageError(f"{method} distils guidance by class, and this teacher has no classes; use pd or cd, or a teacher with classes")
    inner = teacher
    while isinstance(inner, WarmStarted | Mapped | WithScalars):
        inner = inner.base
    if isinstance(inner, Guided):
        raise UsageError(f"{method} learns every guidance weight itself, and this teacher is guided already; give it the unguided one")


def check_weights(method: str, w_min: float, w_max: float) -> None:
    """**Raises**: UsageError for a range of guidance weights that is empty, or not one of guidance."""
    if not 0 <= w_min < w_max < math.inf:
        got = f"got w_min={w_min:g} and w_max={w_max:g}; use e.g. 0 and 4, or cd or pd for a student without guidance"
        raise UsageError(f"{method} draws guidance weights from w_min to w_max with 0 <= w_min < w_max, {got}")


def student_net(
    teacher: Denoiser,
    method: str,
    scalars: Sequence[str] = (),
    adapter: Callable[[int], nn.Module] = ScalarAdapter,
    dropout: bool = False,
) -> nn.Module:
    """A copy of the teacher's network, which also reads `scalars`: where a student starts; without dropout unless told otherwise.

    **Raises**: as `start_of`.
    """
    net = start_of(teacher, method).net
    net = with_scalars(net, scalars, adapter) if scalars else copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.Dropout) and not dropout:
            module.p = 0.0
    return net


def like_teacher(net: nn.Module, teacher: Denoiser, method: str) -> Preconditioned:
    """A student's network as a denoiser under its teacher's preconditioning."""
    return replace(start_of(teacher, method), net=net)


def consistent(net: nn.Module, teacher: Denoiser, method: str) -> Preconditioned:
    """A student's network with the boundary f(x, sigma_min) = x: EDM's as in arXiv 2303.01469, others under `BoundedPrecond`."""
    start = start_of(teacher, method)
    own, lowest = start.precond, start.sigma_range[0]
    bounded = ConsistencyPrecond(own.sigma_data, lowest) if isinstance(own, EDMPrecond) else BoundedPrecond(own, lowest)
    return replace(start, net=net, precond=bounded)


def per_sample(levels: np.ndarray, index: Tensor) -> TimeGrid:
    """A training step's grid: levels [nodes_total] gathered at index [nodes, B]."""
    return TimeGrid(levels[index.cpu().numpy()])
