"""TorchScript archives as tensors: what their modules hold is taken out by name, and the code beside it is never looked at."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewstep.errors import UsageError
from fewstep.nets.readers.safe_pickle import PLAIN, Global, Make, Record, Refused, inert, loads, token

if TYPE_CHECKING:
    from torch import Tensor

CODE = "__torch__."  # begins the names of the classes whose code an archive brings along
DEEPEST = 32  # modules in modules
# Storage classes, by the name of the dtype that torch has for them.
STORAGES = {
    "torch.FloatStorage": "float32",
    "torch.DoubleStorage": "float64",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
AGAIN = "get it again from its publisher"


@dataclass(frozen=True)
class _Storage:
    """Where the numbers of some tensors lie: a file of the archive, their type and how many there are."""

    name: str
    dtype: str
    count: int


@dataclass(frozen=True)
class _View:
    """A tensor in a storage."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _storage(key: Any) -> _Storage:
    if not (isinstance(key, tuple) and len(key) == 5 and key[0] == "storage" and isinstance(key[1], Global) and key[1].name in STORAGES):
        raise Refused("it asks for something else than a storage of numbers")
    _, kind, name, _, count = key
    if not (isinstance(name, str) and name.isalnum() and type(count) is int and count >= 0):
        raise Refused("it names a storage that cannot be one")
    return _Storage(name, STORAGES[kind.name], count)


def _naturals(values: Any) -> tuple[int, ...]:
    """A tuple of numbers from 0 on, and no more of them than tensors have dimensions."""
    if not isinstance(values, tuple) or len(values) > 8 or not all(type(n) is int and n >= 0 for n in values):
        raise Refused("it has a tensor that is no view of a storage")
    return values


def _view(storage: Any = None, offset: Any = None, size: Any = None, stride: Any = None, *_: Any) -> _View:
    (start,), shape, steps = _naturals((offset,)), _naturals(size), _naturals(stride)
    if not isinstance(storage, _Storage) or len(shape) != len(steps):
        raise Refused("it has a tensor that is no view of a storage")
    last = -1 if 0 in shape else sum((n - 1) * step for n, step in zip(shape, steps))
    if start + last >= storage.count or math.prod(shape) > storage.count:
        raise Refused("it has a tensor that is larger than its storage")
    return _View(storage, start, shape, steps)


def _values(*args: Any) -> Any:
    return args[0] if args else None


LISTED: dict[str, Make] = {
    **PLAIN,
    **dict.fromkeys(STORAGES, token),
    "torch._utils._rebuild_tensor_v2": _view,
    **dict.fromkeys((f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")), _values),
    "torch.jit._pickle.restore_type_tag": _values,
}


def _find(name: str) -> Make | None:
    return inert(name) if name.startswith(CODE) else LISTED.get(name)


def _tensors(record: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, _View]]:
    """The tensors of a module and the modules in it, by the names that its state dict has."""
    if depth > DEEPEST:
        raise Refused(f"its modules lie more than {DEEPEST} deep")
    for name, value in record.state.items() if isinstance(record.state, dict) else ():
        if isinstance(value, _View):
            yield f"{prefix}{name}", value
        elif isinstance(value, Record):
            yield from _tensors(value, f"{prefix}{name}.", depth + 1)


def read_torchscript(raw: bytes, what: str) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive by their names in its modules (`layers.conv.weight`), as its own `state_dict` has them.

    **Raises**: UsageError, one line that begins with `what`, for a truncated or altered archive, another kind of file, and one whose
    pickle names, calls or builds anything but tensors and modules.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            (found,) = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1] or [""]
            if not found:
                raise UsageError(f"{what} is no TorchScript archive: it has no data.pkl; {AGAIN}")
            root = found.removesuffix("data.pkl")
            if sum(info.file_size for info in archive.infolist()) > 2 * len(raw) + 2**20:
                raise UsageError(f"{what} unpacks to far more than its size; {AGAIN}")
            module = loads(archive.read(found), _find, f"{what} (data.pkl)", _storage)
            if not isinstance(module, Record) or not module.name.startswith(CODE):
                raise UsageError(f"{what} holds no module, but a {type(module).__name__}; {AGAIN}")
            views = dict(_tensors(module))
            read = {storage: archive.read(f"{root}data/{storage.name}") for storage in {view.storage for view in views.values()}}
    except Refused as err:
        raise UsageError(f"{what} is not read, because {err}; {AGAIN}") from None
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError, ValueError) as err:
        raise UsageError(f"{what} is truncated, or no TorchScript archive ({type(err).__name__}: {err}); {AGAIN}") from None
    return {name: _tensor(view, read[view.storage], what) for name, view in views.items()}


def _tensor(view: _View, data: bytes, what: str) -> Tensor:
    import torch

    dtype = getattr(torch, view.storage.dtype)
    if len(data) != view.storage.count * dtype.itemsize:
        raise UsageError(
            f"{what} has {len(data)} bytes in storage {view.storage.name} instead of {view.storage.count * dtype.itemsize}; {AGAIN}"
        )
    if not data:
        return torch.zeros(view.size, dtype=dtype)
    flat = torch.frombuffer(bytearray(data), dtype=dtype)
    return flat.as_strided(view.size, view.stride, view.offset).clone(memory_format=torch.contiguous_format)
