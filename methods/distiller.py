"""What a training method is: hyperparameters and pure functions. The engine owns optimisers, loops and files."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from fewstep.cond import NULL, Cond
from fewstep.data.images import Batch
from fewstep.denoiser import Around, Denoiser, EDMPrecond, Preconditioned, Sigma
from fewstep.errors import UsageError
from fewstep.grid import TimeGrid
from fewstep.noise import Rng


@dataclass(frozen=True)
class Optim:
    """An optimiser by name (`adam`, `radam`, `adamw`) and its schedule.

    lr rises linearly over `warmup` batches and falls linearly to 0 from the fraction `anneal_from` of the phase on (1: never).
    Gradients are clipped to the global norm `clip`.
    """

    name: str = "adam"
    lr: float = 1e-3
    warmup: int = 0
    anneal_from: float = 1.0
    clip: float = 1.0
    weight_decay: float = 0.0

    def lr_at(self, batch: int, batches: int) -> float:
        """Learning rate of batch number `batch` (from 0) of `batches`."""
        rise = min(1.0, (batch + 1) / self.warmup) if self.warmup else 1.0
        left = (1 - batch / batches) / (1 - self.anneal_from) if self.anneal_from < 1 else 1.0
        return self.lr * rise * max(0.0, min(1.0, left))


@dataclass(frozen=True)
class Ema:
    """ema <- beta ema + (1 - beta) net after each batch k (from 1), beta = min(decay, k / (k + 9)), so early averages forget fast."""

    net: str
    decay: float
    ramp: bool = True

    def decay_at(self, batch: int) -> float:
        return min(self.decay, (batch + 1) / (batch + 10)) if self.ramp else self.decay


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


@dataclass(frozen=True)
class State:
    """What a loss may read: the frozen teacher, all nets and EMAs by name, and the current phase."""

    teacher: Denoiser
    nets: Mapping[str, nn.Module]
    emas: Mapping[str, nn.Module]
    phase: Phase


@dataclass(frozen=True)
class Loss:
    """One scalar to minimise by stepping `net` only. `logs` are numbers for the record."""

    value: Tensor
    net: str
    logs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampling:
    """How a student is sampled: a registered solver, a grid family and where the grid ends (see `fewstep.grid.make_grid`)."""

    solver: str
    grid: str
    end: str


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
    """A Trainable whose result samples in few steps."""

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


@dataclass(frozen=True, eq=False)
class WarmStarted(Around):
    """A closed-form teacher with `start`, the network that its students start from: one fitted to it by a warm start."""

    base: Denoiser
    start: Preconditioned

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        return self.base(x, sigma, cond)


def frame_of(teacher: Denoiser, method: str) -> tuple[Preconditioned, EDMPrecond]:
    """The network a student starts from (not copied) and its EDM preconditioning, which the student inherits.

    **Raises**: UsageError for a teacher without a network, or of another parametrisation.
    """
    start = teacher.start if isinstance(teacher, WarmStarted) else teacher
    if not isinstance(start, Preconditioned):
        hint = "distil the unguided network, or wrap a closed form as WarmStarted(teacher, network)"
        raise UsageError(f"{method}: a {type(teacher).__name__} teacher has no network for a student to start from; {hint}")
    if not isinstance(start.precond, EDMPrecond):
        raise UsageError(f"{method} needs a teacher with EDM preconditioning, got form '{start.precond.form}'; convert the teacher")
    return start, start.precond


def student_net(teacher: Denoiser, method: str) -> nn.Module:
    """A copy of the teacher's network without dropout: where a student starts. **Raises**: as `frame_of`."""
    net = copy.deepcopy(frame_of(teacher, method)[0].net)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net


def per_sample(levels: np.ndarray, index: Tensor) -> TimeGrid:
    """A training step's grid: levels [nodes_total] gathered at index [nodes, B]."""
    return TimeGrid(levels[index.cpu().numpy()])
