"""torch's tensors in a pickle, taken out without torch's own unpickling: names of storages and of rebuilding functions, and no others.

A tensor is a `View` until it is taken: nothing is copied while a pickle is read, and `taken` copies no more than a file may hold.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.nets.readers.opened import check_unpacked, most_bytes
from fewstep.nets.readers.safe_pickle import Find, Global, Make, Refused, load_from, loads, token

TYPES = {  # of storages, by the names that files have for them
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Bool": torch.bool,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
}
STORAGES: dict[str, Make] = {f"torch.{name}Storage": token for name in TYPES}
DTYPES = {Global(f"torch.{name}Storage"): dtype for name, dtype in TYPES.items()}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch's file format before archives
MOST_DIMENSIONS, MOST = 8, 2**48  # of a tensor, and numbers in one
NONE: Find = {}.get  # for pickles of plain values


@dataclass(frozen=True, eq=False, repr=False)
class Storage:
    """A stretch of `count` numbers in a file, which `read` gives."""

    dtype: torch.dtype
    count: int
    read: Callable[[], bytes | memoryview]


@dataclass(frozen=True, eq=False, repr=False)
class View:
    """A tensor in a storage, not yet taken out."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.size) * self.storage.dtype.itemsize


def stored(key: Any) -> tuple[torch.dtype, str, int]:
    """Type, name and count of the storage that a persistent id means."""
    if not isinstance(key, tuple) or len(key) < 5 or key[0] != "storage" or not isinstance(key[1], Global) or key[1] not in DTYPES:
        raise Refused("it asks for something else than a storage of numbers")
    _, kind, name, _, count = key[:5]
    if not isinstance(name, str) or not name.isalnum() or type(count) is not int or not 0 <= count < MOST or any(key[5:]):
        raise Refused("it names a storage that cannot be one")
    return DTYPES[kind], name, count


def load_archive(archive: zipfile.ZipFile, size: int, find: Find, what: str) -> tuple[Any, int]:
    """What the pickle of an archive of `size` bytes holds, and how much all of it is unpacked. **Raises**: UsageError, Refused."""
    check_unpacked(archive, size, what)
    (found,) = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1] or [""]
    if not found:
        raise Refused("it has no data.pkl")
    root, read = found.removesuffix("data.pkl"), lru_cache(maxsize=1)(archive.read)  # tensors may share a storage

    def storage(key: Any) -> Storage:
        dtype, name, count = stored(key)
        return Storage(dtype, count, partial(read, f"{root}data/{name}"))

    return loads(archive.read(found), find, f"{what} (data.pkl)", storage), sum(info.file_size for info in archive.infolist())


def load_older(data: bytes | bytearray, find: Find, what: str) -> Any:
    """What is in a file of torch's format before archives: five pickles (the fourth is the value), then the numbers of all storages."""
    stream, raw = io.BytesIO(data), memoryview(data)
    known: dict[str, Storage] = {}
    places: dict[str, memoryview] = {}

    def storage(key: Any) -> Storage:
        dtype, name, count = stored(key)
        own = known.setdefault(name, Storage(dtype, count, lambda: places[name]))
        if (own.dtype, own.count) != (dtype, count):
            raise Refused("it has a storage of two kinds")
        return own

    head = [load_from(stream, NONE, what) for _ in range(3)]
    if head[:2] != [MAGIC, PROTOCOL]:
        raise Refused("it is in an unknown format")
    value, keys, at = load_from(stream, find, what, storage), load_from(stream, NONE, what), stream.tell()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or sorted(keys) != sorted(known):
        raise Refused("it lists other storages than it has")
    for key in keys:
        size = known[key].count * known[key].dtype.itemsize
        places[key] = raw[at + 8 : at + 8 + size]
        if len(places[key]) != size or int.from_bytes(raw[at : at + 8], "little") != known[key].count:
            raise Refused("it has a storage whose bytes are not as many as its numbers")
        at += 8 + size
    if at != len(raw):
        raise Refused("it goes on where it should end")
    return value


def load_from_bytes(data: Any) -> Storage:
    """`torch.storage._load_from_bytes`: one storage in the older format."""
    found = load_older(data, STORAGES.get, "a storage in it") if isinstance(data, bytes | bytearray) else None
    if not isinstance(found, Storage):
        raise Refused("it has a storage that is none")
    return found


def view(storage: Any = None, offset: Any = None, size: Any = None, stride: Any = None, *_: Any) -> View:
    """`torch._utils._rebuild_tensor_v2`: a dense tensor of the numbers in a storage."""
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride):
        raise Refused("it has a tensor that is no view of a storage")
    numbers = all(type(n) is int and 0 <= n < MOST for n in (offset, *size, *stride))
    if not numbers or len(size) > MOST_DIMENSIONS or math.prod(n or 1 for n in size) >= MOST:
        raise Refused("it has a tensor that is no view of a storage")
    wanted = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if wanted else -1
    if wanted > storage.count or last >= storage.count:
        raise Refused("it has a tensor that is larger than its storage")
    return View(storage, offset, size, stride)


def parameter(tensor: Any = None, *_: Any) -> View:
    """`torch._utils._rebuild_parameter`: its tensor."""
    if not isinstance(tensor, View):
        raise Refused("it has a parameter that is no tensor")
    return tensor


def taken(views: Iterable[tuple[str, View]], size: int) -> dict[str, Tensor]:
    """The tensors of views by name, each copied once out of its storage. `size` is that of the file that they are all of, unpacked.

    **Raises**: Refused where they and the storages to be read for them are far more than the file, as views of one storage can be.
    """
    left, found, before = most_bytes(size), dict[str, Tensor](), None
    for name, one in views:
        left -= one.nbytes + (0 if one.storage is before else one.storage.count * one.storage.dtype.itemsize)
        if left < 0:
            raise Refused("its tensors hold far more than the file")
        found[name], before = _tensor(one), one.storage
    return found


def _tensor(one: View) -> Tensor:
    """The numbers of a view alone, which may be few and far apart in its storage; as integers, since NumPy knows no bfloat16."""
    data, kind = one.storage.read(), np.dtype(f"<i{one.storage.dtype.itemsize}")
    if len(data) != one.storage.count * kind.itemsize:
        raise Refused(f"it has {len(data)} bytes in a storage of {one.storage.count * kind.itemsize}")
    if not one.nbytes:
        return torch.zeros(one.size, dtype=one.storage.dtype)
    steps = tuple(kind.itemsize * step for step in one.stride)
    own = np.ndarray(one.size, kind, buffer=data, offset=kind.itemsize * one.offset, strides=steps)
    return torch.from_numpy(own.copy(order="C")).view(one.storage.dtype)


TORCH: Mapping[str, Make] = {
    **STORAGES,
    "torch._utils._rebuild_tensor_v2": view,
    "torch._utils._rebuild_parameter": parameter,
    "torch.storage._load_from_bytes": load_from_bytes,
}
