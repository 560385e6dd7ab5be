"""diffusers' own `ControlNetModel` as the branch of a network of ours around its `UNet2DConditionModel`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.cond import Cond
from fewstep.errors import UsageError
from fewstep.nets.encoding import Context, Encoding
from fewstep.nets.published.diffusers_text_unet import DiffusersTextUNet, text_of

PARTS = ("conv_in", "time_proj", "time_embedding", "class_embedding", "down_blocks", "mid_block")  # that a ControlNet has a copy of
NOT_THERE = "cond_proj."  # a ControlNet reads no guidance weight


def control_config(base: DiffusersTextUNet, channels: int, widths: Sequence[int]) -> dict[str, Any]:
    """The arguments of a `ControlNetModel` for the network. **Raises**: UsageError for a network that it has no copy of."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    known = inspect.signature(ControlNetModel.__init__).parameters
    config = {key: value for key, value in base.unet.config.items() if key in known and not key.startswith("_")}
    if not isinstance(config["layers_per_block"], int) or config["mid_block_type"] is None or base.unet.config["center_input_sample"]:
        raise UsageError("a ControlNetModel copies networks of one number of layers per block, a middle, and inputs as they are; use codi")
    return {**config, "conditioning_channels": channels, "conditioning_embedding_out_channels": tuple(widths)}


def control_net(base: DiffusersTextUNet, channels: int, widths: Sequence[int]) -> nn.Module:
    """A `ControlNetModel` with the network's weights. (Its own `from_unet` fails for one that is told a guidance weight.)"""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    kind: Any = ControlNetModel
    made = kind(**control_config(base, channels, widths))
    for name in PARTS:
        own, theirs = getattr(made, name), getattr(base.unet, name)
        if own is not None:
            own.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith(NOT_THERE)})
    return made.to(memory_format=torch.channels_last)


def check_control(config: Mapping[str, Any], base: DiffusersTextUNet, where: str) -> None:
    """**Raises**: UsageError for a ControlNet of a network of other widths, blocks or text."""
    own = base.unet.config
    for key in ("in_channels", "block_out_channels", "layers_per_block", "down_block_types", "cross_attention_dim", "num_class_embeds"):
        theirs = config.get(key, own[key])
        if (list(theirs) if isinstance(theirs, list | tuple) else theirs) != (
            list(own[key]) if isinstance(own[key], tuple | list) else own[key]
        ):
            raise UsageError(f"{where} is of a network with {key} {theirs}, and this one has {own[key]}; give it its own backbone")


class DiffusersControl(nn.Module):
    """What a `ControlNetModel` adds to every map that the decoder reads, times `scale`.

    **Source**: arXiv 2302.05543; its own pipelines call it so.
    """

    once = False

    def __init__(self, net: nn.Module, base: DiffusersTextUNet, scale: float) -> None:
        super().__init__()
        self.net: Any = net
        self.scale, self.text_width, self.time_scale, self.classes = float(scale), base.text_width, base.time_scale, base.classes
        self.factor = 2 ** (len(self.net.config["conditioning_embedding_out_channels"]) - 1)

    def _label(self, cond: Cond, x: Tensor) -> Tensor | None:
        """Labels as it reads them. **Raises**: UsageError for none where it knows no embedding of none."""
        embedding = self.net.class_embedding
        if embedding is None:
            return None
        if embedding.num_embeddings == self.classes and (cond.label is None or bool((cond.label >= self.classes).any())):
            raise UsageError(
                f"this ControlNet has embeddings of {self.classes} classes and of none; give every sample a class, or use codi"
            )
        return torch.full((len(x),), self.classes, device=x.device) if cond.label is None else cond.label

    def forward(self, picture: Tensor, x: Tensor, c_noise: Tensor, cond: Cond) -> tuple[Tensor, ...]:
        text, label = text_of(cond, x, self.text_width), self._label(cond, x)
        x = x.contiguous(memory_format=torch.channels_last)
        down, middle = self.net(x, self.time_scale * c_noise, text, picture, self.scale, label, return_dict=False)
        return (*down, middle)

    def join(self, base: Encoding, x: Tensor, context: Context, made: Sequence[Tensor]) -> list[Tensor]:
        return [h + own for h, own in zip(base.encode(x, context), made, strict=True)]
