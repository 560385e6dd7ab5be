"""TorchScript archives as tensors: what their modules hold is taken out by name, and the code beside it is never looked at."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from fewstep.errors import UsageError
from fewstep.nets.readers.opened import AGAIN, BROKEN
from fewstep.nets.readers.pickled_torch import TORCH, View, load_archive, taken
from fewstep.nets.readers.safe_pickle import PLAIN, Make, Record, Refused, inert, walk

CODE = "__torch__."  # begins the names of the classes whose code an archive brings along


def _values(*args: Any) -> Any:
    return args[0] if args else None


LISTED: dict[str, Make] = {
    **PLAIN,
    **TORCH,
    **dict.fromkeys((f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")), _values),
    "torch.jit._pickle.restore_type_tag": _values,
}


def _find(name: str) -> Make | None:
    return inert(name) if name.startswith(CODE) else LISTED.get(name)


def _members(record: Record) -> Iterator[tuple[Any, Any]]:
    yield from record.state.items() if isinstance(record.state, dict) else ()


def read_torchscript(raw: bytes, what: str) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive by their names in its modules (`layers.conv.weight`), as its own `state_dict` has them.

    **Raises**: UsageError, one line that begins with `what`, for a truncated or altered archive, another kind of file, and one whose
    pickle names, calls or builds anything but tensors and modules.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            module, size = load_archive(archive, len(raw), _find, what)
            if not isinstance(module, Record) or not module.name.startswith(CODE):
                raise UsageError(f"{what} holds no module, but a {type(module).__name__}; {AGAIN}")
            return taken(((name, value) for name, value in walk(module, _members, size) if isinstance(value, View)), size)
    except Refused as err:
        raise UsageError(f"{what} is not read, because {err}; {AGAIN}") from None
    except BROKEN as err:
        raise UsageError(f"{what} is truncated, or no TorchScript archive ({type(err).__name__}: {err}); {AGAIN}") from None
