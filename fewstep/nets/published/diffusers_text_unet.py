"""Any `UNet2DConditionModel` of diffusers that is told levels, labels and text, from its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.cond import NULL, Cond
from fewstep.errors import UsageError, near_misses
from fewstep.nets.encoding import Context, both_ways, halved
from fewstep.nets.published.diffusers_blocks import down, embeddings_of, labelled, maps_of, up, without_decoder
from fewstep.nets.unet import ScalarAdapter, check_scalars, told
from fewstep.plugins import register

KINDS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
}
PLAIN = {  # what a network that is told something else than levels, labels and text has otherwise
    "addition_embed_type": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "time_embedding_type": "positional",
    "time_embedding_act_fn": None,
    "attention_type": "default",
    "dual_cross_attention": False,
}


def check_text_config(config: Mapping[str, Any], shape: Sequence[int]) -> None:
    """**Raises**: UsageError for a key that diffusers does not know here, for blocks that ControlNets do not have either, for networks that
    are told something else, and for images that do not divide."""
    import inspect

    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    known = [name for name in inspect.signature(UNet2DConditionModel.__init__).parameters if name != "self"]
    for key, value in config.items():
        if key not in known:
            raise UsageError(f"a UNet2DConditionModel has no '{key}' in this version of diffusers{near_misses(key, known)}")
        if key in PLAIN and value != PLAIN[key]:
            raise UsageError(f"a UNet2DConditionModel with {key} {value} is not read; use one that is told levels, labels and text alone")
        if key in KINDS and (wrong := [kind for kind in ([value] if key == "mid_block_type" else value) if kind not in KINDS[key]]):
            raise UsageError(f"a UNet2DConditionModel with {key} {wrong[0]} is not read; use {' or '.join(map(str, KINDS[key]))}")
    width = config.get("cross_attention_dim", 1280)
    if not isinstance(width, int):
        raise UsageError(f"a UNet2DConditionModel reads one text, and cross_attention_dim is {width!r}; give it one width, e.g. 768")
    halved_to = 2 ** (len(config.get("block_out_channels", (320, 640, 1280, 1280))) - 1)
    if any(n % halved_to for n in shape[1:]):
        raise UsageError(f"a UNet2DConditionModel of this depth makes images of multiples of {halved_to}, got {shape[1]} x {shape[2]}")


def text_of(cond: Cond, x: Tensor, width: int) -> Tensor | None:
    """The text [B, L, width] that a network reads, one token of zeros where none is given; None for one that reads none (width 0).

    **Raises**: UsageError for text of another width.
    """
    if not width:
        return None
    if cond.text is None:
        return x.new_zeros(len(x), 1, width)
    if cond.text.shape[-1] != width:
        raise UsageError(f"cond.text has width {cond.text.shape[-1]}, and the network reads {width}; use its own text encoder")
    return cond.text.to(x.dtype)


@register("network", "diffusers_unet2d_condition", "arXiv 2112.10752; diffusers UNet2DConditionModel")
class DiffusersTextUNet(nn.Module):
    """F(c_in x, c_noise, label, text) by a `UNet2DConditionModel` of this configuration, told c_noise times `time_scale` as its timestep.

    **Shapes**: x [B, C, H, W], c_noise [B], label [B] int64 in 0..classes (one past the last adds nothing where it has no embedding),
    text [B, L, `text_width`]; output like x: the first C channels of the model's. Where there is cross-attention, no text is one token of
    zeros; of a network that was trained with the empty text, give its embedding. `scalars` start without effect; with `features` also the
    deepest map. **Raises**: UsageError for a configuration that `check_text_config` refuses, and for text of another width.
    """

    form = "eps"
    version: ClassVar[int] = 1  # of what the same weights compute

    def __init__(
        self, shape: Sequence[int], classes: int, unet: Mapping[str, Any], time_scale: float = 1.0, scalars: Sequence[str] = ()
    ) -> None:
        super().__init__()
        check_scalars(scalars)
        check_text_config(unet, shape)
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        embeddings_of(unet, classes, "UNet2DConditionModel")
        self.unet: Any = UNet2DConditionModel(**unet)
        config = self.unet.config
        self.shape, self.classes, self.channels, self.time_scale = tuple(shape), classes, shape[0], time_scale
        self.maps, self.emb_channels = maps_of(config), int(self.unet.time_embedding.linear_2.out_features)
        crosses = any(
            "CrossAttn" in str(kind) for kind in (*config["down_block_types"], config["mid_block_type"], *config["up_block_types"])
        )
        self.text_width = int(config["cross_attention_dim"]) if crosses else 0
        self.feature_size = math.prod(n >> (len(config["block_out_channels"]) - 1) for n in shape[1:])
        self.embed_scalars = nn.ModuleDict({name: ScalarAdapter(self.emb_channels) for name in scalars})
        self.to(memory_format=torch.channels_last)

    def context(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Context:
        t = self.time_scale * c_noise
        emb = self.unet.time_embedding(self.unet.time_proj(t).to(x.dtype))
        emb = labelled(self.unet.class_embedding, cond, self.classes, emb)
        return Context(told(self.embed_scalars, cond, emb), text=text_of(cond, x, self.text_width), time=t)

    def encode(self, x: Tensor, context: Context, hint: Tensor | None = None, added: Sequence[Tensor] = ()) -> list[Tensor]:
        unet = self.unet
        image = 2 * x - 1 if unet.config["center_input_sample"] else x
        h = unet.conv_in(image.contiguous(memory_format=torch.channels_last))
        maps = [h if hint is None else h + hint]
        for level, block in enumerate(unet.down_blocks):
            _, made = down(block, maps[-1], context.emb, context.text, added[level] if added else None)
            maps += made
        h = maps[-1]
        if unet.mid_block is not None:
            crosses = unet.config["mid_block_type"] == "UNetMidBlock2DCrossAttn"
            h = unet.mid_block(h, context.emb, encoder_hidden_states=context.text) if crosses else unet.mid_block(h, context.emb)
        return [*maps, h]

    def decode(self, maps: Sequence[Tensor], context: Context) -> Tensor:
        unet = self.unet
        *skips, h = maps
        for block in unet.up_blocks:
            own = len(block.resnets)
            h = up(block, h, skips[-own:], context.emb, context.text)
            del skips[-own:]
        h = h if unet.conv_norm_out is None else unet.conv_act(unet.conv_norm_out(h))
        return unet.conv_out(h)[:, : self.channels].contiguous()

    def encoder(self, channels: int = 0) -> DiffusersTextUNet:
        made = halved(self, ())
        without_decoder(made.unet, channels)
        return made

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond = NULL, features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        return both_ways(self, x, c_noise, cond, features)
