"""The checkpoints of openai's consistency models and of CTM (`.pt`): state dicts of one U-Net, read as tensors only.

The size of the images is in the file's name alone (`cd_imagenet64_l2.pt`, `edm_bedroom256_ema.pt`), and so is what it was trained for:
`edm_` is a teacher, `cd_` and `ct_` are consistency models; a flow map is told by its second embedding.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.errors import UsageError
from fewstep.files import file_digest
from fewstep.nets.readers.card import identity
from fewstep.nets.readers.layouts import check_layout, openai_config
from fewstep.nets.readers.opened import AGAIN, BROKEN, check_file, check_held, opened
from fewstep.nets.readers.pickled_torch import TORCH, View, load_archive, load_older, taken
from fewstep.nets.readers.safe_pickle import PLAIN, Refused
from fewstep.plugins import register

NAME = re.compile(r"(?:(edm|cd|ct|ctm)[_-])?([a-z]+)(\d+)")
DATA = {"imagenet": "imagenet64", "bedroom": "data/lsun_bedroom", "cat": "data/lsun_cat", "cifar": "cifar10"}  # LSUN is a folder of images
LISTED = {**PLAIN, **TORCH}
STUDENTS = ("cd", "ct", "ctm")


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict that `torch.save` wrote, in float32.

    **Raises**: UsageError for a damaged file, and for one that holds more.
    """
    check_file(path)
    size, what = path.stat().st_size, f"weights {path}"
    try:
        with open(path, "rb") as file:
            archived = file.read(2) == b"PK"
        if archived:
            with zipfile.ZipFile(path) as archive:
                state, unpacked = load_archive(archive, size, LISTED.get, what)
                found = taken(_named(state), unpacked)
        else:
            found = taken(_named(load_older(opened(path), LISTED.get, what)), size)
    except Refused as err:
        raise UsageError(f"{what} are not read, because {err}; {AGAIN}") from None
    except BROKEN as err:
        raise UsageError(f"{what} are no file of tensors ({type(err).__name__}: {str(err)[:120]}); {AGAIN}") from None
    return {name: value.float() if value.is_floating_point() else value for name, value in found.items()}


def _named(state: Any) -> Iterator[tuple[str, View]]:
    if not isinstance(state, dict) or not all(isinstance(name, str) and isinstance(value, View) for name, value in state.items()):
        raise Refused("they hold something else than named tensors")
    yield from state.items()


def data_named(path: Path) -> dict[str, str]:
    """The data that a published file's name names, as a card has them; nothing for another name."""
    named = NAME.match(path.stem.lower())
    return {"data": DATA[named[2]]} if named and named[2] in DATA else {}


@register("reader", "openai_pt", suffixes=(".pt",), told=data_named)
def read_openai(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card of a U-Net of openai's consistency models, or of CTM.

    **Raises**: UsageError for a file that is damaged or holds another architecture, and for a name that does not say the images' size.
    """
    named = NAME.match(path.stem.lower())
    tensors, digest = tensors_of(path), file_digest(path)
    check_held(path.name, digest, f"weights {path}")
    if named is None:
        raise UsageError(f"weights {path} do not say the size of their images; name the file as published, e.g. cd_imagenet64_l2.pt")
    method, size = named[1] or "", int(named[3])
    try:
        card: dict[str, Any] = openai_config(tensors, size)
    except UsageError as err:
        raise UsageError(f"weights {path} hold another network than openai's: {err}; give one of its checkpoints") from None
    check_layout(card, tensors, f"weights {path}")
    card |= {"sigma_data": 0.5, "sigma_range": [0.002, 80.0], "sha256": digest, "source": path.name}
    card |= data_named(path)
    card |= {"null": False} if card["classes"] else {}
    if card["config"].get("two_time"):
        method = "ctm"
    if method in ("cd", "ct"):
        card["precond"] = {"kind": "consistency", "sigma_min": 0.002}
    if method in STUDENTS:
        card["student"] = {"published": True, "method": method}
    return tensors, {**card, "identity": identity(card)}
