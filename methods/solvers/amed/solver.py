"""AMED: a small predictor places one more evaluation inside every interval and scales its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import Unreachable, UsageError, near_misses
from fewstep.grid import TimeGrid
from fewstep.nets.loading import load_strict
from fewstep.nets.predictor import StepPredictor
from fewstep.plugins import get, register
from fewstep.sampling.plan import Plan, with_afs
from methods.claims import Claims
from methods.solver import Fitting, evaluations, ode_solver
from methods.solvers.amed.bases import BASES
from methods.solvers.amed.plan import BoundAMED, fixed
from methods.solvers.amed.training import Training
from methods.training import Optim, Phase

PUBLISHED = 10_000  # trajectories, arXiv 2312.00094 (released code)


@register("solver", "amed", "arXiv 2312.00094 (AMED-Solver)", base="amed", teacher="heun", m=1)
@register("solver", "amed_plugin", "arXiv 2312.00094 (AMED-Plugin on iPNDM)", scale_time=0.2)
@register("solver", "amed_plugin_ipndm_2", "arXiv 2312.00094 (AMED-Plugin on iPNDM of order 2)", base="ipndm_2", scale_time=0.2)
@register("solver", "amed_plugin_euler", "arXiv 2312.00094 (AMED-Plugin on DDIM)", base="euler", teacher="heun", m=1)
@register("solver", "amed_plugin_dpm_2s", "arXiv 2312.00094 (AMED-Plugin on DPM-Solver-2)", base="dpm_2s", teacher="dpm_2s")
@register("solver", "amed_plugin_dpm_2m", "arXiv 2312.00094 (AMED-Plugin on DPM-Solver)", base="dpm_2m", teacher="dpm_2m")
@register("solver", "amed_plugin_dpmpp_3m", "arXiv 2312.00094 (AMED-Plugin on DPM-Solver++)", base="dpmpp_3m", teacher="dpmpp_3m")
@dataclass(frozen=True)
class AMED:
    """AMED: D is evaluated once more in each interval, at x_s and the level a s, s = sigma'^r sigma^(1-r); r, c, a are predicted.

    The base solver steps sigma -> s -> sigma' with d_s = (x_s - D(x_s, a s)) / s; base `amed` goes to sigma' by d_s alone. c scales all
    that the second sub-step adds. A step to sigma' = 0, where s is 0 too, is one Euler evaluation. Trained on the endpoints of `teacher`
    on a grid with `m` more points in each interval. **Source**: arXiv 2312.00094 and its released code.
    """

    base: str = "ipndm_4"
    scale_dir: float = 0.01
    scale_time: float = 0.0
    teacher: str = "ipndm_4"
    m: int = 2
    batches: int = 80
    batch_size: int = 64
    lr: float = 5e-3
    version: int = 1

    def __post_init__(self) -> None:
        if self.base not in BASES:
            raise UsageError(f"amed has no base solver '{self.base}'{near_misses(self.base, list(BASES))}")
        if not (0 <= self.scale_dir < 1 and 0 <= self.scale_time < 1):
            raise UsageError(f"scale_dir and scale_time are half widths around 1, got {self.scale_dir}, {self.scale_time}; use 0 to 0.99")
        if self.m < 1:
            raise UsageError(f"the teacher needs at least one more point in each interval, got m={self.m}; use m >= 1")
        if min(self.batches, self.batch_size) < 1 or self.lr <= 0:
            raise UsageError("amed needs batches and batch_size >= 1 and lr > 0; leave them at their defaults")
        ode_solver(self.teacher, "amed's teacher")

    @property
    def claims(self) -> Claims:
        """Those of r = 1/2, c = a = 1: what it is before any fit."""
        return self.bound(self.stub()).claims

    @property
    def _budget(self) -> tuple[str, ...]:
        drawn = self.batches * self.batch_size
        return (f"trained on {drawn} trajectories; the published predictors on {PUBLISHED}",) if drawn != PUBLISHED else ()

    def plan(self, grid: TimeGrid) -> Plan:
        raise UsageError("amed plans with a predictor only: use bound(fit(...)) for one of this model and grid, bound(stub()) for none")

    def check(self, steps: int, grid_of: Callable[[int], TimeGrid], afs: bool) -> None:
        coarse, fine = grid_of(steps), grid_of((self.m + 1) * steps)
        if steps == 1 and coarse.at_zero(1):
            raise Unreachable("amed: one step to sigma 0 leaves no interval for its evaluation; use more steps or end=sigma_min")
        if not np.allclose(fine.sigmas[:: self.m + 1], coarse.sigmas, rtol=1e-9):
            raise UsageError("the teacher's finer grid must contain the levels of this one; use end=sigma_min or end=zero_last, not zero")
        if afs:
            with_afs(self.bound(self.stub()).plan(coarse))

    def fit(self, fitting: Fitting) -> Mapping[str, Tensor]:
        """The predictor's weights, the number of features it reads, and the levels it was fitted for.

        **Raises**: as `check`.
        """
        self.check(fitting.steps, fitting.grid, fitting.afs)
        coarse, fine = fitting.grid(fitting.steps), fitting.grid((self.m + 1) * fitting.steps)
        optim = {"student": Optim("adam", self.lr, clip=math.inf)}
        phase = Phase("amed", self.batches, self.batch_size, optim, drops=False)
        training = Training(self.base, (self.scale_dir, self.scale_time), self.teacher, coarse, fine, fitting.afs, phase)
        weights = fitting.train(training)
        features = weights["enc_layer0.weight"].shape[1] if "enc_layer0.weight" in weights else 0
        known = {"levels": torch.tensor(coarse.sigmas), "features": torch.tensor(features)}
        return {**known, **{f"predictor.{k}": v for k, v in weights.items()}}

    def passes(self, steps: int, afs: bool = False) -> int:
        """The teacher's run, and two evaluations an interval, forth and back, less the one that AFS saves."""
        teacher = evaluations(get("solver", self.teacher).make(), (self.m + 1) * steps)
        return self.batches * self.batch_size * (teacher + 3 * (2 * steps - afs))

    def stub(self) -> Mapping[str, Tensor]:
        return {"fixed": torch.tensor([0.5, 1.0, 1.0], dtype=torch.float64)}

    def bound(self, artefact: Mapping[str, Tensor]) -> BoundAMED:
        if "fixed" in artefact:
            return BoundAMED(self.base, fixed(artefact["fixed"]), 0, deviations=self._budget)
        levels, features = artefact["levels"], int(artefact["features"])
        weights = {k.removeprefix("predictor."): v for k, v in artefact.items() if k.startswith("predictor.")}
        net = load_strict(StepPredictor(features, self.scale_dir, self.scale_time), weights, "the predictor's weights")
        return BoundAMED(self.base, net.to(levels.device).requires_grad_(False), features, levels.cpu().numpy(), self._budget)
