"""Parts of a network that a training leaves as they are."""

from __future__ import annotations

from torch import nn

from fewstep.errors import UsageError

STUDENT = "student"  # the network that a recipe may freeze a part of


def trained(net: nn.Module) -> list[nn.Parameter]:
    """The parameters of a network that are not frozen."""
    return [p for p in net.parameters() if p.requires_grad]


def freeze(net: nn.Module, part: str) -> None:
    """Keep the weights of a part of a network as they are. **Raises**: UsageError where it has no such part."""
    try:
        net.get_submodule(part).requires_grad_(False).eval()
    except AttributeError:
        names = ", ".join(name for name, _ in net.named_children())
        raise UsageError(f"freeze={part} names no part of a {type(net).__name__}, which has {names}; use one of those") from None
    if not trained(net):
        raise UsageError(f"freeze={part} leaves nothing of a {type(net).__name__} to train; name a smaller part")


def restore(average: nn.Module, net: nn.Module, part: str) -> None:
    """Give an average the weights of a part that is kept, which rounding moves; nothing where no part is named, or the net has none."""
    if part and part in dict(net.named_modules()):
        average.get_submodule(part).load_state_dict(net.get_submodule(part).state_dict())
