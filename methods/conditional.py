"""Students that are told a picture: the network that they start from, and the noise levels that they are trained at."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.nets.branches.adapted import with_branch
from fewstep.nets.branches.files import own_part
from fewstep.nets.branches.transplant import told_pictures
from fewstep.plugins import get
from fewstep.wrappers import picture_channels
from methods.distiller import Distiller
from methods.start import drawn_anew, student_net


@runtime_checkable
class Branched(Distiller, Protocol):
    """A distiller whose students are told the pictures of their task, through a registered branch."""

    @property
    def branch(self) -> str: ...
    @property
    def frozen(self) -> bool: ...


def conditional_net(teacher: Denoiser, method: str, branch: str, frozen: bool = False, init: str = "teacher") -> nn.Module:
    """The teacher's network with a branch that is told the pictures of its task, equal to it at the start; `frozen`: the branch alone is
    trained. With `init` scratch the backbone's weights, and what the branch copies of them, are drawn anew before the branch is made.

    **Raises**: UsageError for a teacher whose task has no pictures, and for a frozen backbone that nobody has trained.
    """
    get("branch", branch)
    channels = picture_channels(teacher)
    if told_pictures(teacher):
        raise UsageError(f"{method} gives a prior a branch, and this teacher is told pictures already; use cd or pd to distil it further")
    if not channels:
        raise UsageError(f"{method} trains a model that is asked by a picture, and this model's task has none; use e.g. task=superres_x4")
    if frozen and init == "scratch":
        raise UsageError(f"{method} cannot keep a backbone frozen that was drawn anew; use frozen=false or init=teacher")
    net = student_net(teacher, method)
    made = with_branch(drawn_anew(net, method) if init == "scratch" else net, branch, channels)
    return own_part(made) if frozen else made
