"""The network that a student starts from: its teacher's, or one fitted to a closed form."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from fewstep.cond import NULL, Cond
from fewstep.denoiser import Around, Denoiser, FlowMap, Preconditioned, Sigma, check_null, layers, wraps
from fewstep.errors import UsageError
from fewstep.guidance import Guided
from fewstep.nets.adapters import with_scalars
from fewstep.nets.partial import whole_of
from fewstep.nets.unet import ScalarAdapter

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
WARM_START = "warm_start"  # the registered training that fits a network to a closed form


@dataclass(frozen=True, eq=False)
class WarmStarted(Around):
    """A closed-form teacher with `start`, the network that its students start from: one fitted to it by a warm start."""

    base: Denoiser
    start: Preconditioned

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        return self.base(x, sigma, cond)


def starts(teacher: Denoiser) -> list[Preconditioned]:
    """The networks beside closed forms, in a teacher and in its references."""
    return [layer.start for layer in layers(teacher) if isinstance(layer, WarmStarted)]


def start_of(teacher: Denoiser, method: str) -> Preconditioned:
    """The network a student starts from (not copied), under the preconditioning that the student inherits; guidance is left outside.

    **Raises**: UsageError for a teacher without a network, and for a two-time student as a teacher.
    """
    if any(isinstance(layer, FlowMap) for layer in layers(teacher)):
        raise UsageError(f"{method}: a two-time student is no teacher, its network reads where to go; give it a denoiser")
    start = teacher
    while wraps(start) and not isinstance(start, WarmStarted):
        start = start.base
    start = start.start if isinstance(start, WarmStarted) else start
    if not isinstance(start, Preconditioned):
        hint = "distil the unguided network, or wrap a closed form as WarmStarted(teacher, network)"
        raise UsageError(f"{method}: a {type(start).__name__} teacher has no network for a student to start from; {hint}")
    return start


def refuse_guided(teacher: Denoiser, method: str) -> None:
    """**Raises**: UsageError for a teacher that a method which learns guidance cannot have: without classes, trained with labels only, or
    guided already."""
    if not teacher.classes:
        raise UsageError(f"{method} distils guidance by class, and this teacher has no classes; use pd or cd, or a teacher with classes")
    check_null(teacher, method)
    if any(isinstance(layer, Guided) for layer in layers(teacher)):
        raise UsageError(f"{method} learns every guidance weight itself, and this teacher is guided already; give it the unguided one")


def student_net(
    teacher: Denoiser,
    method: str,
    scalars: Sequence[str] = (),
    adapter: Callable[[int], nn.Module] = ScalarAdapter,
    dropout: bool = False,
) -> nn.Module:
    """A copy of the teacher's network, which also reads `scalars`: where a student starts; without dropout (torch's modules of it; what a
    network of one's own does by a function stays) unless told otherwise.

    **Raises**: as `start_of`.
    """
    net = whole_of(start_of(teacher, method).net)  # of a student whose backbone was frozen, too, all may learn
    net = with_scalars(net, scalars, adapter) if scalars else copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, DROPOUTS) and not dropout:
            module.p = 0.0
    return net


def drawn_anew(net: nn.Module, method: str) -> nn.Module:
    """The network with every layer's weights drawn as its class draws them. **Raises**: UsageError for a layer that cannot be."""
    for module in net.modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
        elif next(module.parameters(recurse=False), None) is not None:
            raise UsageError(f"{method} cannot draw the weights of a {type(module).__name__} anew; use init=teacher")
    return net


def like_teacher(net: nn.Module, teacher: Denoiser, method: str) -> Preconditioned:
    """A student's network as a denoiser under its teacher's preconditioning."""
    return replace(start_of(teacher, method), net=net)
