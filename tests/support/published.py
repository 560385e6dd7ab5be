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

from fewstep.cond import Cond
from fewstep.nets.published.diffusers_unet import DiffusersUNet
from fewstep.nets.published.edm import DhariwalUNet, SongUNet
from fewstep.nets.published.openai_unet import OpenaiUNet

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"
LEVELS = {"channels": 8, "mult": [1, 2], "blocks": 1, "attention": [4]}
WIDE = {"channels": 32, "mult": [1, 2], "blocks": 1, "attention": [1]}
DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
DIFFUSERS = {"sample_size": 8, "block_out_channels": (32, 32), "layers_per_block": 1, "norm_num_groups": 8, "num_class_embeds": 3}
NETS = {
    "ddpmpp": lambda: SongUNet((3, 8, 8), 3, LEVELS, augment=9),
    "ncsnpp": lambda: SongUNet((3, 8, 8), 3, LEVELS, "ncsnpp", step_condition=True),
    "adm": lambda: DhariwalUNet((3, 8, 8), 3, {**LEVELS, "channels": 32}, outputs=2),
    "openai": lambda: OpenaiUNet((3, 8, 8), 3, WIDE),
    "openai, added": lambda: OpenaiUNet((3, 8, 8), 3, WIDE, shifted=False, two_time=True),
    "diffusers": lambda: DiffusersUNet((3, 8, 8), 3, {**DIFFUSERS, "down_block_types": DOWN, "up_block_types": UP}),
}
X, C_NOISE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3, -0.5])
COND = Cond(label=torch.tensor([1, 3]), scalars={"steps": torch.tensor([2.0, 4.0]), "sigma_to": torch.tensor([-1.0, -1.5])})


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


def made(name: str) -> nn.Module:
    """One of the small networks, with weights."""
    net = NETS[name]()
    net.load_state_dict(golden_state(net))
    return net.eval()
