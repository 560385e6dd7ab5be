"""LoRA by the package peft: matrices of low rank beside a network's own, for adapting it to a picture or to anything else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from fewstep.checks import check_count, check_number
from fewstep.errors import Unavailable, UsageError
from fewstep.nets.branches.concat import Beside
from fewstep.nets.encoding import joinable
from fewstep.nets.published import edm_layers
from fewstep.plugins import register

SPARED = "embed_scalars."  # adapters of scalars are trained by whoever adds them


def plain(module: nn.Module) -> nn.Module | None:
    """torch's own layer that computes what a layer of EDM's networks does, with the same parameters; None for one that resamples."""
    if isinstance(module, edm_layers.Linear):
        made = nn.Linear(module.weight.shape[1], module.weight.shape[0], module.bias is not None, device="meta")
        made.weight, made.bias = module.weight, module.bias  # pyright: ignore[reportAttributeAccessIssue]
        return made
    if isinstance(module, edm_layers.Conv2d) and module.weight is not None and not (module.up or module.down):
        cout, cin, kernel, _ = module.weight.shape
        conv = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, device="meta")
        conv.weight, conv.bias = module.weight, module.bias
        return conv
    return None


def with_plain_layers(net: nn.Module) -> None:
    """Put torch's layers in place of EDM's, which peft does not know."""
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if (made := plain(child)) is not None:
                setattr(parent, name, made)


def layers_of(net: nn.Module) -> list[str]:
    """The names of the convolutions and linear layers that get matrices."""
    wanted = [name for name, module in net.named_modules() if type(module) in (nn.Conv2d, nn.Linear)]
    return [name for name in wanted if not name.startswith(SPARED)]


@register("branch", "lora", "arXiv 2106.09685")
@dataclass(frozen=True)
class LoRA:
    """W + (alpha / rank) B A for every convolution and linear layer that does not resample, B of zeros at the start, by the package peft.

    A picture is read by `concat`'s convolution; with 0 channels there is none, and any network of one's own will do.
    **Raises**: Unavailable without the package; UsageError for a rank or alpha that is none, and for a network without such layers.
    """

    rank: int = 4
    alpha: float = 4.0
    version: int = 1

    def __post_init__(self) -> None:
        check_count("rank of branch lora", self.rank, 1, "e.g. rank=4")
        check_number("alpha of branch lora", self.alpha, 0.0, "alpha / rank is a factor of what is added, e.g. alpha=4")

    def __call__(self, base: nn.Module, channels: int) -> Beside | None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as err:
            raise Unavailable("branch lora needs the package peft; type pip install 'fewstep[lora]', or pip install peft") from err
        branch = Beside(channels, joinable(base, "branch lora with a picture").maps.widths[0]) if channels else None
        with_plain_layers(base)
        if not (names := layers_of(base)):
            raise UsageError(f"a {type(base).__name__} has no convolution or linear layer for branch lora; use another branch")
        before = [(p, p.requires_grad) for p in base.parameters()]
        alpha: Any = self.alpha
        config = LoraConfig(r=self.rank, lora_alpha=alpha, target_modules="|".join(re.escape(name) for name in names))
        inject_adapter_in_model(config, base)
        for p, trained in before:
            p.requires_grad_(trained)
        return branch
