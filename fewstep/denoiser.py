"""Denoisers D(x, sigma) = E[x0 | x], and the one adapter that makes a denoiser of a network.

D = c_skip x + c_out F(c_in x, c_noise), with the coefficients of `fewstep.precond`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Protocol, TypeGuard, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.calls import check_call
from fewstep.checks import check_level_values, check_model
from fewstep.cond import NULL, Cond
from fewstep.errors import UsageError
from fewstep.precond import Precond
from fewstep.schedule import Array

Sigma = float | Tensor
Level = float | Array  # of a plan, on the host: one for all samples, or [B]
WITHIN = 1e-6  # relative: levels that another library rounded to float32 are still the range's own


@runtime_checkable
class Denoiser(Protocol):
    """D(x, sigma, cond) with what a sampler has to know about it.

    **Shapes**: x [B, *shape], sigma a float or [B], result like x. `sigma_range` is where the model was trained; `cost(sigma)` counts
    network passes per sample of one call.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def classes(self) -> int: ...

    @property
    def sigma_range(self) -> tuple[float, float]: ...

    def cost(self, sigma: float) -> int: ...

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor: ...


class Around(Denoiser, Protocol):
    """A wrapper: a denoiser around `base`, a field of a dataclass. What it does not say itself, it passes on unchanged.

    `inner` are all denoisers that it calls, `base` first; `with_inner` is the same wrapper around others.
    """

    base: Denoiser

    def inner(self) -> tuple[Denoiser, ...]:
        return (self.base,)

    def with_inner(self, *inner: Denoiser) -> Denoiser:
        if not is_dataclass(self):
            kind = type(self).__name__
            raise UsageError(f"the wrapper {kind} cannot be put around another denoiser; make it a dataclass, or give it `with_inner`")
        return replace(cast("Any", self), base=inner[0])

    def with_base(self, base: Denoiser) -> Denoiser:
        return self.with_inner(base, *self.inner()[1:])

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def classes(self) -> int:
        return self.base.classes

    @property
    def sigma_range(self) -> tuple[float, float]:
        return self.base.sigma_range

    def cost(self, sigma: float) -> int:
        return self.base.cost(sigma)


def wraps(denoiser: Denoiser) -> TypeGuard[Around]:
    """Whether it is a wrapper: its class says so (a module may have a field `base` and be none)."""
    return Around in type(denoiser).__mro__


def layers(denoiser: Denoiser) -> Iterator[Denoiser]:
    """A denoiser and everything inside of it, from the outside in."""
    yield denoiser
    if wraps(denoiser):
        for inner in denoiser.inner():
            yield from layers(inner)


def leaf(denoiser: Denoiser) -> Denoiser:
    """What is under all wrappers: a network with its preconditioning, or a closed form."""
    while wraps(denoiser):
        denoiser = denoiser.base
    return denoiser


def knows_null(denoiser: Denoiser) -> bool:
    """Whether a conditional one can be asked without a label: not a network that was trained with labels only."""
    own = leaf(denoiser)
    return not isinstance(own, Preconditioned) or own.null or not own.classes


def check_null(denoiser: Denoiser, what: str) -> None:
    """**Raises**: UsageError where `what` would ask a network for images of no class that was trained with labels only."""
    if not knows_null(denoiser):
        raise UsageError(f"{what} asks the network for images of no class, and it was trained with labels only; let it have labels")


def with_leaves(denoiser: Denoiser, make: Callable[[Denoiser], Denoiser]) -> Denoiser:
    """The same wrappers around what `make` makes of everything that is under them."""
    if not wraps(denoiser):
        return make(denoiser)
    return denoiser.with_inner(*(with_leaves(inner, make) for inner in denoiser.inner()))


@runtime_checkable
class FlowMap(Denoiser, Protocol):
    """A two-time student (CTM, shortcut, MeanFlow): `jump` is its state at sigma_to; called as a denoiser it is its own D."""

    def jump(self, x: Tensor, sigma: Sigma, sigma_to: Sigma, cond: Cond = NULL) -> Tensor: ...


Jump = Callable[[Tensor, Sigma, Sigma, Cond], Tensor]


@runtime_checkable
class Wrapper(Denoiser, Protocol):
    """A denoiser around another one, which may be a flow map; having no `jump`, it is not taken for one itself."""

    def wrapped_jump(self) -> Jump | None:
        """The jump of a flow map inside as this wrapper makes it; None around a plain denoiser. **Raises**: UsageError if undefined."""
        ...


def jump_of(denoiser: Denoiser) -> Jump | None:
    """A flow map's own jump, also from inside wrappers; None for a plain denoiser. **Raises**: UsageError where a wrapper defines none."""
    if isinstance(denoiser, FlowMap):
        return denoiser.jump
    return denoiser.wrapped_jump() if isinstance(denoiser, Wrapper) else None


@runtime_checkable
class Featured(Denoiser, Protocol):
    """A denoiser that can hand out `features` numbers per sample of its network: the channel mean of the deepest map, flattened.

    0 when the network has no such map. **Source**: the bottleneck features of arXiv 2312.00094, section 3.3.
    """

    @property
    def features(self) -> int: ...

    def with_features(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> tuple[Tensor, Tensor]:
        """D(x, sigma) and the features [B, features] of the same call."""
        ...


def feature_size(denoiser: Denoiser) -> int:
    """Features per sample that `with_features` gives; 0 for a denoiser that has none."""
    return denoiser.features if isinstance(denoiser, Featured) else 0


def with_features(denoiser: Denoiser, x: Tensor, sigma: Sigma, cond: Cond) -> tuple[Tensor, Tensor]:
    """D and features of one call. **Raises**: UsageError for a denoiser without features."""
    if not isinstance(denoiser, Featured) or not denoiser.features:
        raise UsageError(f"a {type(denoiser).__name__} has no features; fit the solver to this model, which then sees times only")
    return denoiser.with_features(x, sigma, cond)


@dataclass(frozen=True, eq=False)
class Pass:
    """One call of a network on c_in x, which its batch holds once for each of `weights`: those of the parts of its output in D.

    `cond` makes the condition of the whole batch from the samples' own and the initial state, once in a run. Levels and weights are floats
    or [B].
    """

    net: nn.Module
    c_in: Level
    weights: tuple[Level, ...]
    c_noise: Level
    cond: Callable[[Cond, Tensor], Cond]


@dataclass(frozen=True, eq=False)
class Unfolded:
    """D = skip x + sum over the parts of all passes of weight raw, then mapped by each of `maps`."""

    skip: Level
    passes: tuple[Pass, ...]
    maps: tuple[Callable[[Tensor], Tensor], ...] = ()
    read: tuple[Tensor, ...] = ()  # tensors whose values are in the numbers above


@runtime_checkable
class Unfoldable(Denoiser, Protocol):
    """A denoiser whose arithmetic around its networks is linear, so that a sampler may fold it into its own."""

    def unfold(self, sigma: Level, cond: Cond) -> Unfolded | None:
        """What a call at this level computes, or None where it is not of this form; of `cond` only matters which kinds it has."""
        ...


def unfold(denoiser: Denoiser, sigma: Level, cond: Cond) -> Unfolded | None:
    """The denoiser unfolded at a level; None for one that can only be called."""
    return denoiser.unfold(sigma, cond) if isinstance(denoiser, Unfoldable) else None


@runtime_checkable
class UnfoldableJump(Denoiser, Protocol):
    """A flow map, or a wrapper of one, whose jump is linear in the state and the raw outputs."""

    def unfold_jump(self, sigma: Level, to: Level, cond: Cond) -> Unfolded | None:
        """What a jump between these levels computes, or None where it is not of this form."""
        ...


def unfold_jump(denoiser: Denoiser, sigma: Level, to: Level, cond: Cond) -> Unfolded | None:
    """The flow map's jump unfolded; None for one that can only be asked."""
    return denoiser.unfold_jump(sigma, to, cond) if isinstance(denoiser, UnfoldableJump) else None


def own_cond(cond: Cond, x: Tensor) -> Cond:
    """The condition of a pass with one part."""
    return cond


def network_dtype(net: nn.Module) -> torch.dtype | None:
    """The dtype a network is called in, its parameters'; None for one without parameters, which takes the state's."""
    first = next(net.parameters(), None)
    return None if first is None else first.dtype


def check_device(net: nn.Module, x: Tensor) -> None:
    """**Raises**: UsageError for a state on another device than the network's first parameter."""
    first = next(net.parameters(), None)
    if first is not None and first.device != x.device:
        raise UsageError(f"x is on {x.device} and the {type(net).__name__} on {first.device}; use x.to('{first.device}')")


def _columns(value: Array | Tensor, like: Tensor) -> Tensor:
    """Float64 coefficients [] or [B], cast once to the dtype and rank of `like` [B, ...]."""
    column = value if isinstance(value, Tensor) else torch.tensor(np.atleast_1d(value))
    return column.to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))


class _HostFunction(torch.autograd.Function):
    """Float64 host functions of sigma [B] as a differentiable tensor [functions, B], for noise levels that a solver learns.

    Central differences in log sigma serve every preconditioning alike: with a step of 1e-4 they are exact to 1e-8 of a smooth one.
    """

    @staticmethod
    def forward(ctx: Any, sigma: Tensor, fn: Callable[[Array], tuple[Array, ...]]) -> Tensor:
        host = sigma.detach().double().cpu().numpy()
        slopes = [(up - down) / (2e-4 * host) for up, down in zip(fn(host * np.exp(1e-4)), fn(host * np.exp(-1e-4)))]
        ctx.save_for_backward(torch.from_numpy(np.stack(slopes)).to(sigma.device))
        return torch.from_numpy(np.stack(fn(host))).to(sigma.device)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (slopes,) = ctx.saved_tensors
        return (grad_outputs[0] * slopes).sum(0), None


@runtime_checkable
class FeatureNetwork(Protocol):
    """A network whose forward takes `features=True` and then also returns its deepest map, of `feature_size` positions."""

    feature_size: int


@dataclass(frozen=True, eq=False)
class Preconditioned:
    """A network as a denoiser: D = c_skip x + c_out F(c_in x, c_noise).

    The coefficients are float64 on the host and cast once; the state keeps its own dtype and the network is called in its parameters'.
    Gradients flow through x, the network, and a tensor sigma that asks for them. `null`: it was trained without labels, too, which guidance
    and unconditional sampling need. **Raises**: UsageError for a float sigma outside of
    `sigma_range` (a solver's level; a loss draws its own), one that has no coefficients (most have none at 0), another x or condition.
    """

    net: nn.Module
    precond: Precond
    shape: tuple[int, ...]
    classes: int
    sigma_range: tuple[float, float]
    null: bool = True

    def __post_init__(self) -> None:
        check_model(self.shape, self.classes, self.sigma_range)

    @property
    def features(self) -> int:
        return self.net.feature_size if isinstance(self.net, FeatureNetwork) else 0

    def cost(self, sigma: float) -> int:
        return 1

    def _coefficients(self, sigma: Sigma) -> Sequence[Array | Tensor]:
        if isinstance(sigma, Tensor) and sigma.requires_grad and torch.is_grad_enabled():
            found = _HostFunction.apply(sigma, self._known)
            assert isinstance(found, Tensor)
            return found.unbind()
        if isinstance(sigma, Tensor):
            return self._known(sigma.detach().double().cpu().numpy())
        return self._at(sigma)

    def _known(self, sigma: Array) -> tuple[Array, Array, Array, Array]:
        """The coefficients at levels that have some."""
        check_level_values(sigma)
        if sigma.min(initial=1.0) > 0:
            return self.precond.coefficients(sigma)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = self.precond.coefficients(sigma)
        if not all(np.isfinite(c).all() for c in found):
            kind = type(self.precond).__name__
            raise UsageError(f"sigma {np.min(sigma):g} has no coefficients in {kind}, whose D at 0 is a limit; use levels above 0")
        return found

    def _at(self, sigma: float) -> Sequence[Array]:
        lo, hi = self.sigma_range
        if not lo * (1 - WITHIN) <= sigma <= hi * (1 + WITHIN):
            raise UsageError(f"sigma {sigma:g} is outside of the model's range {lo:g} to {hi:g}; make the grid with its sigma_range")
        return self._known(np.asarray(sigma, dtype=np.float64))

    def unfold(self, sigma: Level, cond: Cond) -> Unfolded:
        found = self._at(float(sigma)) if np.ndim(sigma) == 0 else self._known(np.asarray(sigma, dtype=np.float64))
        c_skip, c_out, c_in, c_noise = (c if np.ndim(c) else float(c) for c in found)
        return Unfolded(c_skip, (Pass(self.net, c_in, (c_out,), c_noise, own_cond),))

    def _check(self, x: Tensor, sigma: Sigma, cond: Cond) -> None:
        check_call(x, sigma, cond, self.shape, self.classes, values=False)  # of levels, which the coefficients need on the host
        check_device(self.net, x)

    def _time(self, c_noise: Array | Tensor, x: Tensor) -> Tensor:
        if isinstance(c_noise, Tensor):
            return c_noise.expand(len(x)).to(x.device, torch.float32)
        return torch.as_tensor(np.broadcast_to(c_noise, (len(x),)).copy()).to(x.device, torch.float32)

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        self._check(x, sigma, cond)
        c_skip, c_out, c_in, c_noise = self._coefficients(sigma)
        dtype = network_dtype(self.net) or x.dtype
        raw = self.net((_columns(c_in, x) * x).to(dtype), self._time(c_noise, x), cond).to(x.dtype)
        return _columns(c_skip, x) * x + _columns(c_out, x) * raw

    def with_map(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> tuple[Tensor, Tensor]:
        """D(x, sigma) and the deepest map [B, C, ...] of the same call of a `FeatureNetwork`."""
        self._check(x, sigma, cond)
        c_skip, c_out, c_in, c_noise = self._coefficients(sigma)
        dtype = network_dtype(self.net) or x.dtype
        raw, deepest = self.net((_columns(c_in, x) * x).to(dtype), self._time(c_noise, x), cond, features=True)
        return _columns(c_skip, x) * x + _columns(c_out, x) * raw.to(x.dtype), deepest

    def with_features(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> tuple[Tensor, Tensor]:
        d, deepest = self.with_map(x, sigma, cond)
        return d, deepest.mean(1).flatten(1)
