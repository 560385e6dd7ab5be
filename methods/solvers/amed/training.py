"""How AMED's predictor is trained: interval by interval on the endpoints of a finer teacher run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser, feature_size
from fewstep.grid import TimeGrid
from fewstep.nets.predictor import StepPredictor
from fewstep.noise import Rng
from fewstep.plugins import get
from fewstep.sampling.plan import Apply, Combine, Plan, with_afs
from fewstep.sampling.runner import run
from methods.solvers.amed.bases import BASES
from methods.solvers.amed.plan import BoundAMED
from methods.training import Loss, Phase, State


@dataclass(frozen=True)
class Training:
    """The training of one predictor: for each interval in turn one step on |student - teacher|^2, summed over pixels, mean over images.

    Teacher trajectories from sigma_max n, with labels of the data; every level of `coarse` is one of `fine`. The next interval starts
    from the teacher's state, or for a multistep base from the student's own, and never passes gradients back. The denoiser is frozen,
    but gradients flow through it, and through the level it is asked at. **Source**: arXiv 2312.00094, algorithm 1 and released code.
    """

    base: str
    scales: tuple[float, float]
    teacher: str
    coarse: TimeGrid
    fine: TimeGrid
    afs: bool
    phase: Phase
    version: int = 1

    def _every(self) -> int:
        return self.fine.steps // self.coarse.steps

    def _plan(self, net: StepPredictor) -> Plan:
        return BoundAMED(self.base, net, net.features).plan(self.coarse)

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {"student": StepPredictor(feature_size(teacher), *self.scales)}

    def phases(self) -> Sequence[Phase]:
        return [self.phase]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        net, teacher = state.nets["student"], state.teacher
        assert isinstance(net, StepPredictor)
        plan = with_afs(self._plan(net)) if self.afs else self._plan(net)
        x = self.coarse.sigmas[0] * rng.normal((len(batch.x0), *teacher.shape))
        fine = get("solver", self.teacher).make().plan(self.fine)
        with torch.no_grad():
            targets = run(fine, teacher, x, cond=batch.cond, keep=fine.states[:: self._every()])
        earlier: dict[str, Tensor] = {}
        for i, (begin, end) in enumerate(_intervals(plan)):
            if self.coarse.at_zero(i + 1):
                return  # one Euler evaluation, nothing to learn
            part, keep = _continued(plan, i, slice(begin, end), earlier)
            found = run(part, teacher, x, cond=batch.cond, keep=keep)
            out, target = found[part.states[-1]], targets[fine.states[self._every() * (i + 1)]]
            yield Loss((out - target).square().flatten(1).sum(1).mean(), "student")
            earlier = {name: found[name].detach() for name in keep}
            x = out.detach() if BASES[self.base].multistep else target


def _intervals(plan: Plan) -> list[tuple[int, int]]:
    """Where the ops of each interval begin and end: the last of them writes the next state."""
    ends = [k + 1 for k, op in enumerate(plan.ops) if isinstance(op, Combine) and op.out in plan.states]
    return list(zip([0, *ends], ends))


def _continued(plan: Plan, i: int, part: slice, earlier: Mapping[str, Tensor]) -> tuple[Plan, list[str]]:
    """The plan of interval i alone, which starts with what earlier intervals left, and the slots that later ones will read."""
    given = [Apply(tuple(earlier), lambda x: tuple(earlier.values()), (plan.states[i],))] if earlier else []
    alone = Plan((*given, *plan.ops[part]), plan.states[i : i + 2])
    return alone, [name for name in alone.last_use if name != plan.states[i + 1] and plan.last_use[name] >= part.stop]
