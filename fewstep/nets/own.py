"""A torch module of one's own as a teacher: what it predicts, on which schedule, and how it is called."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.cond import NULL, Cond
from fewstep.denoiser import Preconditioned
from fewstep.discrete import ZERO_SNR
from fewstep.errors import UsageError, near_misses
from fewstep.plugins import Entry, get
from fewstep.precond import ProcessPrecond
from fewstep.schedule import NoiseSchedule

FORMS = {"eps": "eps", "v": "v", "x0": "x0", "flow": "u"}  # what users call what a network predicts, and `ProcessPrecond`
RANGE = (0.002, 80.0)  # of a continuous schedule, whose own ends are 0 and infinity
Call = Callable[..., Tensor]


class Own(nn.Module):
    """The module as `Preconditioned` calls networks: module(z, t), or module(z, t, label) with classes, or `call(module, z, t, label)`.

    **Raises**: UsageError for an output of another type or shape.
    """

    def __init__(self, module: nn.Module, classes: int, call: Call | None, whole_steps: bool) -> None:
        super().__init__()
        self.module, self.classes, self.call, self.whole_steps = module, classes, call, whole_steps

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond = NULL) -> Tensor:
        t = c_noise.round().long() if self.whole_steps else c_noise
        label = cond.label if cond.label is not None else torch.full((len(x),), self.classes, device=x.device)
        if self.call is not None:
            out = self.call(self.module, x, t, label if self.classes else None)
        else:
            out = self.module(x, t, label) if self.classes else self.module(x, t)
        name = type(self.module).__name__
        if not isinstance(out, Tensor):
            raise UsageError(f"{name} returned a {type(out).__name__}, not a tensor; pass call=lambda net, z, t, y: ... that takes it out")
        if out.shape != x.shape:
            more = "; pass call= that keeps the channels of the prediction" if out.shape[2:] == x.shape[2:] else ""
            raise UsageError(f"{name} returned shape {list(out.shape)} for an input {list(x.shape)}; both must agree{more}")
        if not out.is_floating_point():
            raise UsageError(f"{name} returned {out.dtype}, and a prediction is floating-point; pass call= that converts it")
        return out


def _schedule(schedule: str | NoiseSchedule) -> NoiseSchedule:
    """A schedule by name, or one of one's own. **Raises**: UsageError for one whose t does not give its levels back."""
    made = get("schedule", schedule).make() if isinstance(schedule, str) else schedule
    for method in ("alpha_sigma", "sigma", "t"):
        if not callable(getattr(made, method, None)):
            raise UsageError(f"a schedule has alpha_sigma(t), sigma(t) and t(sigma), and {type(made).__name__} has no {method}")
    lo, hi = getattr(made, "sigma_range", RANGE)
    if " object at 0x" in repr(made):
        raise UsageError(f"{type(made).__name__} has no repr that tells it from others; make it a frozen dataclass")
    for level in (lo, (lo * hi) ** 0.5, hi):
        if not abs(float(made.sigma(made.t(level))) - level) <= 1e-6 * level:
            raise UsageError(
                f"{type(made).__name__} has no inverse: the level at the time of level {level:g} is another; mend its t(sigma)"
            )
    return made


def as_teacher(
    module: nn.Module,
    predicts: str,
    schedule: str | NoiseSchedule,
    shape: tuple[int, ...],
    classes: int = 0,
    sigma_range: tuple[float, float] | None = None,
    *,
    call: Call | None = None,
    whole_steps: bool = False,
) -> Preconditioned:
    """A module that predicts `eps`, `v`, `x0` or a `flow` velocity n - x0 of its own process z = alpha x0 + sigma_t n, as a teacher.

    `schedule`: a registered one (`linear`, `scaled_linear`, `cosine_betas`, each with `_zero_snr`; `rectified_flow` for
    z = (1 - t) x0 + t n; `vp`, `cosine`, `edm`, ...) or an object with its three methods. The module is told t (timesteps of discrete
    schedules, rounded with `whole_steps`) as module(z, t), or with classes module(z, t, label), where label = classes stands for
    none; `call(module, z, t, label)` calls it otherwise. **Shapes**: z [B, *shape], t [B], label [B] -> [B, *shape].
    **Raises**: UsageError for names, a range or an output that do not fit, found on a first call with noise.
    """
    if predicts not in FORMS:
        raise UsageError(f"a network predicts {', '.join(FORMS)}, got '{predicts}'{near_misses(predicts, list(FORMS))}")
    made = _schedule(schedule)
    lo, hi = sigma_range or getattr(made, "sigma_range", RANGE)
    least, most = getattr(made, "sigma_range", (0.0, math.inf))
    if not least <= lo < hi <= most:
        raise UsageError(f"sigma_range is two levels of the schedule, {least:g} to {most:g}, the smaller first, got ({lo:g}, {hi:g})")
    alpha, sigma_t = (float(part) for part in made.alpha_sigma(made.t(1.0 if lo < 1 < hi else hi)))
    if predicts == "v" and abs(alpha**2 + sigma_t**2 - 1) > 1e-6:
        raise UsageError(f"v = alpha n - sigma x0 is of variance-preserving schedules, and {made} is none; use flow, eps or x0")
    if predicts == "flow" and abs(alpha + sigma_t - 1) > 1e-6:
        raise UsageError(f"a flow velocity n - x0 is of z = (1 - t) x0 + t n, and {made} is another; use schedule='rectified_flow'")
    if predicts == "eps" and hi >= ZERO_SNR:
        raise UsageError("eps says nothing of the image at zero SNR; use a network that predicts v or x0, or a schedule without _zero_snr")
    net = Own(module, classes, call, whole_steps).eval().requires_grad_(False)
    teacher = Preconditioned(net, ProcessPrecond(made, FORMS[predicts]), tuple(shape), classes, (lo, hi))
    _try(teacher)
    return teacher


@torch.inference_mode()
def _try(teacher: Preconditioned) -> None:
    """**Raises**: UsageError where the network cannot be called, or gives what is not finite."""
    like = next(teacher.net.parameters(), torch.zeros(()))
    x = torch.randn(2, *teacher.shape, generator=torch.Generator().manual_seed(0)).to(like.device)
    lo, hi = teacher.sigma_range
    takes = "(z, t, label), label = classes for none" if teacher.classes else "(z, t)"
    name = type(teacher.net.module).__name__  # pyright: ignore[reportAttributeAccessIssue]
    labels = (torch.tensor([0, teacher.classes - 1]), torch.full((2,), teacher.classes)) if teacher.classes else (None,)
    for sigma, label in itertools.product((lo, min(hi, 1.0), hi), labels):
        cond = NULL if label is None else Cond(label=label.to(like.device))
        try:
            d = teacher(x * sigma, sigma, cond)
        except UsageError:
            raise
        except Exception as err:  # whatever a module of somebody else's raises
            raise UsageError(
                f"{name} cannot be called at sigma {sigma:g} ({type(err).__name__}: {err}); it takes {takes}, or pass call="
            ) from err
        if not d.isfinite().all():
            raise UsageError(f"{name} gives NaN or infinity at sigma {sigma:g}; check its weights, its schedule and what it predicts")


def identity_of(teacher: Preconditioned, entry: Entry) -> str:
    """SHA-256 of what a registered teacher computes, as far as that can be told: weights, preconditioning, shape, classes and range, the
    version it was registered with, and the source of its function and of every class of its network that stands in the same module."""
    net = teacher.net
    told: list[Any] = [repr(teacher.precond), teacher.shape, teacher.classes, teacher.sigma_range, entry.version]
    if isinstance(net, Own):
        told += [net.whole_steps, *_sources([entry.target, net.call, *(type(part) for part in net.modules())], entry.target.__module__)]
    seen = hashlib.sha256(json.dumps(told).encode())
    for key, value in net.state_dict().items():
        own: Any = value.detach().cpu().contiguous()
        seen.update(f"{key} {list(own.shape)} {own.dtype}".encode() + own.view(-1).view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()


def _sources(things: Iterable[Any], module: str) -> list[str]:
    """The source of the functions and classes that a module defines, each once; of one without a file its name."""
    found: dict[str, None] = {}
    for thing in things:
        if thing is not None and getattr(thing, "__module__", "") == module:
            try:
                found[inspect.getsource(thing)] = None
            except (OSError, TypeError):
                found[getattr(thing, "__qualname__", "")] = None
    return list(found)
