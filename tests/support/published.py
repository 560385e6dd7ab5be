"""Published networks with weights that anyone can rebuild: the rule of the golden vectors, by the names of the state dict."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.nets.published.edm import DhariwalUNet, SongUNet

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"


def golden_weights(key: str, shape: Sequence[int]) -> Tensor:
    """The weights of a key of a published state dict."""
    n = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    if key.endswith("freqs"):
        n = 16 * n
    elif len(shape) >= 2:
        n = n / np.sqrt(np.prod(shape[1:]))
    elif "norm" in key and "weight" in key:
        n = 1 + 0.1 * n
    else:
        n = 0.1 * n
    return torch.from_numpy(np.asarray(n, np.float32))


def golden_state(net: nn.Module, prefix: str = "model.") -> dict[str, Tensor]:
    """Golden weights for every key of a network; resampling filters keep their own values."""
    own = net.state_dict()
    return {k: v if k.endswith("resample_filter") else golden_weights(prefix + k, v.shape) for k, v in own.items()}


def records() -> dict[str, Any]:
    """The entries of the golden file: constructor, parameter count and layout of each network."""
    return json.loads((GOLDEN / "edm_networks.json").read_text())


def levels_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The levels of a published constructor's arguments."""
    song = config["model_type"] == "SongUNet"
    default = (4, [16]) if song else (3, [32, 16, 8])
    blocks, attention = config.get("num_blocks", default[0]), config.get("attn_resolutions", default[1])
    return {"channels": config["model_channels"], "mult": config["channel_mult"], "blocks": blocks, "attention": attention}


def published_net(config: Mapping[str, Any]) -> nn.Module:
    """The network of a published constructor's arguments."""
    shape = (config["img_channels"], config["img_resolution"], config["img_resolution"])
    given = {"levels": levels_of(config), "dropout": config["dropout"], "augment": config.get("augment_dim", 0)}
    if config["model_type"] == "DhariwalUNet":
        return DhariwalUNet(shape, config["label_dim"], **given)
    kind = "ncsnpp" if config["embedding_type"] == "fourier" else "ddpmpp"
    return SongUNet(shape, config["label_dim"], kind=kind, **given)
