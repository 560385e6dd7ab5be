"""The blocks of diffusers' U-Nets one by one, as their networks call them, with room for what an adapter adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.cond import Cond
from fewstep.errors import UsageError
from fewstep.nets.encoding import Maps, level_ends, reading

PLAIN = ("DownBlock2D", "AttnDownBlock2D")  # whose last map can be added to before it is halved


def maps_of(config: Mapping[str, Any]) -> Maps:
    """The maps of a `UNet2DModel` or `UNet2DConditionModel` of a configuration."""
    widths = tuple(config["block_out_channels"])
    layers = config["layers_per_block"]
    blocks = [layers] * len(widths) if isinstance(layers, int) else list(layers)
    made = [widths[0]]
    for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        made += [width] * (count + (level < len(widths) - 1))  # the last is halved, and the next level's first
    return Maps((*made, widths[-1]), level_ends(blocks))


def down(block: Any, h: Tensor, emb: Tensor, text: Tensor | None = None, added: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """A block of the way down: its last map, and all that the way up reads; `added` joins the last one before it is halved.

    **Raises**: UsageError for a kind of block that has no room for it.
    """
    kind = type(block).__name__
    if kind == "CrossAttnDownBlock2D":
        h, made = block(h, emb, encoder_hidden_states=text, additional_residuals=added)
        return h, list(made)
    if added is None:
        h, made = block(h, emb)
        return h, list(made)
    if kind not in PLAIN:
        raise UsageError(f"nothing can be added inside of a {kind}; use a branch that joins maps after it (codi, control, concat)")
    maps: list[Tensor] = []
    for i, resnet in enumerate(block.resnets):
        h = resnet(h, emb)
        h = block.attentions[i](h) if kind == "AttnDownBlock2D" else h
        maps.append(h)
    h = maps[-1] = h + added
    for downsampler in block.downsamplers or ():
        h = downsampler(h, temb=emb) if kind == "AttnDownBlock2D" and block.downsample_type == "resnet" else downsampler(h)
        maps.append(h)
    return h, maps


def embeddings_of(unet: Mapping[str, Any], classes: int, kind: str) -> int:
    """The class embeddings of a configuration. **Raises**: UsageError where they are neither as many as classes, nor one more for none."""
    found = unet.get("num_class_embeds") or 0
    if found - classes not in (0, 1):
        raise UsageError(f"a {kind} of {classes} classes has as many class embeddings, or one more for none, not {found}")
    return found


def labelled(embedding: Any, cond: Cond, classes: int, emb: Tensor) -> Tensor:
    """The embedding [B, E] with that of the labels; one past the last class, and no label, adds nothing where it has no embedding."""
    if embedding is None:
        return emb
    label = cond.label if cond.label is not None else torch.full((len(emb),), classes, device=emb.device)
    known = label < embedding.num_embeddings
    return emb + embedding(torch.where(known, label, 0)) * known[:, None].to(emb.dtype)


def without_decoder(unet: Any, channels: int) -> None:
    """Take the way up out of a library's U-Net, which then reads pictures of so many channels (0: its own images)."""
    unet.up_blocks = nn.ModuleList()
    unet.conv_norm_out, unet.conv_out = None, nn.Identity()
    if channels:
        unet.conv_in = reading(unet.conv_in, channels)


def up(block: Any, h: Tensor, maps: Sequence[Tensor], emb: Tensor, text: Tensor | None = None) -> Tensor:
    """A block of the way up on its maps of the way down."""
    if type(block).__name__ == "CrossAttnUpBlock2D":
        return block(h, tuple(maps), emb, encoder_hidden_states=text)
    return block(h, tuple(maps), emb)
