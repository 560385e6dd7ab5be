"""diffusers' own folders of ControlNets and T2I-Adapters, on a network of ours around its `UNet2DConditionModel`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.errors import UsageError
from fewstep.nets.branches.adapted import Adapted, with_branch
from fewstep.nets.branches.control_diffusers import check_control
from fewstep.nets.loading import load_strict
from fewstep.nets.published.diffusers_text_unet import DiffusersTextUNet
from fewstep.nets.readers.diffusers_folder import WEIGHTS, check_sizes, json_of, weights_in
from fewstep.nets.readers.hub import CONFIG
from fewstep.nets.readers.layouts import MOST
from fewstep.nets.readers.opened import AGAIN

KINDS = ("ControlNetModel", "T2IAdapter")
MOST_FACTOR = 64


def _widths(config: Mapping[str, Any], key: str, default: tuple[int, ...], where: Path) -> tuple[int, ...]:
    """A setting that is a list of widths. **Raises**: UsageError for another."""
    value = config.get(key, default)
    good = isinstance(value, list | tuple) and 0 < len(value) <= MOST["levels"]
    if not good or not all(isinstance(n, int) and 0 < n <= MOST["channels"] for n in value):
        raise UsageError(f"{where}: {key} is a list of widths, got {str(value)[:80]}; {AGAIN}")
    return tuple(value)


def _count(config: Mapping[str, Any], key: str, default: int, most: int, where: Path) -> int:
    """A setting that is a count. **Raises**: UsageError for another."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise UsageError(f"{where}: {key} is 1 to {most}, got {str(value)[:80]}; {AGAIN}")
    return value


def _control(folder: Path, config: Mapping[str, Any], net: DiffusersTextUNet) -> Adapted:
    from diffusers.models.controlnets.controlnet import ControlNetModel

    where = folder / CONFIG
    check_sizes(config, where)
    known = inspect.signature(ControlNetModel.__init__).parameters
    if unknown := [key for key in config if not key.startswith("_") and key not in known]:
        raise UsageError(f"{where}: a ControlNetModel has no '{unknown[0]}' in this version of diffusers; {AGAIN}")
    for key, plain in (("controlnet_conditioning_channel_order", "rgb"), ("global_pool_conditions", False), ("addition_embed_type", None)):
        if config.get(key, plain) != plain:
            raise UsageError(f"{where}: a ControlNet with {key} {config[key]} is not read; use one with {plain}")
    check_control(config, net, str(folder))
    widths = _widths(config, "conditioning_embedding_out_channels", (16, 32, 96, 256), where)
    channels = _count(config, "conditioning_channels", 3, MOST["channels"], where)
    return with_branch(net, "control", channels, {"widths": widths})


def _t2i(folder: Path, config: Mapping[str, Any], net: DiffusersTextUNet) -> Adapted:
    where = folder / CONFIG
    kind = config.get("adapter_type", "full_adapter")
    if kind not in ("full_adapter", "light_adapter"):
        raise UsageError(f"{where}: adapter_type {str(kind)[:80]} is not read; full_adapter and light_adapter are")
    light, channels = kind == "light_adapter", _widths(config, "channels", (320, 640, 1280, 1280), where)
    made = (*channels, channels[-1]) if light else channels
    if made[: len(net.maps.levels)] != net.maps.levels:
        raise UsageError(
            f"{folder} makes maps of {list(made)} channels, and the network's levels have {list(net.maps.levels)}; they differ"
        )
    options = {
        "blocks": _count(config, "num_res_blocks", 2, MOST["blocks"], where),
        "factor": _count(config, "downscale_factor", 8, MOST_FACTOR, where),
        "zero": False,
    }
    return with_branch(net, "t2i_light" if light else "t2i", _count(config, "in_channels", 3, MOST["channels"], where), options)


def read_adapter_folder(folder: str | Path, net: nn.Module) -> Adapted:
    """A copy of a network with the ControlNet or T2I-Adapter of a folder that diffusers wrote; what it adds is as published.

    **Raises**: UsageError for another network than a `UNet2DConditionModel` of the adapter's sizes, and for a folder that lacks a part or
    whose weights are not safetensors.
    """
    folder = Path(folder)
    if not isinstance(net, DiffusersTextUNet):
        raise UsageError(f"{folder} is an adapter of a UNet2DConditionModel, and the network is a {type(net).__name__}; give it its own")
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{folder} has no {CONFIG}, so it is no folder of an adapter; get it from its publisher")
    config = json_of(folder / CONFIG)
    kind = config.get("_class_name")
    if kind not in KINDS:
        raise UsageError(f"{folder / CONFIG} is of a {str(kind)[:80]}, and adapters are {' or '.join(KINDS)}")
    with torch.random.fork_rng():
        made = (_control if kind == KINDS[0] else _t2i)(folder, config, net)
    inner: Any = made.branch.net if kind == KINDS[0] else made.branch.adapter
    unread = f"adapter.body.{len(net.maps.levels)}."  # of a light adapter, which makes one map more than the network has levels
    tensors = {key: value for key, value in weights_in(folder).items() if not key.startswith(unread)}
    load_strict(inner, tensors, f"weights {folder / WEIGHTS}")
    return made
