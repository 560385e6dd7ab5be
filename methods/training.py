"""The training engine's contract: optimisers, averages and phases as data, what a loss reads, and what the engine trains."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from torch import Tensor, nn

from fewstep.data.images import ImageData
from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.noise import Rng

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

    def decay_at(self, batch: int, ramp: bool = True) -> float:
        """The decay after batch number `batch` (from 0), without the rise where the training or the average has none."""
        decay = float(self.decay) if isinstance(self.decay, int | float) else self.decay.at(batch)
        return min(decay, (batch + 1) / (batch + 10)) if self.ramp and ramp else decay


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one setting. `copies` maps net <- net at its start (after which its optimisers and EMAs are new);
    `export` names the net or EMA that is kept when it ends; `steps` are those that a phase of halvings trains its student for. With `drops`
    the recipe's share of conditions is dropped; without (networks that are told the guidance weight) every example keeps its own."""

    name: str
    batches: int
    batch_size: int
    optims: Mapping[str, Optim]
    emas: Mapping[str, Ema] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    export: str = "student"
    steps: int = field(default=0, repr=False)  # these two follow from the method, whose repr a training is known by
    drops: bool = field(default=True, repr=False)

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
    """Check how a method is tuned; with `released` give its fields the released code's values.

    **Raises**: UsageError for a norm or a fraction that is none, and for a field that is neither at its default nor what
    the released code has.
    """
    if not 0 <= method.clip < math.inf:
        raise UsageError(f"{name} clips gradients to a norm clip >= 0 (0: not at all), got clip={method.clip:g}; use e.g. 1")
    if not 0 <= method.anneal_from <= 1:
        got = f"got anneal_from={method.anneal_from:g}; use e.g. 0.5"
        raise UsageError(f"{name}'s learning rate falls from a fraction of its batches on, 0 to 1 (1: never), {got}")
    default = {f.name: f.default for f in dataclasses.fields(cast("Any", method))}
    for key, value in released.items() if method.released else ():
        if getattr(method, key) not in (default[key], value):
            got = f"got {getattr(method, key):g} (perhaps from a suite); give {key}={value:g} or leave released out"
            raise UsageError(f"{name} with released=true has {key}={value:g}, {got}")
        object.__setattr__(method, key, value)


def tuned(method: Tuned, name: str, lr: float, *, anneals: bool = True, warmup: int = 0) -> Optim:
    """The optimiser of one of a method's nets, clipped and, where its learning rate falls at all, annealed as `Tuned` says."""
    return Optim(name, lr, warmup, method.anneal_from if anneals else 1.0, clip=method.clip or math.inf)


def one_phase(name: str, batches: int, batch_size: int, ema: float, optims: Mapping[str, Optim]) -> list[Phase]:
    """One phase that keeps the student's EMA."""
    return [Phase(name, batches, batch_size, optims, {"ema": Ema("student", ema)}, export="ema")]


class Codec(Protocol):
    """How a model's outputs become images, and images what it works on (`fewstep.tasks.task.Coded`); differentiable."""

    def pixels(self, x: Tensor) -> Tensor: ...
    def latents(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Pixels:
    """The codec of a model that works on images themselves."""

    def pixels(self, x: Tensor) -> Tensor:
        return x

    def latents(self, images: Tensor) -> Tensor:
        return images


IDENTITY = Pixels()


@dataclass(frozen=True)
class State:
    """What a loss may read: the frozen teacher, all nets and EMAs by name, the current phase, the batch's number in it (from 0), and how
    the model's outputs become images."""

    teacher: Denoiser
    nets: Mapping[str, nn.Module]
    emas: Mapping[str, nn.Module]
    phase: Phase
    batch: int = 0
    codec: Codec = IDENTITY


@dataclass(frozen=True)
class Loss:
    """One scalar to minimise by stepping `net` only. `logs` are numbers for the record."""

    value: Tensor
    net: str
    logs: Mapping[str, float] = field(default_factory=dict)


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


@runtime_checkable
class Undivided(Trainable, Protocol):
    """A training whose losses are not means over the examples of a batch, each with numbers of its own: processes cannot share one."""

    @property
    def undivided(self) -> str:
        """What its losses take of the whole batch."""
        ...


@runtime_checkable
class Checked(Trainable, Protocol):
    """A training of something else than a denoiser, which says itself how good its network is."""

    def heldout(self, net: nn.Module, data: ImageData) -> Mapping[str, float]:
        """What a model's `check` shows: name -> value, from the data's held-out part."""
        ...
