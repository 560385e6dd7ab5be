"""The checkpoints of openai's consistency models and of CTM (`.pt`): state dicts of one U-Net, read as tensors only.

The size of the images is in the file's name alone (`cd_imagenet64_l2.pt`, `edm_bedroom256_ema.pt`), and so is what it was trained for:
`edm_` is a teacher, `cd_` and `ct_` are consistency models; a flow map is told by its second embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.files import file_digest
from fewstep.nets.readers.card import identity
from fewstep.nets.readers.layouts import check_layout, openai_config
from fewstep.nets.readers.opened import AGAIN, check_file
from fewstep.plugins import register

NAME = re.compile(r"(?:(edm|cd|ct|ctm)[_-])?([a-z]+)(\d+)")
DATA = {"imagenet": "imagenet64", "bedroom": "lsun_bedroom", "cat": "lsun_cat", "cifar": "cifar10"}
STUDENTS = ("cd", "ct", "ctm")


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict that `torch.save` wrote. **Raises**: UsageError for a damaged file, and for one that holds more."""
    check_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:
        reason = str(err).partition("\n")[0].partition(". ")[0][:120]
        raise UsageError(f"weights {path} are no file of tensors ({type(err).__name__}: {reason}); {AGAIN}") from None
    if not isinstance(state, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UsageError(f"weights {path} hold something else than named tensors; {AGAIN}")
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


@register("reader", "openai_pt", suffixes=(".pt",))
def read_openai(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card of a U-Net of openai's consistency models, or of CTM.

    **Raises**: UsageError for a file that is damaged or holds another architecture, and for a name that does not say the images' size.
    """
    named = NAME.match(path.stem.lower())
    tensors = tensors_of(path)
    if named is None:
        raise UsageError(f"weights {path} do not say the size of their images; name the file as published, e.g. cd_imagenet64_l2.pt")
    method, word, size = named[1] or "", named[2], int(named[3])
    try:
        card: dict[str, Any] = openai_config(tensors, size)
    except UsageError as err:
        raise UsageError(f"weights {path} hold another network than openai's: {err}; give one of its checkpoints") from None
    check_layout(card, tensors, f"weights {path}")
    card |= {"sigma_data": 0.5, "sigma_range": [0.002, 80.0], "sha256": file_digest(path), "source": path.name}
    card |= {"data": DATA[word]} if word in DATA else {}
    if card["config"].get("two_time"):
        method = "ctm"
    if method in ("cd", "ct"):
        card["precond"] = {"kind": "consistency", "sigma_min": 0.002}
    if method in STUDENTS:
        card["student"] = {"published": True, "method": method}
    return tensors, {**card, "identity": identity(card)}
