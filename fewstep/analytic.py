"""Closed-form denoisers: exact ground truth, no network, no training."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fewstep.calls import check_call, check_classes, check_label, check_levels, check_state
from fewstep.checks import check_count, check_model
from fewstep.cond import NULL, Cond
from fewstep.denoiser import Denoiser, Jump, Sigma, jump_of
from fewstep.errors import UsageError

Moments = tuple[Tensor, Tensor]


@runtime_checkable
class Analytic(Denoiser, Protocol):
    """A denoiser whose data distribution is known exactly."""

    def identity(self) -> str:
        """SHA-256 of everything that can change its numbers."""
        ...

    def moments(self) -> Moments:
        """Mean [d] and covariance [d, d] of clean flattened data, float64; with classes, for uniform labels, as samplers draw them."""
        ...

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Exact clean samples [B, *shape], one of each label [B] (ignored without classes)."""
        ...


def _column(sigma: Sigma, x: Tensor) -> Tensor:
    value = sigma if isinstance(sigma, Tensor) else torch.tensor(float(sigma), dtype=torch.float64)
    return value.to(x).reshape(-1, *[1] * (x.ndim - 1))


def _check_std(std: Tensor) -> None:
    if not (std.isfinite() & (std >= 0)).all():
        raise UsageError(f"standard deviations are finite and >= 0, got {std.min():g} to {std.max():g}; check them")


def _check_above(sigma: Sigma, batch: int, std: Tensor) -> None:
    """**Raises**: UsageError at sigma 0 where some data have no variance: no posterior (not asked of a GPU, which would have to wait)."""
    at_zero = (
        bool((sigma == 0).any())
        if isinstance(sigma, Tensor) and sigma.device.type == "cpu"
        else not isinstance(sigma, Tensor) and sigma == 0
    )
    if at_zero and std.device.type == "cpu" and (std == 0).any():
        check_levels(sigma, batch, positive=True)


def _digest(*parts: object) -> str:
    """SHA-256 of names and tensors. Twelve digits of each number: libraries may round a logarithm's last bit in two ways."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            numbers = part.detach().double().cpu().flatten().tolist()
            total.update(f"{tuple(part.shape)}:".encode() + ",".join(f"{v:.12g}" for v in numbers).encode())
        else:
            total.update(repr(part).encode())
        total.update(b";")
    return total.hexdigest()


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Data x0 ~ N(mean, S): D = mean + S (S + sigma^2)^-1 (x - mean), and the exact flow. S = diag(std^2) per element.

    With an orthonormal `basis` [d, d] (its columns), S = basis diag(std^2) basis' on flattened elements, std [d].
    **Shapes**: mean, and std without a basis, broadcast to `shape`. **Raises**: UsageError for a call outside of these, and at sigma 0
    where a std is 0. **Source**: the posterior mean of a Gaussian, arXiv 2206.00364 appendix B.
    """

    mean: Tensor
    std: Tensor
    shape: tuple[int, ...]
    classes: int = 0
    sigma_range: tuple[float, float] = (0.002, 80.0)
    basis: Tensor | None = None

    def __post_init__(self) -> None:
        check_model(self.shape, self.classes, self.sigma_range)
        _check_std(self.std)

    def cost(self, sigma: float) -> int:
        return 1

    def _coordinates(self, x: Tensor) -> Tensor:
        z = x - self.mean.to(x)
        return z if self.basis is None else z.flatten(1) @ self.basis.to(x)

    def _point(self, z: Tensor, x: Tensor) -> Tensor:
        return self.mean.to(x) + (z if self.basis is None else (z @ self.basis.to(x).T).view_as(x))

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        check_call(x, sigma, cond, self.shape, self.classes)
        _check_above(sigma, len(x), self.std)
        z = self._coordinates(x)
        s, var = _column(sigma, z), self.std.to(z) ** 2
        return self._point(var / (var + s**2) * z, x)

    def flow(self, x: Tensor, sigma: Sigma, sigma_to: Sigma) -> Tensor:
        """The probability flow's state at sigma_to: each coordinate of x - mean times sqrt((std^2 + sigma_to^2) / (std^2 + sigma^2))."""
        check_state(x, self.shape)
        check_levels(sigma, len(x))
        _check_above(sigma, len(x), self.std)
        check_levels(sigma_to, len(x), "sigma_to")
        z = self._coordinates(x)
        s, s2, var = _column(sigma, z), _column(sigma_to, z), self.std.to(z) ** 2
        return self._point(torch.sqrt((var + s2**2) / (var + s**2)) * z, x)

    def identity(self) -> str:
        return _digest("gaussian", self.shape, self.sigma_range, self.mean, self.std, *([] if self.basis is None else [self.basis]))

    def moments(self) -> Moments:
        mean = self.mean.double().expand(self.shape).flatten()
        if self.basis is None:
            return mean, torch.diag(self.std.double().expand(self.shape).flatten() ** 2)
        basis = self.basis.double()
        return mean, (basis * self.std.double() ** 2) @ basis.T

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Exact samples in the dtype of std, as many as there are labels."""
        noise = torch.randn(len(labels), *self.shape, generator=generator, dtype=self.std.dtype)
        return self._point(self.std * (noise if self.basis is None else noise.flatten(1)), noise)


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Data from isotropic Gaussians: means [K, *shape], std [K], logw [K].

    D(x, sigma) = sum_k r_k (mean_k + std_k^2 / v_k (x - mean_k)), v_k = std_k^2 + sigma^2, r the posterior over components (those of
    the label's class when one is given). Component k has class `component_class`[k], or k mod `classes`. Posteriors are computed in
    float64: at sigma 0.002 float32 cannot tell images apart. std 0 is the exact denoiser of a finite image set (`image_set`).
    **Raises**: UsageError for tensors that do not fit, labels of classes without components, and at sigma 0 where a std is 0.
    """

    means: Tensor
    std: Tensor
    logw: Tensor
    classes: int = 0
    sigma_range: tuple[float, float] = (0.002, 80.0)
    component_class: Tensor | None = None

    def __post_init__(self) -> None:
        check_model(self.shape, self.classes, self.sigma_range)
        _check_std(self.std)
        count = len(self.means)
        named = {"std": self.std, "logw": self.logw, **({} if self.component_class is None else {"component_class": self.component_class})}
        for name, value in named.items():
            if value.shape != (count,):
                raise UsageError(f"a mixture of {count} components has {name} {list(value.shape)}; give it one for each, [{count}]")
        own = self.component_class
        if own is not None and (own.dtype != torch.int64 or not 0 <= int(own.min()) <= int(own.max()) < max(self.classes, 1)):
            raise UsageError(f"component_class is int64 in 0..{max(self.classes, 1) - 1}, got {own.dtype} {own.min()} to {own.max()}")

    def _check_known(self, label: Tensor | None) -> None:
        """**Raises**: UsageError for the label, on the host, of a class without components: it has no posterior."""
        if label is None or label.device.type != "cpu" or self.owner.device.type != "cpu" or not self.classes:
            return
        counts = torch.bincount(self.owner, minlength=self.classes + 1)
        counts[self.classes] = len(self.owner)  # the null label has all of them
        without = label[counts[label] == 0]
        if len(without):
            raise UsageError(f"class {int(without[0])} of the mixture has no component, so it has no D; use labels of the others")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.means.shape[1:])

    @property
    def owner(self) -> Tensor:
        """Class of each component [K]; all 0 without classes."""
        if self.component_class is not None:
            return self.component_class
        return torch.arange(len(self.means), device=self.means.device) % max(self.classes, 1)

    def cost(self, sigma: float) -> int:
        return 1

    def _masked(self, logits: Tensor, label: Tensor | None) -> Tensor:
        """Logits [B or 1, K] without the components of other classes; the null label keeps all."""
        if label is None or not self.classes:
            return logits
        column = label[:, None]
        return logits.masked_fill((self.owner.to(label.device)[None] != column) & (column < self.classes), -math.inf)

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        check_call(x, sigma, cond, self.shape, self.classes)
        _check_above(sigma, len(x), self.std)
        flat = x.flatten(1).double()
        means, std = self.means.to(flat).flatten(1), self.std.to(flat)
        v = std**2 + _column(sigma, flat) ** 2
        squares = (flat**2).sum(1, keepdim=True) - 2 * flat @ means.T + (means**2).sum(1)
        logits = self.logw.to(flat) - 0.5 * (squares / v + flat.shape[1] * torch.log(v))
        r = torch.softmax(self._masked(logits, cond.label), dim=1)
        if cond.label is not None and cond.label.device.type == "cpu" and r[:, 0].isnan().any():
            self._check_known(cond.label)
        shrink = std**2 / v
        kept = r * shrink
        out = (r - kept) @ means + kept.sum(1, keepdim=True) * flat
        return out.to(x).view_as(x)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Exact samples [count, *shape] in the means' dtype and their component indices."""
        check_count("the number of samples", count, 1, "e.g. 16")
        k = torch.multinomial(self.logw.exp(), count, replacement=True, generator=generator)
        return self._around(k, generator), k

    def draw(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Exact samples [B, *shape] of the labels [B]; of the whole mixture for the null label, or without classes."""
        check_label(labels, len(labels))
        if self.classes:
            check_classes(labels, self.classes)
            self._check_known(labels)
        weights = torch.softmax(self._masked(self.logw.expand(len(labels), -1), labels), dim=1)
        return self._around(torch.multinomial(weights, 1, generator=generator)[:, 0], generator)

    def _around(self, k: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(len(k), *self.shape, generator=generator, dtype=self.means.dtype)
        return self.means[k] + self.std[k].view(-1, *[1] * len(self.shape)) * noise

    def weights(self, balanced: bool = True) -> Tensor:
        """Component weights [K], float64, sum 1; `balanced` gives every class that has components the same mass."""
        w = torch.softmax(self.logw.double(), dim=0)
        if balanced and self.classes:
            mass = torch.zeros(self.classes, dtype=w.dtype, device=w.device).index_add(0, self.owner, w)
            w = w / mass[self.owner] / (mass > 0).sum()
        return w

    def moments(self, balanced: bool = True) -> Moments:
        """Mean [d] and covariance [d, d], float64, of the mixture under `weights(balanced)`."""
        w, means = self.weights(balanced), self.means.double().flatten(1)
        mean = w @ means
        gap = means - mean
        inner = (w * self.std.double() ** 2).sum() * torch.eye(means.shape[1], dtype=w.dtype, device=w.device)
        return mean, (gap.T * w) @ gap + inner

    def identity(self) -> str:
        return _digest("mixture", self.classes, self.sigma_range, self.means, self.std, self.logw, self.owner)


def image_set(images: Tensor, labels: Tensor, classes: int, sigma_range: tuple[float, float] = (0.002, 80.0)) -> GaussianMixture:
    """The exact denoiser of a finite image set: D is the mean of images [N, *shape] (those of the label) under their posterior.

    Its flow ends at the images themselves. labels [N] are the images' classes. **Raises**: UsageError for labels that do not fit.
    **Source**: arXiv 2206.00364, appendix B.3.
    """
    if not isinstance(labels, Tensor) or not isinstance(images, Tensor):
        raise UsageError(f"images and labels are tensors, got {type(images).__name__} and {type(labels).__name__}; use torch.as_tensor")
    if labels.shape != images.shape[:1] or len(labels) == 0 or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise UsageError(
            f"{len(images)} images need as many labels in 0..{classes - 1}, got shape {list(labels.shape)}; check the data set"
        )
    count = len(images)
    return GaussianMixture(
        images.double(),
        torch.zeros(count, dtype=torch.float64),
        torch.full((count,), -math.log(count), dtype=torch.float64),
        classes,
        sigma_range,
        component_class=labels.long(),
    )


@dataclass(eq=False)
class Counting:
    """A denoiser that counts what it is asked: `calls` evaluations of `base`, of `samples` in all, and the conditions they carried."""

    base: Denoiser
    calls: int = 0
    samples: int = 0

    def __post_init__(self) -> None:
        self.conds: list[Cond] = []
        self.shape, self.classes, self.sigma_range = self.base.shape, self.base.classes, self.base.sigma_range

    def cost(self, sigma: float) -> int:
        return self.base.cost(sigma)

    def _count(self, x: Tensor, cond: Cond) -> None:
        self.calls += 1
        self.samples += len(x)
        self.conds.append(cond)

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        self._count(x, cond)
        return self.base(x, sigma, cond)

    def wrapped_jump(self) -> Jump | None:
        """The base's jump, counted as a call."""
        inner = jump_of(self.base)
        if inner is None:
            return None

        def jump(x: Tensor, sigma: Sigma, sigma_to: Sigma, cond: Cond) -> Tensor:
            self._count(x, cond)
            return inner(x, sigma, sigma_to, cond)

        return jump
