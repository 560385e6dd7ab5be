"""Training only a part of a network: the rest is inside, and belongs to no optimiser, average, checkpoint or export."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fewstep.cond import NULL, Cond, prepared_by
from fewstep.denoiser import FeatureNetwork
from fewstep.errors import UsageError
from fewstep.nets.loading import load_strict


class Shelf(nn.Module):
    """A place in the tree of names for parts of another module."""


def _find(net: nn.Module, prefix: str) -> nn.Module | nn.Parameter:
    """The module or parameter of a name. **Raises**: UsageError where there is none with parameters."""
    *path, last = prefix.split(".")
    at: Any = net
    for name in path:
        at = dict(at.named_children()).get(name)
        if at is None:
            break
    found = None if at is None else {**dict(at.named_children()), **at._parameters}.get(last)
    if found is None or (isinstance(found, nn.Module) and next(found.parameters(), None) is None):
        known = ", ".join(name for name, child in net.named_children() if next(child.parameters(), None) is not None)
        raise UsageError(f"a {type(net).__name__} has no part '{prefix}' with parameters; its parts are {known}")
    return found


class Partial(nn.Module):
    """A network of whose parameters only those under `prefixes` (names of modules or parameters) are this module's; the others are frozen.

    `parameters`, `state_dict` and `load_state_dict` are those of the part, under its names in the whole. A deep copy has a part of its own
    and shares the frozen tensors. `train` sets modes in the part alone, the rest stays in evaluation mode; moving moves both.
    **Shapes**: as the network's. **Raises**: UsageError for a prefix without parameters, or within another.
    """

    whole: nn.Module

    def __init__(self, net: nn.Module, prefixes: Sequence[str]) -> None:
        super().__init__()
        if isinstance(prefixes, str) or not prefixes:
            raise UsageError(f"the parts to train are a sequence of names, got {prefixes!r}; e.g. ('branch',)")
        vars(self)["whole"] = net  # not registered: its parameters are not this module's
        self.prefixes = tuple(prefixes)
        self.feature_size = net.feature_size if isinstance(net, FeatureNetwork) else 0
        self._shelve()
        own = {id(p) for p in self.parameters()}
        for p in net.parameters():
            if id(p) not in own:
                p.requires_grad_(False)
        mode = self.training
        net.eval()
        self.train(mode)

    def _shelve(self) -> None:
        """Register the parts under their names."""
        self._modules.clear()
        self._parameters.clear()
        for prefix in self.prefixes:
            found = _find(self.whole, prefix)
            *path, last = prefix.split(".")
            at: nn.Module = self
            for name in path:
                if name not in at._modules:
                    at.add_module(name, Shelf().train(self.training))
                below = at._modules[name]
                if not isinstance(below, Shelf):
                    raise UsageError(f"the part '{prefix}' lies within another part; name one of them alone")
                at = below
            if last in at._modules or last in at._parameters:
                raise UsageError(f"the part '{prefix}' is named twice, or holds another part; name each alone")
            at.register_parameter(last, found) if isinstance(found, nn.Parameter) else at.add_module(last, found)

    @property
    def emb_channels(self) -> int:
        return self.whole.emb_channels  # pyright: ignore[reportReturnType]

    @property
    def embed_scalars(self) -> nn.ModuleDict:
        return self.whole.embed_scalars  # pyright: ignore[reportReturnType]

    def prepared(self, cond: Cond) -> Cond:
        """What the network makes of the condition's picture once."""
        return prepared_by(self.whole, cond)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond = NULL, features: bool = False) -> Any:
        return self.whole(x, c_noise, cond, features=True) if features else self.whole(x, c_noise, cond)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Partial:
        self.whole._apply(fn, recurse)
        self._shelve()  # a parameter may have become another object
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Partial:
        own = {id(t) for t in (*self.parameters(), *self.buffers())}
        for frozen in (*self.whole.parameters(), *self.whole.buffers()):
            if id(frozen) not in own:
                memo[id(frozen)] = frozen
        made = Partial(copy.deepcopy(self.whole, memo), self.prefixes)
        memo[id(self)] = made
        return made.train(self.training)


def whole_of(net: nn.Module) -> nn.Module:
    """All of a network of which only a part is trained."""
    return net.whole if isinstance(net, Partial) else net


def load_part(net: nn.Module, tensors: Mapping[str, Tensor], what: str) -> nn.Module:
    """The network with exactly these weights, in eval mode: those of its part, or (of an export that stands alone) of all of it.

    **Raises**: as `load_strict`.
    """
    load_strict(whole_of(net) if set(tensors) - set(net.state_dict()) else net, tensors, what)
    return net.eval()
