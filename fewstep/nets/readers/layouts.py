"""From the names and shapes of a published state dict to the card of its network; and whether that network has exactly these."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import UsageError
from fewstep.plugins import get

Shapes = Mapping[str, Tensor]
# What constructors raise for a configuration that is none of theirs: ours a UsageError, diffusers' whatever it leads to.
UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, UsageError)
# Beyond which nothing is built, whatever a file says.
MOST = {"levels": 12, "blocks": 64, "channels": 8192, "size": 4096, "timesteps": 100_000}


def count(shapes: Shapes, pattern: str) -> int:
    """How many names match, counted from 0: the largest number in the first group, and one."""
    found = [int(m[1]) for name in shapes if (m := re.match(pattern, name))]
    return max(found, default=-1) + 1


def width(shapes: Shapes, name: str, axis: int = 0) -> int:
    """A size of a tensor. **Raises**: UsageError where there is no such tensor."""
    if name not in shapes or shapes[name].ndim <= axis:
        raise UsageError(f"it has no {name}")
    return int(shapes[name].shape[axis])


def check_layout(card: Mapping[str, Any], tensors: Shapes, what: str) -> None:
    """Whether the network of a card has exactly these names and shapes, found without making it.

    **Raises**: UsageError naming the first that differs.
    """
    try:
        with torch.device("meta"):
            net = get("network", card["arch"]).target(**card["config"])
    except UNFIT as err:
        raise UsageError(f"{what} are of no network that {card['arch']} can be ({err}); give a published checkpoint") from None
    same_layout(net, tensors, what)


def same_layout(net: nn.Module, tensors: Shapes, what: str) -> None:
    """**Raises**: UsageError naming the first name or shape of a network's state that tensors do not have, or have beside it."""
    own = net.state_dict()
    for name, value in own.items():
        if name not in tensors:
            raise UsageError(f"{what} lack '{name}'; they belong to another architecture or version")
        if tensors[name].shape != value.shape:
            raise UsageError(f"{what}: '{name}' has shape {list(tensors[name].shape)}, the network needs {list(value.shape)}")
    if extra := sorted(set(tensors) - set(own)):
        raise UsageError(f"{what} hold unknown keys {extra[:3]}; they belong to another architecture or version")


def edm_config(name: str, shapes: Shapes, told: Mapping[str, Any]) -> dict[str, Any]:
    """The card's `arch`, `config`, `shape` and `classes` of one of EDM's networks, from its tensors; of `told`, the arguments that it was
    made with, only the dropout is not seen there.

    **Raises**: UsageError for names that none of these networks has.
    """
    sizes = sorted({int(m[1]) for key in shapes if (m := re.match(r"enc\.(\d+)x\1_", key))}, reverse=True)
    if name not in ("SongUNet", "DhariwalUNet") or not sizes or len(sizes) > MOST["levels"] or sizes[0] > MOST["size"]:
        raise UsageError(f"its network is {name or 'unknown'}, which is none of SongUNet and DhariwalUNet")
    song, size = name == "SongUNet", sizes[0]
    image, channels = width(shapes, f"enc.{size}x{size}_conv.weight", 1), width(shapes, "map_layer1.weight") // 4
    blocks = count(shapes, rf"enc\.{size}x{size}_block(\d+)\.")
    if not 0 < channels <= MOST["channels"] or not 0 < blocks <= MOST["blocks"]:
        raise UsageError(f"its network has {channels} channels and {blocks} blocks")
    mult = [width(shapes, f"enc.{s}x{s}_block0.conv0.weight") // channels for s in sizes]
    attention = [s for s in sizes if f"enc.{s}x{s}_block0.qkv.weight" in shapes]
    classes = width(shapes, "map_label.weight", 1) if "map_label.weight" in shapes else 0
    dropout = told.get("dropout", 0.0)
    config: dict[str, Any] = {
        "shape": [image, size, size],
        "classes": classes,
        "levels": {"channels": channels, "mult": mult, "blocks": blocks, "attention": attention},
        "dropout": float(dropout) if isinstance(dropout, int | float) and 0 <= dropout < 1 else 0.0,
        "augment": width(shapes, "map_augment.weight", 1) if "map_augment.weight" in shapes else 0,
    }
    if song and "map_noise.freqs" in shapes:
        config["kind"] = "ncsnpp"
    if not song and width(shapes, "out_conv.weight") == 2 * image:
        config["outputs"] = 2
    if "map_step_layer0.weight" in shapes:
        config["step_condition"] = True
    arch = "song_unet" if song else "dhariwal_unet"
    return {"arch": arch, "config": config, "shape": config["shape"], "classes": classes}


def openai_config(shapes: Shapes, size: int) -> dict[str, Any]:
    """The card's `arch`, `config`, `shape` and `classes` of a U-Net of openai's consistency models (or CTM's) for [size, size] images.

    How many levels share the blocks is not in the names alone: each number that divides them is tried. **Raises**: UsageError where none
    of them fits.
    """
    blocks = count(shapes, r"input_blocks\.(\d+)\.")
    image, channels = width(shapes, "input_blocks.0.0.weight", 1), width(shapes, "time_embed.0.weight", 1)
    classes = width(shapes, "label_emb.weight") if "label_emb.weight" in shapes else 0
    if not 0 < channels <= MOST["channels"] or not 1 < blocks <= MOST["blocks"] or not 0 < size <= MOST["size"]:
        raise UsageError(f"its network has {channels} channels and {blocks} blocks for images of {size} pixels")
    first = "input_blocks.1.0"
    shifted = width(shapes, f"{first}.emb_layers.1.weight") == 2 * width(shapes, f"{first}.out_layers.3.weight")
    for levels in (n for n in range(1, blocks + 1) if blocks % n == 0 and blocks // n > 1):
        each, starts = blocks // levels - 1, [1 + level * (blocks // levels) for level in range(levels)]
        mult = [width(shapes, f"input_blocks.{at}.0.out_layers.3.weight") // channels for at in starts]
        attention = [level for level, at in enumerate(starts) if f"input_blocks.{at}.1.qkv.weight" in shapes]
        config = {
            "shape": [image, size, size],
            "classes": classes,
            "levels": {"channels": channels, "mult": mult, "blocks": each, "attention": attention},
            "shifted": shifted,
            **({"two_time": True} if "time_embed_s.0.weight" in shapes else {}),
        }
        found = {"arch": "openai_unet", "config": config, "shape": config["shape"], "classes": classes}
        if fits(found, shapes):
            return found
    raise UsageError("its blocks are none of an ADM U-Net's")


def fits(card: Mapping[str, Any], tensors: Shapes) -> bool:
    """Whether the network of a card has exactly these names and shapes."""
    try:
        check_layout(card, tensors, "they")
    except UsageError:
        return False
    return True
